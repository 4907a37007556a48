"""Find the user's class by what a command line says: `FILE_OR_MODULE[:Class]`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from .errors import ClassLoadError
from .server import ETLServer


def load_class(spec: str) -> type[ETLServer]:
    """The `ETLServer` subclass that `spec` names.

    Args:
        spec: a Python file or a dotted module, then, unless it holds one class only, a colon and the class's name.
            A file's folder becomes importable, as it does when Python runs the file.

    Raises:
        ClassLoadError: there is no such file, module or class, it cannot be imported, or there are several classes.
    """
    location, _, name = spec.partition(":")
    is_file = location.endswith(".py") or Path(location).is_file()
    module = _load_file(Path(location)) if is_file else _load_module(location)
    if name:
        found = getattr(module, name, None)
        if found is None:
            raise ClassLoadError(f"{location} has no class {name}; it has: {_listed(_classes(module))}")
        if not (isinstance(found, type) and issubclass(found, ETLServer)):
            raise ClassLoadError(f"{spec} is not a subclass of ETLServer")
        return found
    classes = _classes(module)
    if len(classes) != 1:
        what = "no subclass of ETLServer" if not classes else f"several classes ({_listed(classes)})"
        raise ClassLoadError(f"{location} has {what}, expected one, or {location}:Class")
    return classes[0]


def make_server(spec: str) -> ETLServer:
    """An instance of the class that `spec` names, as for `load_class`."""
    return load_class(spec)()


def _classes(module: ModuleType) -> list[type[ETLServer]]:
    """The transforms that a module defines; not those that serve others as a base."""
    defined = dict.fromkeys(
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, ETLServer) and value.__module__ == module.__name__
    )
    return [cls for cls in defined if not any(cls in other.__mro__[1:] for other in defined)]


def _listed(classes: list[type[ETLServer]]) -> str:
    return ", ".join(cls.__name__ for cls in classes) or "none"


def _load_file(path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise ClassLoadError(f"{path}: no such file")
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = path.stem if path.stem.isidentifier() else f"etl_{abs(hash(path.stem))}"
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        return loaded
    if loaded is not None or name in sys.stdlib_module_names:
        name = f"etl_class_{name}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ClassLoadError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ClassLoadError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _load_module(name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise ClassLoadError(f"{name} cannot be imported: {type(error).__name__}: {error}") from error
