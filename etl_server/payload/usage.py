"""What a function's code does with the modules that travel by value, read from its instructions."""

from __future__ import annotations

import dis
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

from .local import ByValue, is_local, packages_of

WHOLE = "*"
"""In place of an attribute's name: the module is used as an object, so any of its attributes may be needed."""


class Usage:
    """What a function's code does with modules that travel by value; code nested in it included.

    Attributes:
        attributes: a module and the name of an attribute that is taken of it, or `WHOLE`; repeatedly, if used so.
        imports: modules that the function imports when it runs, with the packages that hold them. They are imported
            here for that; what cannot be imported here is left for the other side to import.
        installed: names of the modules that it imports and that are installed here.
    """

    def __init__(self, function: FunctionType, by_value: ByValue) -> None:
        self.attributes: list[tuple[ModuleType, str]] = []
        self.imports: dict[ModuleType, None] = {}
        self.installed: set[str] = set()
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
                self.attributes += [(module, WHOLE) for module in before]
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
            if name not in sys.modules and is_local(name):
                importlib.import_module(name)
                self._by_value.add_local_modules()
        except Exception:
            return []
        if name not in self._by_value:
            self.installed.add(name)
        modules = [sys.modules[package] for package in packages_of(name) if package in self._by_value]
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
