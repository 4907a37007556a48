"""A transform class of the text that it travels as."""

from __future__ import annotations

import base64
import inspect
import io
import opcode
import pickle
import platform
import sys
from types import CodeType
from typing import Any

import cloudpickle.cloudpickle  # type: ignore[import-untyped]

from ..errors import PayloadError, one_line
from ..server import ETLServer
from . import aistore
from .meta import Meta, check_signature


def deserialize_class(text: str) -> type[ETLServer]:
    """The class that `serialize_class`, or AIStore's function of that name, made `text` of.

    White space in it does not matter. A payload is code, and loading it runs it: load only what you trust.

    Raises:
        PayloadError: it cannot be loaded. The text is one line and says which step failed.
    """
    return _load(_decode(text), None)


def check_payload(text: str, meta: Meta | None, key: str) -> None:
    """Check all that can be checked of a payload without running it.

    Args:
        text: as `serialize_class` gives it.
        meta: what came beside it, if anything.
        key: if not empty, the payload must be signed with it.

    Raises:
        PayloadError: it is not to be loaded, or cannot be. The text is one line.
    """
    data = _decode(text)
    if key:
        check_signature(data, meta, key)
    if meta is not None:
        meta.check(data)


def load_payload(text: str, meta: Meta | None = None) -> type[ETLServer]:
    """As `deserialize_class`; what is in `meta` makes the errors' texts more precise."""
    return _load(_decode(text), meta)


def make_server(text: str) -> ETLServer:
    """An instance of the class in a payload."""
    return deserialize_class(text)()


def _decode(text: str) -> bytes:
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:
        raise PayloadError(f"base64 decoding failed: {error}") from None
    if not data:
        raise PayloadError("base64 decoding failed: the payload is empty")
    return data


def _load(data: bytes, meta: Meta | None) -> type[ETLServer]:
    if aistore.PACKAGE.encode() in data:
        aistore.provide_modules()
    try:
        loaded = _Unpickler(io.BytesIO(data)).load()
    except (Exception, SystemExit) as error:
        raise PayloadError(f"unpickling failed: {_reason(error, meta)}") from error
    if not isinstance(loaded, type):
        raise PayloadError(f"the payload is not an ETLServer subclass, it is an object of type {type(loaded).__name__}")
    if not issubclass(loaded, ETLServer) or loaded is ETLServer:
        raise PayloadError(f"the payload's class {loaded.__name__} is not an ETLServer subclass")
    if inspect.isabstract(loaded):
        missing = ", ".join(sorted(getattr(loaded, "__abstractmethods__", ())))
        raise PayloadError(f"the payload's class {loaded.__name__} is abstract, it lacks {missing}")
    aistore.adapt(loaded)
    return loaded


def _reason(error: BaseException, meta: Meta | None) -> str:
    """What kept a payload from being loaded, and what to do about it."""
    text = one_line(error)
    if isinstance(error, ModuleNotFoundError) and error.name:
        module = error.name.partition(".")[0]
        known = {"aistore": "aistore", **(meta.packages if meta else {})}
        package = repr(known[module]) if module in known else "the package that has it"
        built = f"; {meta.built_with()}" if meta else ""
        return f"module {error.name!r} is not installed here: add {package} to PACKAGES{built}"
    if isinstance(error, EOFError):
        return "the payload is cut off"
    # A code object takes other arguments in every version of Python.
    if isinstance(error, _ForeignCodeError) or (isinstance(error, (TypeError, ValueError)) and text.startswith("code")):
        here = platform.python_version()
        return (
            f"it was built with another version of Python, and here is {here}: make it again with Python "
            f"{here.rpartition('.')[0]}, or run it in an image with the version that made it"
        )
    built = f"; {meta.built_with()}, and here is Python {platform.python_version()}" if meta else ""
    return f"{type(error).__name__}: {text}{built}"


class _ForeignCodeError(Exception):
    """Code of another version of Python."""


class _Unpickler(pickle.Unpickler):
    """Puts our classes in place of AIStore's, and looks at code before anything runs it."""

    def find_class(self, module: str, name: str) -> Any:
        if (stand_in := aistore.find(module, name)) is not None:
            return stand_in
        found = super().find_class(module, name)
        return _builtin_type if found is cloudpickle.cloudpickle._builtin_type else found


def _builtin_type(name: str) -> Any:
    return _Code if name == "CodeType" else cloudpickle.cloudpickle._builtin_type(name)


class _CodeType(type):
    """The type of something that makes code like `types.CodeType`, for which it may also be taken."""

    def __call__(cls, *arguments: Any) -> Any:
        # Before it becomes code: merely looking at code that is laid out otherwise may end the process.
        if len(arguments) > 6 and isinstance(arguments[6], bytes) and _is_foreign(arguments[6]):
            raise _ForeignCodeError
        return CodeType(*arguments)

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, CodeType)


class _Code(metaclass=_CodeType):
    """Code that is laid out as this version of Python lays it out."""


def _is_foreign(content: bytes) -> bool:
    """Whether instructions are not laid out as this version of Python lays them out.

    Read by another version, there are instructions that are none, other numbers of code units for caches behind them,
    or another one than each function begins with.
    """
    if _CACHES is None:
        return False
    position, seen = 0, set()
    while position < len(content):
        operation = content[position]
        end = position + 2 + 2 * _CACHES.get(operation, 0)
        if operation not in _OPERATIONS or end > len(content) or any(content[position + 2 : end : 2]):
            return True
        seen.add(operation)
        position = end
    return "RESUME" in opcode.opmap and opcode.opmap["RESUME"] not in seen


def _cache_sizes() -> dict[int, int] | None:
    """By instruction: how many code units for caches are behind it. None: this version of Python does not tell."""
    if sys.version_info < (3, 11):
        return {}
    entries: Any = getattr(opcode, "_inline_cache_entries", None)
    if isinstance(entries, dict):  # by name, since Python 3.13
        return {opcode.opmap[name]: size for name, size in entries.items() if name in opcode.opmap}
    return dict(enumerate(entries)) if entries else None


_CACHES = _cache_sizes()
_OPERATIONS = {number for name, number in opcode.opmap.items() if name != "CACHE"}
