"""What a transform is, as a short text: the same text as long as it would make the same outputs.

It is a hash of the transform's payload, which has the code by value. A payload's bytes are not the same in every
process: sets have no order, equal texts may or may not be one object, code knows its file and its line. So the payload
is not hashed as bytes. It is unpickled without importing or running anything of what it names, and the structure that
comes of that is hashed.
"""

from __future__ import annotations

import base64
import hashlib
import io
import pickle
from collections.abc import Iterable
from types import CodeType
from typing import Any

from ..config import Settings
from ..payload import serialize_class
from ..server import ETLServer

INFLUENTIAL = ("direct_fqn", "direct_put", "checksum")
"""Settings that a transform's output may depend on."""
_UNSTABLE_KEYS = {"__firstlineno__", "__static_attributes__"}
_LOADED_BESIDE = "_cloudpickle_submodules"
"""Modules that are loaded along with a function; which ones depends on what happens to be imported."""


def fingerprint(cls: type[ETLServer], settings: Settings, etl_args: str, *context: str) -> str:
    """32 hexadecimal digits that change with the code of `cls`, with the settings that it may see, and with `etl_args`.

    The code is that of the class and of the local modules that it uses, as compiled: comments, line numbers and the
    place of the files do not count. Installed packages count by name, not by version.

    Args:
        context: whatever else the outputs depend on.

    Raises:
        TypeError: `cls` is no subclass of `ETLServer` that has a transform.
        PayloadError: something that the class uses cannot be pickled; the text names it.
    """
    influential = [(name, getattr(settings, name)) for name in INFLUENTIAL]
    code = _Unpickler(io.BytesIO(base64.b64decode(serialize_class(cls)))).load()
    return _Digest().of([influential, etl_args, context, code])[:32]


class _Node:
    """Something that unpickling would have made: what makes it, of what, and what is done to it afterwards."""

    def __init__(self, maker: object, arguments: tuple[Any, ...]) -> None:
        self.parts: list[Any] = [maker, arguments]
        if arguments and isinstance(arguments[0], _Node):
            # Maybe it is called for what it does to its first argument: so is the state of functions and classes set.
            arguments[0].parts.append((maker, arguments[1:]))

    def __call__(self, *arguments: Any) -> _Node:
        return _Node(self, arguments)

    def __setstate__(self, state: Any) -> None:
        self.parts.append(state)

    def append(self, item: Any) -> None:
        self.parts.append(item)

    add = append

    def extend(self, items: Iterable[Any]) -> None:
        self.parts.extend(items)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.parts.append((key, value))


class _Unpickler(pickle.Unpickler):
    """Makes nodes in place of whatever a pickle names; only code is made for real."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("cloudpickle.cloudpickle", "_builtin_type"):
            return lambda kind: CodeType if kind == "CodeType" else _Node(name, (kind,))
        return _named(module, name)


def _named(module: str, name: str) -> type:
    """What stands for a class or a function of that name: a type, because some instructions of pickle insist on one."""

    def make(kind: type, *arguments: Any, **keywords: Any) -> _Node:
        return _Node(kind, (*arguments, *sorted(keywords.items())))

    return type(name, (), {"__new__": make, "stands_for": f"{module}.{name}"})


class _Digest:
    """Hashes a structure. What is in there more than once is hashed once, then by its number."""

    def __init__(self, known: dict[int, int] | None = None) -> None:
        self._known = known if known is not None else {}

    def of(self, value: Any) -> str:
        """The SHA-256 of the structure, in hexadecimal digits."""
        self._hash = hashlib.sha256()
        self._add(value)
        return self._hash.hexdigest()

    def _tag(self, tag: str) -> None:
        self._hash.update(f"{len(tag)}:{tag}".encode(errors="surrogatepass"))

    def _add(self, value: Any) -> None:
        if isinstance(value, (str, bytes, int, float, complex)) or value is None or value is Ellipsis:
            self._tag(type(value).__name__)
            self._tag(value if isinstance(value, str) else repr(value))
        elif isinstance(value, CodeType):
            self._add_code(value)
        elif isinstance(value, type):
            self._tag("name")
            self._tag(getattr(value, "stands_for", value.__qualname__))
        elif isinstance(value, tuple):
            self._add_all("tuple", value)
        elif isinstance(value, (set, frozenset)):
            self._add_all("set", sorted(_Digest(dict(self._known)).of(item) for item in value))
        elif id(value) in self._known:
            self._tag(f"known {self._known[id(value)]}")
        else:
            self._known[id(value)] = len(self._known)
            self._add_new(value)

    def _add_new(self, value: Any) -> None:
        if isinstance(value, _Node):
            self._add_all("node", value.parts)
        elif isinstance(value, dict):
            items = [item for item in value.items() if item[0] not in _UNSTABLE_KEYS]
            self._add_all("dict", [(key, _by_value(item) if key == _LOADED_BESIDE else item) for key, item in items])
        elif isinstance(value, (list, bytearray)):
            self._add_all(type(value).__name__, value)
        else:
            raise TypeError(f"unexpected in a payload: {type(value).__name__}")

    def _add_all(self, kind: str, values: Any) -> None:
        self._tag(f"{kind} {len(values)}")
        for value in values:
            self._add(value)

    def _add_code(self, code: CodeType) -> None:
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_name)
        handlers = getattr(code, "co_exceptiontable", b"")
        self._add_all("code", (counts, names, code.co_code, handlers, code.co_consts))


def _by_value(modules: Any) -> frozenset[Any]:
    """Of the modules that are loaded beside a function, those that travel by value."""
    return frozenset(m for m in modules if getattr(_maker(m), "stands_for", "") != "cloudpickle.cloudpickle.subimport")


def _maker(value: Any) -> Any:
    return value.parts[0] if isinstance(value, _Node) else None
