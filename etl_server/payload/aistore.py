"""Classes that were made for AIStore's own Python servers, served by ours.

Such a class is pickled with a base of `aistore.sdk.etl.webserver`. It is loaded onto a base of the same name here, so
that the `aistore` package is not needed; where it is installed, it is left as it is.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from functools import cached_property
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any
from urllib.parse import unquote

from ..server import ETLServer
from ..wire.pipeline import InvalidPipelineError, compose_etl_direct_put_url, parse_etl_pipeline
from .dump import serialize_class

PACKAGE = "aistore.sdk.etl.webserver"
SUBMODULES = ("base_etl_server", "fastapi_server", "flask_server", "http_multi_threaded_server", "utils")


class AIStoreServer(ETLServer):
    """What a class finds in AIStore's base class, beside what `ETLServer` has already."""

    def __init__(self, host: str = "0.0.0.0", port: int = 8000) -> None:  # noqa: S104 - as there
        """`host` and `port` are kept for the class to see; where to listen is said by `ETL_HOST` and `ETL_PORT`."""
        super().__init__()
        self.host = host
        self.port = port

    # Not properties: a class may set them.

    @cached_property
    def host_target(self) -> str:
        """`AIS_TARGET_URL`, or empty."""
        return self.settings.host_target.get_secret_value()

    @cached_property
    def direct_put(self) -> bool:
        """`DIRECT_PUT`."""
        return self.settings.direct_put

    @cached_property
    def direct_fqn(self) -> bool:
        """`ETL_DIRECT_FQN`."""
        return self.settings.direct_fqn

    @cached_property
    def direct_put_retries(self) -> int:
        """`AIS_DIRECT_PUT_RETRIES`."""
        return self.settings.direct_put_retries

    @cached_property
    def token(self) -> str | None:
        """`AIS_AUTHN_TOKEN`, or None."""
        return self.settings.authn_token.get_secret_value() or None

    @cached_property
    def use_streaming(self) -> bool:
        """Whether objects go through `transform_stream`."""
        return self.streams

    def sanitize_fqn(self, fqn: str) -> str:
        """A percent-encoded file path as an absolute one without `..`."""
        return os.path.normpath("/" + unquote(fqn).lstrip("/"))

    @staticmethod
    def close_reader(reader: Any) -> None:
        """Close what can be closed, whatever comes of it."""
        with contextlib.suppress(Exception):
            reader.close()


class FastAPIServer(AIStoreServer):
    """In place of AIStore's class of that name, which transforms on its event loop: one object at a time."""


class FlaskServer(AIStoreServer):
    """In place of AIStore's class of that name, which transforms one object at a time under its usual server."""


class HTTPMultiThreadedServer(AIStoreServer):
    """In place of AIStore's class of that name, which transforms in a thread for each connection."""


STAND_INS: dict[str, Any] = {
    "ETLServer": AIStoreServer,
    "FastAPIServer": FastAPIServer,
    "FlaskServer": FlaskServer,
    "HTTPMultiThreadedServer": HTTPMultiThreadedServer,
    "InvalidPipelineError": InvalidPipelineError,
    "compose_etl_direct_put_url": compose_etl_direct_put_url,
    "parse_etl_pipeline": parse_etl_pipeline,
    "serialize_class": serialize_class,
}
"""What stands in for names of AIStore's modules."""


def find(module: str, name: str) -> Any:
    """What stands in for a name of one of AIStore's modules; None: nothing does."""
    return STAND_INS.get(name) if module == PACKAGE or module.startswith(f"{PACKAGE}.") else None


def adapt(cls: type[ETLServer]) -> None:
    """Keep what a class could rely on where it was made for: of its objects, how many are transformed at once."""
    buffered = cls.transform is not ETLServer.transform
    if issubclass(cls, (FastAPIServer, FlaskServer)) and buffered and cls.max_concurrency is None:
        cls.max_concurrency = 1


def provide_modules() -> None:
    """Let import statements find AIStore's modules for servers, as long as `aistore` is not installed."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())  # asked last, so that what is installed is found first


class _Finder:
    """Finds modules that have the stand-ins, and the packages that hold them."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        holder, _, module = name.rpartition(".")
        known = f"{PACKAGE}.".startswith(f"{name}.") or (holder == PACKAGE and module in SUBMODULES)
        if not known:
            return None
        return ModuleSpec(name, self, is_package=holder != PACKAGE)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        """None: an ordinary module."""

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__.startswith(PACKAGE):
            vars(module).update(STAND_INS)
