"""What a container runs: install what the class needs, load the class, serve it.

`python -m etl_server.bootstrap` serves the class in `ETL_CLASS_PAYLOAD` or `ETL_CLASS_PAYLOAD_FILE`;
`python -m etl_server.bootstrap FILE_OR_MODULE[:Class]` serves one that is there already. Whatever keeps it from serving
is said in the last line on stderr. Exit codes: 0 it was told to stop, and finished what it had; 1 it had to cut some;
2 what it was given is wrong; 3 the start failed, or its workers died again and again.
"""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from .errors import ClassLoadError, ConfigError, ETLError, InstallError, PayloadError, one_line

if TYPE_CHECKING:
    from .config import Settings
    from .runtime.serve import MakeServer
    from .server import ETLServer

WRONG_INPUT = 2
START_FAILED = 3
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def main() -> NoReturn:
    """Run the command; does not return."""
    # The first process of a container has no default action for a signal, so all of the start needs a handler.
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
    parser = argparse.ArgumentParser(prog="python -m etl_server.bootstrap", description="Serve one class.")
    parser.add_argument(
        "spec", metavar="FILE_OR_MODULE[:Class]", nargs="?", help="default: the class in ETL_CLASS_PAYLOAD or …_FILE"
    )
    spec = parser.parse_args().spec
    try:
        sys.exit(_start(spec))
    except KeyboardInterrupt:  # not SystemExit, which from the user's class is a failure
        sys.exit(0)
    except Exception as error:
        from .config import tell

        if isinstance(error, ETLError):
            tell(one_line(error))
        else:
            tell(f"the start failed: {type(error).__name__}: {one_line(error)}")
        sys.exit(WRONG_INPUT if isinstance(error, (ConfigError, ClassLoadError, PayloadError)) else START_FAILED)


def _start(spec: str | None) -> int:
    """Serve until told to stop; returns the exit code."""
    from .config import Settings

    settings = Settings.load()
    sources = {
        f"{spec}": spec,
        "ETL_CLASS_PAYLOAD": settings.class_payload,
        "ETL_CLASS_PAYLOAD_FILE": settings.class_payload_file,
    }
    given = [name for name, value in sources.items() if value]
    if len(given) != 1:
        raise ConfigError(
            "expected one of FILE_OR_MODULE[:Class], ETL_CLASS_PAYLOAD and ETL_CLASS_PAYLOAD_FILE, and "
            f"{' and '.join(given) or 'none'} is given"
        )
    return _serve_module(spec, settings) if spec else _serve_payload(given[0], settings)


def _serve_module(spec: str, settings: Settings) -> int:
    from .loading import load_class, make_server

    _install(settings)
    cls = load_class(spec)
    return _serve(cls, functools.partial(make_server, spec), settings)


def _serve_payload(source: str, settings: Settings) -> int:
    from .payload import Meta, check_payload, load_payload, make_server

    payload = settings.class_payload or _read("ETL_CLASS_PAYLOAD_FILE", settings.class_payload_file)
    meta_text = settings.class_meta or _read("ETL_CLASS_META_FILE", settings.class_meta_file)
    meta = Meta.parse(meta_text) if meta_text else None
    try:
        check_payload(payload, meta, settings.payload_key.get_secret_value())
        _install(settings)
        cls = load_payload(payload, meta)
    except PayloadError as error:
        raise PayloadError(f"{source}: {error}") from error
    return _serve(cls, functools.partial(make_server, payload), settings)


def _serve(cls: type[ETLServer], make: MakeServer, settings: Settings) -> int:
    from .runtime.serve import run

    return run(cls if settings.workers == 1 else make, settings)


def _read(variable: str, file: Path | None) -> str:
    if file is None:
        return ""
    try:
        return file.read_text("ascii", "replace")
    except OSError as error:
        raise ConfigError(f"{variable}={file}: expected a file that can be read: {error.strerror}") from None


def _install(settings: Settings) -> None:
    """Install what is asked for; if that changed anything, begin again in a fresh interpreter that finds it."""
    from .packages import install_os, install_python

    if not (settings.packages or settings.os_packages):
        return
    print("etl-server: installing PACKAGES and OS_PACKAGES", file=sys.stderr, flush=True)
    if settings.os_packages:
        install_os(settings.os_packages)
    variables = install_python(settings.packages) if settings.packages else None
    if variables is None:
        return
    environment = {name: value for name, value in os.environ.items() if name not in ("PACKAGES", "OS_PACKAGES")}
    # A signal that comes in between waits for the new interpreter's handlers.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**environment, **variables})  # noqa: S606
    except OSError as error:
        raise InstallError(f"the server cannot be started after the installation: {error.strerror}") from None


if __name__ == "__main__":
    main()
