"""Installing what a class needs, by a real pip; nothing is downloaded."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from etl_server import ETLServer, serialize_class
from etl_server.errors import InstallError
from etl_server.packages import install_os

from .environments import UNPRIVILEGED, Environment, make_wheel, needs_unprivileged
from .helpers import ServerProcess

NEEDS_DEP = """
import tiny_dep
from etl_server import ETLServer
class Needs(ETLServer):
    def transform(self, data, path, etl_args):
        return data + tiny_dep.ANSWER
"""


class Echo(ETLServer):
    def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
        return data


PAYLOAD = serialize_class(Echo)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "venv")


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    """A class that needs a package, and pip's settings for taking it from a folder only."""
    make_wheel(tmp_path / "wheels")
    (tmp_path / "mine.py").write_text(NEEDS_DEP)
    script = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(tmp_path / 'wheels/tiny_dep-1.0-py3-none-any.whl')!r}]\n"
    )
    script += "import mine, etl_server, cloudpickle; cloudpickle.register_pickle_by_value(mine)\n"
    script += "print(etl_server.serialize_class(mine.Needs))"
    made = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {
        "ETL_CLASS_PAYLOAD": made.stdout.strip(),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path / "wheels"),
        "HOME": str(tmp_path),
    }


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_a_class_needs_is_installed_before_it_is_loaded(
    tmp_path: Path, environment: Environment, variables: dict[str, str], workers: str
) -> None:
    make_wheel(tmp_path / "wheels", "extra_dep")
    make_wheel(tmp_path / "wheels", version="1.5", requires="Requires-Dist: extra_dep; extra == 'more'\n")
    make_wheel(tmp_path / "wheels", version="3.0", source="raise ImportError")
    variables |= {"PACKAGES": "tiny_dep[more]>=1.2,<2, pip", "ETL_WORKERS": workers}
    with ServerProcess.bootstrap(environment=variables, python=(environment.python,)) as server:
        assert server.put(b"the answer is ") == (200, b"the answer is 42")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    assert environment.installed() == {"tiny_dep", "extra_dep"}
    assert [line for line in server.lines if "etl_server.serve" not in line] == [
        "etl-server: installing PACKAGES and OS_PACKAGES"
    ]


@needs_unprivileged
@pytest.mark.parametrize("workers", ["1", "2"])
def test_where_nothing_can_be_installed_packages_go_into_a_temporary_directory(
    tmp_path: Path, environment: Environment, variables: dict[str, str], workers: str
) -> None:
    environment.packages.chmod(0o555)
    python = (*UNPRIVILEGED[:-1], environment.python)
    variables |= {"PACKAGES": "tiny_dep", "ETL_WORKERS": workers, "TMPDIR": str(tmp_path)}
    with ServerProcess.bootstrap(environment=variables, python=python) as server:
        assert server.put(b"") == (200, b"42")
    assert environment.installed() == set()
    assert list(tmp_path.glob("etl-server-packages-*/tiny_dep.py"))


@needs_unprivileged
def test_where_nothing_can_be_written_at_all_the_start_ends_with_one_line(
    environment: Environment, variables: dict[str, str]
) -> None:
    environment.packages.chmod(0o555)
    # A folder under /proc cannot be written by anybody, and tempfile falls back to nothing that can.
    script = "import sys, tempfile; tempfile._candidate_tempdir_list = lambda: ['/proc/nowhere']\n"
    script += "from etl_server.bootstrap import main; sys.argv[1:] = []; main()"
    python = (*UNPRIVILEGED[:-1], environment.python)
    with ServerProcess("-c", script, environment={**variables, "PACKAGES": "tiny_dep"}, python=python) as server:
        assert server.wait() == 3
    assert "PACKAGES=tiny_dep: neither " in server.lines[-1]


@needs_unprivileged
def test_what_is_there_already_is_not_looked_for(environment: Environment, variables: dict[str, str]) -> None:
    index = {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": "http://127.0.0.1:9/none", "PIP_FIND_LINKS": ""}
    variables |= {"ETL_CLASS_PAYLOAD": PAYLOAD, "PACKAGES": "pytest,requests>=2", **index}
    environment.packages.chmod(0o555)  # where pip on its own would fetch everything into another directory
    python = (*UNPRIVILEGED[:-1], environment.python)
    with ServerProcess.bootstrap(environment=variables, python=python) as server:
        assert server.put(b"a") == (200, b"a")


@pytest.mark.parametrize(
    ("packages", "words"),
    [
        ("no_such_dep", ["PACKAGES=no_such_dep: pip failed with exit code 1: ERROR: No matching distribution"]),
        ("tiny dep", ["PACKAGES=tiny dep: pip failed", "Invalid requirement"]),
        # With that, the server itself would not start.
        ("fastapi==0.1", ["PACKAGES=fastapi==0.1: pip failed", "ERROR: "]),
        ("tiny_dep @ http://user:s3cr3t@127.0.0.1:9/tiny_dep-1.0-py3-none-any.whl", ["://***@127.0.0.1:9/"]),
        ("tiny_dep @ http://127.0.0.1:9/tiny_dep-1.0-py3-none-any.whl?token=s3cr3t", ["whl?token=***"]),
    ],
)
def test_a_failing_pip_ends_the_start_with_one_line_below_what_it_wrote(
    tmp_path: Path, environment: Environment, variables: dict[str, str], packages: str, words: list[str]
) -> None:
    make_wheel(tmp_path / "wheels", "fastapi", "0.1")
    variables |= {"PACKAGES": packages, "PIP_RETRIES": "0"}
    with ServerProcess.bootstrap(environment=variables, python=(environment.python,)) as server:
        assert server.wait() == 3
    assert [word for word in words if word not in server.lines[-1]] == [], server.stderr
    assert server.lines[-1].startswith("etl-server: ")
    assert len(server.lines) > 2
    assert "Traceback" not in server.stderr
    assert "s3cr3t" not in server.stderr
    assert environment.installed() == set()


def test_a_missing_pip_ends_the_start_with_one_line(tmp_path: Path, environment: Environment) -> None:
    (tmp_path / "pip.py").write_text("raise ImportError")
    variables = {"ETL_CLASS_PAYLOAD": PAYLOAD, "PACKAGES": "tiny_dep", "PYTHONPATH": str(tmp_path)}
    with ServerProcess.bootstrap(environment=variables, python=(environment.python,)) as server:
        assert server.wait() == 3
    assert "PACKAGES=tiny_dep: pip is not installed for " in server.lines[-1]


def runs(pid: int) -> bool:
    """Whether a process is there, other than as one that nobody has asked for its exit code."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_installation(
    tmp_path: Path, environment: Environment, variables: dict[str, str], number: signal.Signals
) -> None:
    os.mkfifo(tmp_path / "started")
    source = tmp_path / "source"
    source.mkdir()
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    backend = f"import os, time\nopen({str(tmp_path / 'started')!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
    (source / "backend.py").write_text(backend)
    variables |= {"PACKAGES": str(source)}
    with ServerProcess.bootstrap(environment=variables, python=(environment.python,)) as server:
        building = int((tmp_path / "started").read_text())
        server.signal(number)
        assert server.wait() == 0
    assert not runs(building)
    assert "Traceback" not in server.stderr


# The system's packages


def commands(folder: Path, **scripts: str) -> str:
    """A PATH with these commands only."""
    folder.mkdir()
    for name, script in scripts.items():
        file = folder / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
    return str(folder)


def test_without_a_package_manager_the_start_ends_with_one_line(tmp_path: Path) -> None:
    variables = {"ETL_CLASS_PAYLOAD": PAYLOAD, "OS_PACKAGES": "sox, ffmpeg", "PATH": commands(tmp_path / "bin")}
    with ServerProcess.bootstrap(environment=variables) as server:
        assert server.wait() == 3
    assert "OS_PACKAGES=sox,ffmpeg: neither apt-get nor apk is here" in server.lines[-1]


# apk is not on the machines of the tests, so what it is asked stands in a file.


def test_apk_is_asked_to_install_what_it_does_not_know_as_installed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    apk = f'echo "$@" >> {log}; [ "$1" = add ]'
    variables = {"ETL_CLASS_PAYLOAD": PAYLOAD, "OS_PACKAGES": "sox,ffmpeg", "PATH": commands(tmp_path / "bin", apk=apk)}
    with ServerProcess.bootstrap(environment=variables) as server:
        assert server.put(b"a") == (200, b"a")
    assert log.read_text().splitlines() == ["info --installed sox ffmpeg", "add --no-cache sox ffmpeg"]


def test_apk_is_not_asked_to_install_what_is_installed(tmp_path: Path) -> None:
    apk = '[ "$1" = info ]'
    variables = {"ETL_CLASS_PAYLOAD": PAYLOAD, "OS_PACKAGES": "sox", "PATH": commands(tmp_path / "bin", apk=apk)}
    with ServerProcess.bootstrap(environment=variables) as server:
        assert server.put(b"a") == (200, b"a")


def test_a_failing_apk_ends_the_start_with_one_line_below_what_it_wrote(tmp_path: Path) -> None:
    apk = 'echo "ERROR: unable to select packages:"; echo "  sox (no such package):"; exit 1'
    variables = {"ETL_CLASS_PAYLOAD": PAYLOAD, "OS_PACKAGES": "sox", "PATH": commands(tmp_path / "bin", apk=apk)}
    with ServerProcess.bootstrap(environment=variables) as server:
        assert server.wait() == 3
    assert "OS_PACKAGES=sox: apk failed with exit code 1: ERROR: unable to select packages:" in server.lines[-1]
    assert "  sox (no such package):" in server.lines


needs_apt = pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt-get here")


@needs_apt
def test_what_apt_has_installed_is_not_installed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 10001)  # who could not install it
    install_os(["dpkg", "base-files"])


@needs_apt
def test_only_root_can_install_with_apt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 10001)
    with pytest.raises(InstallError, match=r"^OS_PACKAGES=dpkg,no-such-thing: only root .* runs as user 10001"):
        install_os(["dpkg", "no-such-thing"])


@needs_apt
@pytest.mark.skipif(os.geteuid() != 0, reason="only root installs")
def test_apt_installs_what_a_class_runs_or_says_why_not() -> None:  # one test, because apt runs once at a time
    cls = type("Hello", (Echo,), {"transform": lambda self, data, *_: subprocess.check_output(["hello", "-g", data])})
    remove = ["apt-get", "-o", "DPkg::Lock::Timeout=60", "remove", "--yes", "hello"]
    if shutil.which("hello") is not None:
        subprocess.run(remove, check=True, capture_output=True)
    variables = {"ETL_CLASS_PAYLOAD": serialize_class(cls), "OS_PACKAGES": "hello"}
    try:
        with ServerProcess.bootstrap(environment=variables) as server:
            assert server.put(b"hi") == (200, b"hi\n")
    finally:
        subprocess.run(remove, check=True, capture_output=True)
    with ServerProcess.bootstrap(environment={**variables, "OS_PACKAGES": "no-such-thing"}) as server:
        assert server.wait() == 3
    assert "OS_PACKAGES=no-such-thing: apt-get failed with exit code 100: E: " in server.lines[-1]
    assert len(server.lines) > 2
