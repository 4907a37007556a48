"""Install what a class needs: `PACKAGES` with pip, `OS_PACKAGES` with apt-get or apk."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .config import redact
from .errors import InstallError

STOP_GRACE = 5.0
"""Seconds that an installer has to end itself when this process is told to."""

_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")


def install_python(requirements: Sequence[str]) -> Mapping[str, str] | None:
    """Install requirements with pip, unless they are met already.

    They go where this interpreter has its packages; where that cannot be written, into a temporary directory.
    Versions with which this package would not work any more are refused.

    Returns:
        The environment variables with which a new interpreter finds what was installed; None: nothing was.

    Raises:
        InstallError: pip is not there, or failed; what it wrote is on stderr then.
    """
    if _run([sys.executable, "-c", "import pip"]).code:
        raise InstallError(f"{_shown('PACKAGES', requirements)}: pip is not installed for {sys.executable}")
    if not any("/" in requirement for requirement in requirements):  # a URL or a path would be built for that
        # Without its configuration, so that no index or folder is looked at.
        check = _run([*_PIP, "--isolated", "install", "--dry-run", "--no-index", *requirements])
        if not check.code and "Would install" not in check.output:
            return None
    variables: dict[str, str] = {}
    options = ["--quiet", "--root-user-action", "ignore"]
    if not all(os.access(sysconfig.get_path(name), os.W_OK) for name in ("purelib", "platlib")):
        try:
            target = tempfile.mkdtemp(prefix="etl-server-packages-")
        except OSError as error:
            raise InstallError(
                f"{_shown('PACKAGES', requirements)}: neither {sysconfig.get_path('purelib')} nor a temporary "
                f"directory can be written: {error.strerror}; mount a volume at /tmp, or build an image that has them"
            ) from None
        options += ["--target", target]
        path = os.environ.get("PYTHONPATH")
        variables["PYTHONPATH"] = f"{target}{os.pathsep}{path}" if path else target
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("\n".join(own_requirements()))
        done = _run([*_PIP, "install", *options, "--constraint", str(constraints), *requirements])
    if done.code:
        raise _failure("PACKAGES", requirements, "pip", done)
    return variables


def install_os(names: Sequence[str]) -> None:
    """Install the system's packages with apt-get or apk, whichever is there, unless they are installed.

    Raises:
        InstallError: neither is there, this process is not root, or the installation failed; what it wrote is on
            stderr then.
    """
    manager = next((path for name in ("apt-get", "apk") if (path := shutil.which(name))), None)
    if manager is None:
        raise InstallError(f"{_shown('OS_PACKAGES', names)}: neither apt-get nor apk is here to install them")
    if manager.endswith("apk"):
        check, steps = ["apk", "info", "--installed", *names], [[manager, "add", "--no-cache", *names]]
    else:
        check = ["dpkg-query", "--show", "--showformat", "${db:Status-Status}\n", *names]
        steps = [
            [manager, "update"],
            [manager, "-o", "DPkg::Lock::Timeout=60", "install", "--yes", "--no-install-recommends", *names],
        ]
    found = _run(check)
    if not found.code and (manager.endswith("apk") or set(found.output.split()) == {"installed"}):
        return
    if os.geteuid():
        raise InstallError(
            f"{_shown('OS_PACKAGES', names)}: only root can install them, and this process runs as user "
            f"{os.geteuid()}; build an image that has them"
        )
    for step in steps:
        done = _run(step, {"DEBIAN_FRONTEND": "noninteractive"})
        if done.code:
            raise _failure("OS_PACKAGES", names, Path(manager).name, done)


def distribution(requirement: str) -> str:
    """The name of the distribution that a requirement is for, written as PyPI compares names."""
    name = re.split(r"[^A-Za-z0-9._-]", requirement.strip(), maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


class _Done(NamedTuple):
    code: int
    output: str


def _run(command: Sequence[str], variables: Mapping[str, str] | None = None) -> _Done:
    """Run a command to its end; if a signal's handler raises meanwhile, end it with all it started."""
    try:
        process = subprocess.Popen(  # noqa: S603 - the names are what the user asks for
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **(variables or {})},
            start_new_session=True,
        )
    except OSError as error:
        return _Done(127, f"{command[0]}: {error.strerror}")
    try:
        output, _ = process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        raise
    return _Done(process.returncode, output)


def _failure(setting: str, names: Sequence[str], program: str, done: _Done) -> InstallError:
    """The error of an installer that failed. What it wrote goes to stderr."""
    output = redact(done.output)
    sys.stderr.write(output if output.endswith("\n") else f"{output}\n")
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    reasons = [line for line in lines if re.match(r"(?i)(error|e):", line)] or lines or ["it said nothing"]
    reason = reasons[-1] if program == "pip" else reasons[0]
    return InstallError(f"{_shown(setting, names)}: {program} failed with exit code {done.code}: {reason}")


def _shown(setting: str, names: Sequence[str]) -> str:
    return f"{setting}={redact(','.join(names))}"


def own_requirements() -> list[str]:
    """What this package needs of others, as pip's constraints, which have no extras."""
    try:
        requirements = importlib.metadata.requires("etl-server") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [re.sub(r"\[[^\]]*\]", "", requirement) for requirement in requirements if "extra ==" not in requirement]
