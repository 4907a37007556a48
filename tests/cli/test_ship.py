"""`etl-server ship`, run as a user runs it, and what it prints, run as it is meant to be."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from etl_server import __version__
from etl_server.config import Settings
from etl_server.payload import Meta

from ..helpers import ServerProcess

HELPER = "SUFFIX = b'!'\ndef shout(data): return data.upper() + SUFFIX\n"
SHOUT = """
import helper_of_shout
from etl_server import ETLServer

class ShoutLoud(ETLServer):
    def transform(self, data, path, etl_args):
        return helper_of_shout.shout(data)
"""
LARGE = SHOUT + "    table = bytes(range(256)) * {times}\n"
FORMATS = ["env", "aistore", "k8s", "configmap"]
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def shout(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "helper_of_shout.py").write_text(HELPER)
    (folder / "shout.py").write_text(SHOUT)
    return folder / "shout.py"


def ship(*arguments: str | Path, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "etl_server", "ship", *map(str, arguments)]
    variables = {**os.environ, **(environment or {})}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=variables)


def shipped(*arguments: str | Path, environment: Mapping[str, str] | None = None) -> str:
    done = ship(*arguments, environment=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(*arguments: str | Path) -> str:
    done = ship(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def sourced(text: str) -> dict[str, str]:
    """The environment of a shell that has read `text`."""
    script = (
        f"set -a\n{text}exec {shlex.quote(sys.executable)} -c 'import json, os; print(json.dumps(dict(os.environ)))'"
    )
    done = subprocess.run(
        ["sh"], input=script, capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]}
    )
    variables: dict[str, str] = json.loads(done.stdout)
    return variables


def deployment(text: str) -> dict[str, Any]:
    (found,) = (item for item in json.loads(text)["items"] if item["kind"] == "Deployment")
    return dict(found)


def container_environment(text: str) -> dict[str, str]:
    """The variables that a manifest gives to the container; files of a ConfigMap are read into the variable instead."""
    document = json.loads(text)
    if document.get("kind") != "List":
        return {entry["name"]: entry["value"] for entry in document["runtime"]["env"]}
    (container,) = deployment(text)["spec"]["template"]["spec"]["containers"]
    variables = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
    files: dict[str, str] = next((item["data"] for item in document["items"] if item["kind"] == "ConfigMap"), {})
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    for variable in [name for name in variables if name.endswith("_FILE")]:
        folder, _, file = variables.pop(variable).rpartition("/")
        assert mounts["payload"] == folder
        variables[variable.removesuffix("_FILE")] = files[file]
    return variables


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_printed_serves_the_class_where_its_files_are_not(shout: Path, tmp_path: Path, kind: str) -> None:
    text = shipped(f"{shout}:ShoutLoud", "--format", kind)
    variables = sourced(text) if kind == "env" else container_environment(text)
    empty = tmp_path / "empty"
    empty.mkdir()
    with ServerProcess.bootstrap(environment=variables, cwd=empty) as server:
        assert server.put(b"hello") == (200, b"HELLO!")


def test_a_shell_starts_the_server_from_the_lines(shout: Path, tmp_path: Path) -> None:
    lines = shipped(shout, "--format", "env")
    (tmp_path / "ship.env").write_text(lines)
    shell = ("sh", "-c", f'set -a; . ./ship.env; exec {shlex.quote(sys.executable)} "$@"', "sh")
    with ServerProcess.bootstrap(python=shell, cwd=tmp_path) as server:
        assert server.put(b"hello") == (200, b"HELLO!")


@pytest.mark.parametrize("kind", FORMATS)
def test_packages_and_their_versions_arrive(shout: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = [
        "--package",
        "numpy[more]>=1.26,<3",
        "--package",
        "pillow",
        "--os-package",
        "ffmpeg",
        "--os-package",
        "sox",
    ]
    text = shipped(shout, "--format", kind, *options)
    variables = sourced(text) if kind == "env" else container_environment(text)
    for name in ("PACKAGES", "OS_PACKAGES"):
        monkeypatch.setenv(name, variables[name])
    settings = Settings.load()
    assert settings.packages == ("numpy[more]>=1.26,<3", "pillow")
    assert settings.os_packages == ("ffmpeg", "sox")


def test_size_and_local_modules_are_told_on_stderr(shout: Path) -> None:
    done = ship(shout, "--format", "env")
    payload = sourced(done.stdout)["ETL_CLASS_PAYLOAD"]
    assert done.stderr.splitlines() == [
        f"ShoutLoud: {len(payload):,} bytes, for Python {PYTHON}, not signed",
        "by value: helper_of_shout, shout",
    ]


@pytest.mark.parametrize("statement", ["import numpy", "from numpy import array"])
@pytest.mark.parametrize("inside", [True, False])
def test_installed_packages_that_are_not_named_are_told_on_stderr(shout: Path, statement: str, inside: bool) -> None:
    use = "numpy" if statement == "import numpy" else "array"
    body = f"        {statement}\n" if inside else ""
    head = "" if inside else f"{statement}\n"
    shout.write_text(head + SHOUT.replace("        return", f"{body}        {use}\n        return"))
    done = ship(shout, "--format", "env")
    assert "needs to be in the image, or named by --package: numpy==" in done.stderr
    assert Meta.parse(sourced(done.stdout)["ETL_CLASS_META"]).packages["numpy"].startswith("numpy==")
    assert "numpy" not in ship(shout, "--format", "env", "--package", "NumPy>=1").stderr


@pytest.mark.parametrize("way", ["--key", "ETL_PAYLOAD_KEY"])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_signed_class_is_served_where_the_key_is(shout: Path, kind: str, way: str) -> None:
    key = "k3y-0f-test"
    options = ["--key", key] if way == "--key" else []
    done = ship(shout, "--format", kind, *options, environment={way: key} if not options else None)
    assert key not in done.stdout + done.stderr
    assert "signed" in done.stderr
    variables = sourced(done.stdout) if kind == "env" else container_environment(done.stdout)
    with ServerProcess.bootstrap(environment={**variables, "ETL_PAYLOAD_KEY": key}) as server:
        assert server.put(b"hello") == (200, b"HELLO!")
    if kind in ("k8s", "configmap"):
        (container,) = deployment(done.stdout)["spec"]["template"]["spec"]["containers"]
        assert [entry["valueFrom"] for entry in container["env"] if entry["name"] == "ETL_PAYLOAD_KEY"] == [
            {"secretKeyRef": {"name": "etl-payload-key", "key": "key"}}
        ]


@pytest.mark.parametrize("comm", ["hpush", "hpull", "ws"])
def test_a_runtime_spec_is_what_aistore_takes(shout: Path, comm: str) -> None:
    spec = json.loads(
        shipped(shout, "--format", "aistore", "--comm", comm, "--image", "my/image:1", "--name", "my-etl-1")
    )
    assert spec["name"] == "my-etl-1"
    assert spec["communication"] == f"{comm}://"
    assert spec["runtime"]["image"] == "my/image:1"
    assert spec["runtime"]["command"] == ["python", "-m", "etl_server.bootstrap"]


@pytest.mark.parametrize("kind", ["k8s", "configmap"])
@pytest.mark.parametrize("options", [[], ["--os-package", "ffmpeg"], ["--key", "k"]])
def test_manifests_are_valid_for_kubernetes(shout: Path, kind: str, options: list[str]) -> None:
    items = json.loads(shipped(shout, "--format", kind, *options))["items"]
    assert [item["kind"] for item in items] == ["ConfigMap", "Deployment", "Service"][kind == "k8s" :]
    for item in items:
        kubernetes_validate.validate(item, "1.31", strict=True)
        assert item["metadata"]["name"] == "shout-loud"
    *_, made, service = items
    template = made["spec"]["template"]
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    assert made["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    (container,) = template["spec"]["containers"]
    assert container["image"] == f"etl-server:{__version__}"
    assert {mount["name"] for mount in container["volumeMounts"]} == {v["name"] for v in template["spec"]["volumes"]}
    as_root = "--os-package" in options
    assert (template["spec"]["securityContext"]["runAsUser"] == 0) == as_root
    assert container["securityContext"].get("readOnlyRootFilesystem", False) != as_root


def test_every_variable_is_a_setting(shout: Path) -> None:
    known = {field.alias for field in Settings.model_fields.values()}
    for kind in ("k8s", "configmap"):
        text = shipped(shout, "--format", kind, "--key", "k", "--package", "pillow", "--os-package", "ffmpeg")
        (container,) = deployment(text)["spec"]["template"]["spec"]["containers"]
        assert {entry["name"] for entry in container["env"]} <= known


@pytest.mark.parametrize("kind", ["env", "aistore", "k8s"])
def test_a_payload_that_no_variable_holds_is_refused_with_what_to_do(shout: Path, kind: str) -> None:
    shout.write_text(SHOUT + f"    table = {os.urandom(100_000)!r}\n")
    line = refused(shout, "--format", kind)
    for word in ("ETL_CLASS_PAYLOAD takes ", "131,072", "--format configmap", "bootstrap FILE"):
        assert word in line


def test_a_configmap_holds_what_a_variable_does_not(shout: Path) -> None:
    shout.write_text(SHOUT + f"    table = {os.urandom(100_000)!r}\n")
    items = json.loads(shipped(shout, "--format", "configmap"))["items"]
    assert len(items[0]["data"]["payload"]) > 131072
    assert "ETL_CLASS_PAYLOAD" not in {
        entry["name"] for entry in items[1]["spec"]["template"]["spec"]["containers"][0]["env"]
    }


def test_a_payload_that_no_configmap_holds_is_refused_with_what_to_do(shout: Path) -> None:
    shout.write_text(SHOUT + f"    table = {os.urandom(800_000)!r}\n")
    line = refused(shout, "--format", "configmap")
    assert "1,048,576" in line
    assert "bootstrap FILE" in line


def test_the_largest_variable_is_one_that_linux_takes(shout: Path) -> None:
    from etl_server.wire.etl_spec import check_environment

    largest = "x" * (131072 - len("A=") - 1)
    check_environment({"A": largest})
    subprocess.run(["true"], env={"A": largest}, check=True)
    with pytest.raises(ValueError, match=r"^environment variable A takes 131,073 bytes, expected at most 131,072"):
        check_environment({"A": largest + "x"})
    with pytest.raises(OSError, match="too long"):
        subprocess.run(["true"], env={"A": largest + "x"}, check=True)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ["short", "Upper-Case", "under_score", "x" * 33])
def test_a_name_that_aistore_refuses_is_refused(shout: Path, kind: str, name: str) -> None:
    assert f"ETL name {name!r}: expected 6 to 32 characters" in refused(shout, "--format", kind, "--name", name)


def test_a_name_that_kubernetes_refuses_is_refused(shout: Path) -> None:
    for kind in ("k8s", "configmap"):
        assert "begins with a letter" in refused(shout, "--format", kind, "--name", "1-shout")
    shipped(shout, "--format", "aistore", "--name", "1-shout")


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        ("ShoutLoud", "shout-loud"),
        ("Up", "up-etl"),
        ("_Up2Down", "up2-down"),
        ("HTTPShout", "httpshout"),
        ("A", "a-transform"),
        ("_9", "transform"),
        ("ShoutAsLoudAsOneCanAndThenSomeMore", "shout-as-loud-as-one-can-and-the"),
    ],
)
def test_the_name_is_made_of_the_classs(shout: Path, cls: str, name: str) -> None:
    shout.write_text(SHOUT.replace("ShoutLoud", cls))
    assert json.loads(shipped(shout, "--format", "k8s"))["items"][0]["metadata"]["name"] == name


def test_an_empty_key_is_refused(shout: Path) -> None:
    assert refused(shout, "--format", "env", "--key", "") == "etl-server: --key '': expected a key, or no such option\n"


def test_what_cannot_be_shipped_is_told_in_one_line(shout: Path) -> None:
    (shout.parent / "mute.py").write_text("from etl_server import ETLServer\nclass Mute(ETLServer): pass\n")
    assert "Mute must override transform() or" in refused(shout.parent / "mute.py", "--format", "env")
    assert "no class Quiet" in refused(f"{shout}:Quiet", "--format", "env")
    shout.write_text(SHOUT + "    import threading\n    event = (lambda: (yield))()\n")
    assert "ShoutLoud cannot be serialized: shout.ShoutLoud.event: " in refused(shout, "--format", "env")
