"""A transform class as text: base64 of a cloudpickle of the class and nothing else."""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import operator
import sys
import threading
from collections.abc import Callable, Mapping
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, NamedTuple, NewType

import cloudpickle  # type: ignore[import-untyped]

from ..errors import PayloadError, one_line
from ..server import ETLServer
from .local import ByValue
from .usage import WHOLE, Usage


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
    text = base64.b64encode(dump(cls).data).decode(encoding)
    if not text.isascii():
        raise ValueError(f"encoding={encoding}: expected one that is ASCII-compatible")
    return text


def local_modules(cls: type[ETLServer]) -> tuple[str, ...]:
    """The names of the modules that travel by value in the payload of `cls`, sorted.

    Raises:
        TypeError: `cls` is no subclass of `ETLServer` that has a transform.
        PayloadError: something that the class uses cannot be pickled; the text names it.
    """
    return tuple(sorted(dump(cls).modules))


_lock = threading.RLock()


class Dump(NamedTuple):
    """A pickled class, and what it consists of."""

    data: bytes
    modules: set[str]
    """Names of the local modules that it has by value."""
    installed: set[str]
    """Names of the top-level modules that it has by name, so that the other side needs them."""


def dump(cls: type[ETLServer]) -> Dump:
    """Pickle a transform class together with the local modules that it uses.

    Raises:
        TypeError: `cls` is no subclass of `ETLServer` that has a transform.
        PayloadError: something that the class uses cannot be pickled; the text names it.
    """
    if not isinstance(cls, type) or not issubclass(cls, ETLServer):
        raise TypeError(f"{cls!r} is not an ETLServer subclass")
    if cls.transform is ETLServer.transform and cls.transform_stream is ETLServer.transform_stream:
        raise TypeError(f"{cls.__name__} must override transform() or transform_stream()")
    needs: dict[str, set[str]] = {}
    with _lock, ByValue() as by_value:
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
                raise PayloadError(f"{cls.__name__} cannot be serialized: {culprit}{one_line(error)}") from error
            # A module is written when it is met first; code that is met later may need more of it.
            if sum(map(len, needs.values())) == known:
                return Dump(buffer.getvalue(), pickler.modules, pickler.installed)


def _picklable(value: object, by_value: ByValue) -> bool:
    try:
        _Pickler(io.BytesIO(), by_value, {}).dump(value)
    except Exception:
        return False
    return True


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

    def __init__(self, file: io.BytesIO, by_value: ByValue, needs: dict[str, set[str]]) -> None:
        super().__init__(file)
        self.modules: set[str] = set()
        """Names of the modules that something was written of by value."""
        self.installed: set[str] = set()
        """Names of the top-level modules that something was written of by name."""
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
            self._need(obj, WHOLE)
            return operator.getitem, ((self._stand_in(obj),), 0)
        if isinstance(obj, ModuleType):
            self._note_installed(obj.__name__)
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
        self._note_installed(obj.__module__ if isinstance(obj, BuiltinFunctionType) else type(obj).__module__)
        return super().reducer_override(obj)

    def _reduce_class(self, cls: type) -> Any:
        reduced = super().reducer_override(cls)
        if reduced is NotImplemented or len(reduced) == 2:  # by name
            self._note_installed(cls.__module__)
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
            self._note_installed(function.__module__)
            return reduced
        usage = Usage(function, self._by_value)
        self.installed |= {name.partition(".")[0] for name in usage.installed}
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
        names = content.keys() - _IMPORT_MACHINERY if WHOLE in needed else content.keys() & needed
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
        known = name == WHOLE or name in vars(module)
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

    def _note_installed(self, module_name: str) -> None:
        """Note a module that something is found in by name."""
        if not self._travels(module_name):
            self.installed.add(module_name.partition(".")[0])

    def _note(self, owner: str, values: Mapping[str, Any]) -> None:
        self.values += [
            (f"{owner}.{name}", value)
            for name, value in values.items()
            if not isinstance(value, (FunctionType, ModuleType, type))
        ]
