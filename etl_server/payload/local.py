"""Which modules are local: the other side cannot be expected to have them, so they travel by value."""

from __future__ import annotations

import functools
import importlib.util
import os
import site
import sys
import sysconfig
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import cloudpickle  # type: ignore[import-untyped]


class ByValue:
    """The modules that travel by value: the local ones, and what the user registered with cloudpickle.

    Within a `with` block, the local ones are registered too.
    """

    def __init__(self) -> None:
        self._names: set[str] = cloudpickle.list_registry_pickle_by_value()
        self._added: list[ModuleType] = []

    def __enter__(self) -> ByValue:
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
            if is_local(name):
                cloudpickle.register_pickle_by_value(module)
                self._names.add(name)
                self._added.append(module)

    def __contains__(self, module: ModuleType | str) -> bool:
        name = module if isinstance(module, str) else module.__name__
        return any(package in self._names for package in packages_of(name))


def packages_of(name: str) -> list[str]:
    """A module's name after those of the packages that hold it, outermost first."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def is_local(name: str) -> bool:
    """Whether a module cannot be expected on the other side: it is neither installed nor part of this package.

    That is so where the outermost package that has a file has it outside the directories that distributions are
    installed in. A compiled module counts as installed, as there is no other way to have it. What is run as
    `__main__` is local wherever it is, because it has that name on this side only.
    """
    if name == "__main__":
        return True
    places = [_place(package) for package in packages_of(name)]
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
