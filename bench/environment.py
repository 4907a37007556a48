"""What a benchmark needs on a machine: the peers in an environment of their own, Go programs, wrk, and its name."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

BENCH = Path(__file__).parent
ROOT = BENCH.parent
PEERS = BENCH / "peers"
GO_SOURCE = PEERS / "go"
REQUIREMENTS = PEERS / "requirements.txt"

_INSTALL_SECONDS = 900
_BUILD_SECONDS = 600
_FRAMEWORK = "github.com/NVIDIA/aistore"

Say = Callable[[str], None]


class EnvironmentProblemError(Exception):
    """Something that a benchmark needs is not there. The text says what to do."""


@dataclass(frozen=True)
class Environment:
    """Where everything is."""

    cache: Path
    peers: Path
    """`bin` of the peers' virtual environment."""
    tools: Path
    """The Go programs."""
    wrk: str
    go_peer: Path
    go_label: str
    """Which Go server stands for AIStore's."""

    def tool(self, name: str) -> str:
        """The path of a Go program."""
        return str(self.tools / name)

    def file_of_objects(self, size: int) -> Path:
        """The file that objects of `size` bytes are cut from; made when it is first asked for."""
        path = self.cache / "objects" / str(size)
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            half = path.with_suffix(".half")
            subprocess.run([self.tool("httpload"), "-pattern", str(half), "-size", str(size)], check=True, timeout=300)
            half.rename(path)
        return path


def default_cache() -> Path:
    """Where peers and programs are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "etl-server-bench"


def without_servers(cache: Path) -> Environment:
    """What cases need that no server takes part in: a place for their objects."""
    cache.mkdir(parents=True, exist_ok=True)
    return Environment(cache=cache, peers=Path(), tools=Path(), wrk="", go_peer=Path(), go_label="")


def prepare(cache: Path, say: Say) -> Environment:
    """Install the peers and build the Go programs, where that is not done yet.

    Raises:
        EnvironmentProblemError: a program is missing, or an installation failed.
    """
    for program, package in (("wrk", "apt-get install wrk"), ("taskset", "apt-get install util-linux"), ("go", "Go")):
        if shutil.which(program) is None:
            raise EnvironmentProblemError(f"{program!r} is not on the PATH: {package}")
    cache.mkdir(parents=True, exist_ok=True)
    tools = _build_tools(cache, say)
    go_peer, go_label = _go_peer(cache, tools, say)
    return Environment(
        cache=cache,
        peers=_install_peers(cache, say) / "bin",
        tools=tools,
        wrk=str(shutil.which("wrk")),
        go_peer=go_peer,
        go_label=go_label,
    )


def machine() -> dict[str, str]:
    """What a result has to name."""
    return {
        "cpu": _first_of("/proc/cpuinfo", "model name"),
        "cores": str(os.cpu_count()),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": " ".join(f"{each:.2f}" for each in os.getloadavg()),
    }


def versions(environment: Environment) -> dict[str, str]:
    """The versions of ours, of the peers and of the generators."""
    found = {"etl-server": _own_version("etl-server")}
    for name in ("uvicorn", "uvloop", "httptools", "boto3"):
        found[f"{name} (ours)"] = _own_version(name)
    if not environment.wrk:
        return found
    listed = _output([str(environment.peers / "python"), "-m", "pip", "list", "--format", "json"])
    installed = {package["name"].lower(): package["version"] for package in json.loads(listed)}
    for name in ("aistore", "fastapi", "starlette", "uvicorn", "httpx", "flask", "gunicorn", "websockets"):
        found[name] = installed.get(name, "?")
    found["go"] = _output(["go", "env", "GOVERSION"]).strip()
    found["go peer"] = environment.go_label
    wrk = subprocess.run([environment.wrk, "-v"], capture_output=True, text=True, timeout=10, check=False)
    found["wrk"] = wrk.stdout.split("[")[0].strip()
    return found


def _install_peers(cache: Path, say: Say) -> Path:
    wanted = REQUIREMENTS.read_bytes() + sys.version.encode()
    place = cache / f"peers-{hashlib.sha256(wanted).hexdigest()[:12]}"
    done = place / "installed"
    if not done.exists():
        say(f"installing the peers into {place}")
        shutil.rmtree(place, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(place)], _INSTALL_SECONDS)
        _run([str(place / "bin/python"), "-m", "pip", "install", "--quiet", "-r", str(REQUIREMENTS)], _INSTALL_SECONDS)
        done.touch()
    return place


def _build_tools(cache: Path, say: Say) -> Path:
    digest = hashlib.sha256(_output(["go", "version"]).encode())
    for source in sorted(GO_SOURCE.rglob("*")):
        if source.is_file():
            digest.update(source.relative_to(GO_SOURCE).as_posix().encode() + source.read_bytes())
    place = cache / f"go-{digest.hexdigest()[:12]}"
    if not place.exists():
        say(f"building the Go programs into {place}")
        half = place.with_suffix(".half")
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir()
        _run(["go", "build", "-o", f"{half}/", "./..."], _BUILD_SECONDS, cwd=GO_SOURCE)
        half.rename(place)
    return place


def _go_peer(cache: Path, tools: Path, say: Say) -> tuple[Path, str]:
    """AIStore's own framework where it can be built, else a server on the libraries that it is built on."""
    binary, failure = tools / "framework", tools / "framework.failed"
    if not binary.exists() and not failure.exists():
        say(f"building a server on {_FRAMEWORK}/ext/etl/webserver")
        copy = cache / "framework"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(GO_SOURCE / "framework", copy)
        try:
            _run(["go", "mod", "tidy"], _BUILD_SECONDS, cwd=copy)
            _run(["go", "build", "-o", str(binary), "."], _BUILD_SECONDS, cwd=copy)
        except EnvironmentProblemError as error:
            say(f"{error}\nnet/http takes its place")
            failure.write_text(str(error))
        shutil.rmtree(copy, ignore_errors=True)
    if binary.exists():
        return binary, f"{_FRAMEWORK}/ext/etl/webserver"
    return tools / "peer", "net/http, gorilla/websocket (AIStore's module could not be built here)"


def _run(command: Sequence[str], seconds: float, cwd: Path | None = None) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, cwd=cwd, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise EnvironmentProblemError(f"{' '.join(command)}: not done after {seconds:.0f} s") from None
    if done.returncode:
        raise EnvironmentProblemError(f"{' '.join(command)}:\n{done.stderr.strip() or done.stdout.strip()}")


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def _own_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "?"


def _first_of(file: str, field: str) -> str:
    for line in Path(file).read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return platform.machine()
