"""Object names as relative file paths, and back: one to one, and never out of the directory that they are below.

A name's segments are its file's path components. A segment that cannot be one, or may not, gets a `%` in front:
an empty one, `.`, `..`, and what begins with `INCOMING`. So does a segment that already is such a one with `%` before
it, which keeps the mapping reversible. Every other name, also one that holds a `%`, is its own path.
"""

from __future__ import annotations

import re

INCOMING = ".etl-server-incoming"
"""What the names of files that are not whole yet begin with; no object's file has such a name."""

_ESCAPE = "%"
_RELATIVE = frozenset(("", ".", ".."))
_UNLIKE_A_PATH = re.compile(rf"(?:\A|/){_ESCAPE}*(?:\.{{0,2}}(?:/|\Z)|{re.escape(INCOMING)})")
"""Finds a segment that is not the same in names and paths: few have one, and to look at each segment takes longer."""


def object_path(name: str) -> str:
    """The relative path, with slashes, of the object's file.

    Raises:
        ValueError: the name has a NUL character, which no file name can hold.
    """
    if "\0" in name:
        raise ValueError("an object's name cannot hold a NUL character")
    if _UNLIKE_A_PATH.search(name) is None:
        return name
    return "/".join(_ESCAPE + segment if _is_escaped(segment) else segment for segment in name.split("/"))


def object_name(path: str) -> str:
    """The name of the object whose file has this relative path: the inverse of `object_path`.

    Raises:
        ValueError: no object has this path.
    """
    if _UNLIKE_A_PATH.search(path) is None:
        return path
    components = path.split("/")
    if any(_is_reserved(component) for component in components):
        raise ValueError(f"{path!r} is no object's path")
    return "/".join(component[1:] if _is_escaped(component) else component for component in components)


def _is_escaped(segment: str) -> bool:
    return _is_reserved(segment.lstrip(_ESCAPE))


def _is_reserved(component: str) -> bool:
    return component in _RELATIVE or component.startswith(INCOMING)
