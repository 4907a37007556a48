"""A transform class as text, and back.

The text is base64 of a cloudpickle of the class and nothing else, so whoever knows cloudpickle can load it. What is
installed (the standard library, site-packages, this package) is in there by name. What is local travels by value: the
class itself and, of each local module that it uses, what its code uses of it. The other side needs none of the files.
"""

from __future__ import annotations

import base64
import dataclasses
import dis
import functools
import importlib
import importlib.util
import io
import operator
import os
import pickle
import re
import site
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple, NewType

import cloudpickle  # type: ignore[import-untyped]

from .errors import PayloadError
from .server import ETLServer


def serialize_class(cls: type[ETLServer], encoding: str = "utf-8") -> str:
    """A transform class as text that `deserialize_class` makes the class of again, where its files do not exist.

    Both sides need the same minor version of Python, and what the class uses of installed packages. Local modules that
    are imported inside a function come along if they can be imported here; those imported by a computed name do not.
    Locks arrive unlocked, and the caches of `functools.cache` empty.

    Args:
        cls: a subclass of `ETLServer` that overrides `transform` or `transform_stream`.
        encoding: the codec of the text; any in which base64 is ASCII.

    Raises:
        TypeError: `cls` is no such class.
        PayloadError: something that the class uses cannot be pickled; the text names it.
        ValueError: `encoding` is not ASCII-compatible.
        LookupError: `encoding` is not known.
    """
    text = base64.b64encode(_dump(cls).data).decode(encoding)
    if not text.isascii():
        raise ValueError(f"encoding={encoding}: expected one that is ASCII-compatible")
    return text


def deserialize_class(text: str) -> type[ETLServer]:
    """The class that `serialize_class` made `text` of. White space in it does not matter.

    A payload is code, and loading it runs it: load only what you trust.

    Raises:
        PayloadError: it cannot be loaded. The text is one line and says which step failed.
    """
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:
        raise PayloadError(f"base64 decoding failed: {error}") from None
    if not data:
        raise PayloadError("base64 decoding failed: the payload is empty")
    try:
        loaded = pickle.loads(data)  # noqa: S301 - code is what a payload is
    except Exception as error:
        reason = f"{type(error).__name__}: {_one_line(error)}"
        if isinstance(error, ModuleNotFoundError) and error.name:
            reason = f"module {error.name!r} is not installed here"
        raise PayloadError(f"unpickling failed: {reason}") from error
    if not isinstance(loaded, type):
        raise PayloadError(f"the payload is not an ETLServer subclass, it is an object of type {type(loaded).__name__}")
    if not issubclass(loaded, ETLServer) or loaded is ETLServer:
        raise PayloadError(f"the payload's class {loaded.__name__} is not an ETLServer subclass")
    return loaded


def local_modules(cls: type[ETLServer]) -> tuple[str, ...]:
    """The names of the modules that travel by value in the payload of `cls`, sorted.

    Raises:
        TypeError: `cls` is no subclass of `ETLServer` that has a transform.
        PayloadError: something that the class uses cannot be pickled; the text names it.
    """
    return tuple(sorted(_dump(cls).modules))


_WHOLE = "*"
"""In place of an attribute's name: the module is used as an object, so any of its attributes may be needed."""

_lock = threading.RLock()


class _Dump(NamedTuple):
    data: bytes
    modules: set[str]


def _dump(cls: type[ETLServer]) -> _Dump:
    if not isinstance(cls, type) or not issubclass(cls, ETLServer):
        raise TypeError(f"{cls!r} is not an ETLServer subclass")
    if cls.transform is ETLServer.transform and cls.transform_stream is ETLServer.transform_stream:
        raise TypeError(f"{cls.__name__} must override transform() or transform_stream()")
    needs: dict[str, set[str]] = {}
    with _lock, _ByValue() as by_value:
        while True:
            known = sum(map(len, needs.values()))
            buffer = io.BytesIO()
            pickler = _Pickler(buffer, by_value, needs)
            try:
                pickler.dump(cls)
            except Exception as error:
                # What was written last is closest to what went wrong.
                culprits = (f"{name}: " for name, value in reversed(pickler.values) if not _picklable(value, by_value))
                culprit = next(culprits, "")
                raise PayloadError(f"{cls.__name__} cannot be serialized: {culprit}{_one_line(error)}") from error
            # A module is written when it is met first; code that is met later may need more of it.
            if sum(map(len, needs.values())) == known:
                return _Dump(buffer.getvalue(), pickler.modules)


def _picklable(value: object, by_value: _ByValue) -> bool:
    try:
        _Pickler(io.BytesIO(), by_value, {}).dump(value)
    except Exception:
        return False
    return True


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


@dataclasses.dataclass(frozen=True, eq=False)
class _StandIn:
    """A module that travels by value, in the pickler's eyes: an empty module, then its content.

    With it, the references of code that takes known attributes of a module are told from those by which the module
    goes anywhere: the latter are to the module itself.
    """

    module: ModuleType


@dataclasses.dataclass(frozen=True, eq=False)
class _Call:
    """Something that is made by a call when the payload is loaded."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


_LOADED_MODULES = _Call(getattr, (sys, "modules"))
_LOCK_FACTORIES: dict[type, Callable[[], Any]] = {
    type(threading.Lock()): threading.Lock,
    type(threading.RLock()): threading.RLock,
}
_CachedFunction = type(functools.cache(len))
_IMPORT_MACHINERY = {"__builtins__", "__cached__", "__file__", "__loader__", "__path__", "__spec__"}


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """A cloudpickler that takes local modules along as modules.

    cloudpickle alone writes the functions and classes of a registered module by value. A registered module object it
    writes with everything in it, in one piece, apart from its own functions' globals. Here, a module is written with
    what is needed of it, and is the namespace of its functions.

    Args:
        needs: what is needed of each module, by its name; grows while pickling.
    """

    def __init__(self, file: io.BytesIO, by_value: _ByValue, needs: dict[str, set[str]]) -> None:
        super().__init__(file)
        self.modules: set[str] = set()
        """Names of the modules that something was written of by value."""
        self.values: list[tuple[str, Any]] = []
        """What was written of namespaces and classes, each by a name that its author knows."""
        self._by_value = by_value
        self._needs = needs
        self._stand_ins: dict[str, _StandIn] = {}

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, _Call):
            return obj.function, obj.arguments
        if isinstance(obj, _StandIn):
            return self._reduce_stand_in(obj.module)
        if isinstance(obj, FunctionType):
            return self._reduce_function(obj)
        if isinstance(obj, ModuleType) and obj in self._by_value:
            self._need(obj, _WHOLE)
            return operator.getitem, ((self._stand_in(obj),), 0)
        if isinstance(obj, type):
            return self._reduce_class(obj)
        if obj is dataclasses.MISSING:
            return "MISSING"  # compared by identity, which cloudpickle loses
        if type(obj) in _LOCK_FACTORIES:
            return _LOCK_FACTORIES[type(obj)], ()
        if isinstance(obj, (_CachedFunction, NewType)) and not self._found_by_name(obj):
            if isinstance(obj, NewType):
                return NewType, (obj.__name__, obj.__supertype__), vars(obj)
            decorator = _Call(functools.lru_cache, tuple(obj.cache_parameters().values()))
            return operator.methodcaller("__call__", obj.__wrapped__), (decorator,)
        return super().reducer_override(obj)

    def _reduce_class(self, cls: type) -> Any:
        reduced = super().reducer_override(cls)
        if reduced is NotImplemented or len(reduced) == 2:  # by name
            return reduced
        if self._travels(cls.__module__):
            self.modules.add(cls.__module__)
        self._note(f"{cls.__module__}.{cls.__qualname__}", vars(cls))
        # Without its id, which is the last argument but one: by that, loading a payload in the process that made it
        # would overwrite the methods of the class it was made of.
        build, arguments, *rest = reduced
        return build, (*arguments[:-2], None, arguments[-1]), *rest

    def _reduce_function(self, function: FunctionType) -> Any:
        namespace = function.__globals__
        home = sys.modules.get(namespace.get("__name__", ""))
        if isinstance(home, ModuleType) and home.__dict__ is namespace and home in self._by_value:
            self.globals_ref.setdefault(id(namespace), _Call(getattr, (self._stand_in(home), "__dict__")))
        reduced = super().reducer_override(function)
        if reduced is NotImplemented:
            return reduced
        usage = _Usage(function, self._by_value)
        for module, name in usage.attributes:
            self._need(module, name)
        _, slots = reduced[2]
        self._note(function.__module__, slots["__globals__"])
        slots["__globals__"] = {name: self._stand_in(value) for name, value in slots["__globals__"].items()}
        # This list is loaded before the function can run, and dropped. The function's import statements will find their
        # modules, unless others have these names there.
        slots["_cloudpickle_submodules"] = [
            *map(self._stand_in, slots["_cloudpickle_submodules"]),
            *(_Call(dict.setdefault, (_LOADED_MODULES, m.__name__, self._stand_in(m))) for m in usage.imports),
        ]
        return reduced

    def _reduce_stand_in(self, module: ModuleType) -> Any:
        content = vars(module)
        needed = self._needs.get(module.__name__, set())
        names = content.keys() - _IMPORT_MACHINERY if _WHOLE in needed else content.keys() & needed
        written = {name: content[name] for name in sorted(names)}
        self.modules.add(module.__name__)
        self._note(module.__name__, written)
        state = {name: self._stand_in(value) if name in needed else value for name, value in written.items()}
        return ModuleType, (module.__name__,), state | {"__package__": content.get("__package__")}

    def _stand_in(self, value: Any) -> Any:
        """What to write where code refers to `value`, if that is a module that travels by value; else `value`."""
        if not isinstance(value, ModuleType) or value not in self._by_value:
            return value
        return self._stand_ins.setdefault(value.__name__, _StandIn(value))

    def _need(self, module: ModuleType, name: str) -> None:
        known = name == _WHOLE or name in vars(module)
        self._needs.setdefault(module.__name__, set()).add(name if known else "__getattr__")

    def _travels(self, module_name: str) -> bool:
        """Whether what is defined in that module cannot be found by name on the other side."""
        return module_name not in sys.modules or module_name in self._by_value

    def _found_by_name(self, obj: Any) -> bool:
        """Whether the other side finds an object, that says where it is defined, by its name."""
        try:
            found = operator.attrgetter(obj.__qualname__)(sys.modules[obj.__module__])
        except (AttributeError, KeyError):
            return False
        return found is obj and not self._travels(obj.__module__)

    def _note(self, owner: str, values: Mapping[str, Any]) -> None:
        self.values += [
            (f"{owner}.{name}", value)
            for name, value in values.items()
            if not isinstance(value, (FunctionType, ModuleType, type))
        ]


class _Usage:
    """What a function's code does with modules that travel by value; code nested in it included.

    Attributes:
        attributes: a module and the name of an attribute that is taken of it, or `_WHOLE`; repeatedly, if used so.
        imports: modules that the function imports when it runs, with the packages that hold them. They are imported
            here for that; what cannot be imported here is left for the other side to import.
    """

    def __init__(self, function: FunctionType, by_value: _ByValue) -> None:
        self.attributes: list[tuple[ModuleType, str]] = []
        self.imports: dict[ModuleType, None] = {}
        self._namespace = function.__globals__
        self._by_value = by_value
        self._variables: dict[str, set[ModuleType]] = {}  # modules that local variables may be
        known = -1
        # Until nothing more is found: what sets a variable may come after what uses it.
        while (found := sum(map(len, self._variables.values()))) > known:
            known = found
            self._read(function.__code__)

    def _read(self, code: CodeType) -> None:
        """Follow modules from instruction to instruction."""
        top: set[ModuleType] = set()  # what may be on top of the stack
        source: set[ModuleType] = set()  # what an import statement takes names from
        level: Any = 0
        names: Any = None  # with `level`, the two constants before an import statement
        for operation, argument in _operations(code):
            before, top = top, set()
            if operation in ("LOAD_ATTR", "LOAD_METHOD"):
                top = self._take(before, argument)
            elif operation == "IMPORT_FROM":
                for module in source:
                    if argument not in vars(module) and "__path__" in vars(module):
                        self._import(f"{module.__name__}.{argument}", 0)
                top = self._take(source, argument)
                source = source if names else top
                continue
            elif operation in ("STORE_FAST", "STORE_DEREF", "STORE_NAME"):
                self._variables.setdefault(argument, set()).update(before)
                continue
            elif operation not in ("STORE_ATTR", "DELETE_ATTR"):
                self.attributes += [(module, _WHOLE) for module in before]
                if operation == "IMPORT_NAME":
                    modules = self._import(argument, level)
                    source = set(modules[-1:] if names else modules[:1])
                    top = set() if names else source
                    continue
                if operation in ("LOAD_GLOBAL", "LOAD_NAME"):
                    top = self._modules([self._namespace.get(argument)])
                if operation in ("LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"):
                    top |= self._variables.get(argument, set())
                # Since Python 3.13, LOAD_FAST of a cell is a nested function's closure in the making
                if operation.startswith("LOAD_FAST") and argument not in code.co_cellvars + code.co_freevars:
                    top = set(self._variables.get(argument, ()))
            level, names = names, argument
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                self._read(constant)

    def _take(self, modules: set[ModuleType], name: str) -> set[ModuleType]:
        self.attributes += [(module, name) for module in modules]
        return self._modules(vars(module).get(name) for module in modules)

    def _modules(self, values: Iterable[Any]) -> set[ModuleType]:
        return {value for value in values if isinstance(value, ModuleType) and value in self._by_value}

    def _import(self, name: str, level: int) -> list[ModuleType]:
        """The modules that an import statement loads, outermost package first; none if they do not travel by value."""
        try:
            name = importlib.util.resolve_name("." * level + name, self._namespace.get("__package__"))
            if name not in sys.modules and _is_local(name):
                importlib.import_module(name)
                self._by_value.add_local_modules()
        except Exception:
            return []
        modules = [sys.modules[package] for package in _packages(name) if package in self._by_value]
        self.imports.update(dict.fromkeys(modules))
        return modules


def _operations(code: CodeType) -> Iterator[tuple[str, Any]]:
    """The instructions of `code` and their arguments, as far as they matter to what is on top of the stack."""
    for instruction in dis.get_instructions(code):
        operation, argument = instruction.opname, instruction.argval
        if "_FAST_" in operation and isinstance(argument, tuple):  # STORE_FAST_LOAD_FAST and the like, of Python 3.13
            yield from zip(re.findall("LOAD_FAST|STORE_FAST", operation), argument, strict=True)
        elif operation not in ("EXTENDED_ARG", "POP_TOP", "ROT_TWO", "SWAP"):  # "import a.b as c" has the last three
            yield operation, argument


class _ByValue:
    """The modules that travel by value: the local ones, and what the user registered with cloudpickle.

    Within a `with` block, the local ones are registered too.
    """

    def __init__(self) -> None:
        self._names: set[str] = cloudpickle.list_registry_pickle_by_value()
        self._added: list[ModuleType] = []

    def __enter__(self) -> _ByValue:
        self.add_local_modules()
        return self

    def __exit__(self, *_: object) -> None:
        registered = cloudpickle.list_registry_pickle_by_value()
        for module in self._added:
            if module.__name__ in registered:
                cloudpickle.unregister_pickle_by_value(module)

    def add_local_modules(self) -> None:
        """Register every local module that is imported by now."""
        for name, module in list(sys.modules.items()):
            if name in self._names or not isinstance(module, ModuleType) or module.__name__ != name:
                continue
            if _is_local(name):
                cloudpickle.register_pickle_by_value(module)
                self._names.add(name)
                self._added.append(module)

    def __contains__(self, module: ModuleType | str) -> bool:
        name = module if isinstance(module, str) else module.__name__
        return any(package in self._names for package in _packages(name))


def _packages(name: str) -> list[str]:
    """A module's name after those of the packages that hold it, outermost first."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _is_local(name: str) -> bool:
    """Whether a module cannot be expected on the other side: it is neither installed nor part of this package.

    That is so where the outermost package that has a file has it outside the directories that distributions are
    installed in. A compiled module counts as installed, as there is no other way to have it. What is run as
    `__main__` is local wherever it is, because it has that name on this side only.
    """
    if name == "__main__":
        return True
    places = [_place(package) for package in _packages(name)]
    if name.partition(".")[0] == __name__.partition(".")[0] or (places[-1].file or "").endswith(_COMPILED):
        return False
    for depth, place in enumerate(places):
        if place.file:
            return not _is_installed(place.file, depth + (place.path is not None))
    # A namespace package, the one that a module which is not imported yet is in, or something without any file
    place = next((place for place in reversed(places) if place != _NOWHERE), _NOWHERE)
    if place.path is not None:
        return not any(_is_installed(entry, 0) for entry in place.path)
    return place.made_by_hand


_COMPILED = tuple(EXTENSION_SUFFIXES)


class _Place(NamedTuple):
    """Where a module is from."""

    file: str | None = None
    path: list[str] | None = None
    """The directories of a package; None: it is none."""
    made_by_hand: bool = False
    """No import made it; somebody filled a module object."""


_NOWHERE = _Place()


def _place(name: str) -> _Place:
    """Where a module is from; nowhere, if that is not known without importing the package that holds it."""
    module = sys.modules.get(name)
    if module is not None:
        content = getattr(module, "__dict__", {})
        file, path = content.get("__file__"), content.get("__path__")
        return _Place(
            file if isinstance(file, str) else None,
            None if path is None else list(path),
            made_by_hand=content.get("__spec__") is None,
        )
    spec = None if "." in name else importlib.util.find_spec(name)
    if spec is None:
        return _NOWHERE
    return _Place(spec.origin if spec.has_location else None, spec.submodule_search_locations)


@functools.cache
def _is_installed(file: str, depth: int) -> bool:
    """Whether the directory `depth` + 1 levels above a file, or one above that, is one to install distributions in."""
    # Not only resolved: installers may put symbolic links there.
    for path in Path(os.path.abspath(file)), Path(file).resolve():  # noqa: PTH100 - resolves no links
        if not _install_directories().isdisjoint(path.parents) or {"site-packages", "dist-packages"} & {*path.parts}:
            return True
        # pip's --target
        if depth < len(path.parents) and any(path.parents[depth].glob("*.dist-info")):
            return True
    return False


@functools.cache
def _install_directories() -> set[Path]:
    directories = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    directories |= {*site.getsitepackages(), site.getusersitepackages()}
    return {Path(directory) for directory in directories} | {Path(directory).resolve() for directory in directories}
