"""A transform class of the text that it travels as."""

from __future__ import annotations

import base64
import dis
import inspect
import io
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
    except Exception as error:
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


def _reason(error: Exception, meta: Meta | None) -> str:
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
        code = CodeType(*arguments)
        if _is_foreign(code, arguments[6]):
            raise _ForeignCodeError
        return code

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, CodeType)


class _Code(metaclass=_CodeType):
    """Code that is laid out as this version of Python lays it out."""


def _is_foreign(code: CodeType, content: bytes) -> bool:
    """Whether instructions are not laid out as this version of Python lays them out.

    Running such code would end the process without a word. Read by another version, there are instructions that are
    none, other numbers of code units for caches behind them, or another one than each function begins with.

    Args:
        code: what this Python made of the instructions, in which it has reset what it takes for caches.
        content: the instructions as they came.
    """
    try:
        instructions = list(dis.get_instructions(code))
    except Exception:  # what an instruction refers to is not there
        return True
    if sys.version_info >= (3, 11) and all(instruction.opname != "RESUME" for instruction in instructions):
        return True
    ends = [instruction.offset for instruction in instructions[1:]] + [len(content)]
    return any(
        instruction.opname == "CACHE"
        or instruction.opname.startswith("<")
        or instruction.opcode != content[instruction.offset]
        or any(content[instruction.offset + 2 : end : 2])
        for instruction, end in zip(instructions, ends, strict=True)
    )
