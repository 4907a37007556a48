"""Which objects a job takes, and what their outputs are called: as AIStore's own bucket transform does it."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..errors import ConfigError

Router = Literal["name", "content-hash"]
"""What an output is called after: its source's name, or its own content."""


@dataclass(frozen=True)
class Selection:
    """The objects that a job takes, by name. In a glob, `*` matches any characters, slashes too."""

    prefix: str = ""
    match: Sequence[str] = ()
    """Globs; a name has to match one of them, if there are any."""
    exclude: Sequence[str] = ()
    """Globs; a name must match none of them."""
    _match: re.Pattern[str] | None = field(init=False, repr=False, compare=False)
    _exclude: re.Pattern[str] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_match", _any_of(self.match))
        object.__setattr__(self, "_exclude", _any_of(self.exclude))

    def takes(self, name: str) -> bool:
        """Whether the object is selected."""
        return (
            name.startswith(self.prefix)
            and (self._match is None or self._match.match(name) is not None)
            and (self._exclude is None or self._exclude.match(name) is None)
        )


def _any_of(globs: Sequence[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(f"(?:{fnmatch.translate(glob)})" for glob in globs)) if globs else None


@dataclass(frozen=True)
class Naming:
    """The names of outputs: the extension is mapped, then something is put in front."""

    extensions: dict[str, str] = field(default_factory=dict)
    """From old to new, without dots."""
    prepend: str = ""
    """Put in front as it is: `thumbs/` is a folder, `thumbs-` is not."""
    router: Router = "name"

    def output(self, source: str) -> str:
        """The output's name by plan. Under `content-hash` its extension is not mapped yet: no two sources share one."""
        return self.prepend + (self._mapped(source) if self.router == "name" else source)

    def hashed(self, output: str, digest: str) -> str:
        """The name of an output by the hexadecimal `digest` of its content; `output` is its name by plan."""
        name = self._mapped(output.removeprefix(self.prepend))
        _, dot, extension = name.rpartition("/")[2].rpartition(".")
        return f"{self.prepend}{digest}{dot}{extension if dot else ''}"

    def _mapped(self, source: str) -> str:
        """As in AIStore, the extension is all that comes after the last dot. One that is not mapped stays."""
        stem, dot, extension = source.rpartition(".")
        replacement = self.extensions.get(extension) if dot else None
        return source if replacement is None else f"{stem}.{replacement}"


def parse_extensions(pairs: Iterable[str]) -> dict[str, str]:
    """The map of `old:new` pairs. Leading dots do not matter; several pairs may be in one text, with commas between.

    Raises:
        ConfigError: a text is no such pair, or an extension is mapped twice.
    """
    extensions: dict[str, str] = {}
    for pair in (part for text in pairs for part in text.strip().strip("{}").split(",")):
        old, colon, new = (part.strip() for part in pair.partition(":"))
        old, new = old.lstrip("."), new.lstrip(".")
        if not colon or not old or not new or ":" in new:
            raise ConfigError(f"--ext {pair}: expected old:new, such as jpg:webp")
        if extensions.setdefault(old, new) != new:
            raise ConfigError(f"--ext {pair}: expected one new extension, {old} is mapped to {extensions[old]} as well")
    return extensions
