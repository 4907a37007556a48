"""What the `ais` commands share: options, the client, and how things are shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from ...errors import ConfigError

if TYPE_CHECKING:
    from ...control import AIStoreClient

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The ETL's name.")]
UrlOption = Annotated[
    str | None, typer.Option("--url", help="The cluster's proxy, such as http://proxy:51080.  [AIS_ENDPOINT]")
]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs: one JSON object a line.")]

FAILED = 1

T = TypeVar("T")


def connect(url: str | None) -> AIStoreClient:
    """A client of the cluster that `--url` or `AIS_ENDPOINT` names.

    Raises:
        ConfigError: none does, or what they name is no URL.
    """
    from ...config import Settings, check_endpoint
    from ...control import AIStoreClient

    settings = Settings.load()
    if url is not None:
        url = checked("--url", url, lambda text: _or_value(check_endpoint, text))
    elif not settings.ais_endpoint:
        raise ConfigError("--url, or AIS_ENDPOINT: expected the cluster's proxy, such as http://proxy:51080")
    return AIStoreClient(url or "", settings)


def checked(option: str, value: str, parse: Callable[[str], T]) -> T:
    """What `parse` makes of an option's value.

    Raises:
        ConfigError: it raised ValueError, whose text has the value and what was expected.
    """
    try:
        return parse(value)
    except ValueError as error:
        raise ConfigError(f"{option} {error}") from None


@contextmanager
def usage_errors() -> Iterator[None]:
    """A ValueError within is a mistake in the command's usage."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error)) from None


def check_name(name: str) -> str:
    """The name of an ETL.

    Raises:
        ConfigError: AIStore takes no such name.
    """
    from ...wire.names import check_etl_name

    with usage_errors():
        check_etl_name(name)
    return name


def tell(text: str) -> None:
    """Say something about what goes on, on stderr."""
    print(text, file=sys.stderr, flush=True)


def show_json(value: Any) -> None:
    """Print a dataclass, or something that is JSON already, on one line."""
    print(json.dumps(asdict(value) if hasattr(value, "__dataclass_fields__") else value), flush=True)


def show_rows(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table on a terminal; where output goes elsewhere, a line a row with tabs between the cells."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    if not console.is_terminal:
        for row in cells:
            print(*(" ".join(cell.split()) for cell in row), sep="\t")
        return
    from rich.text import Text

    table = Table(*titles)
    for row in cells:
        table.add_row(*map(Text, row))
    console.print(table)


def _or_value(check: Callable[[str], T], text: str) -> T:
    try:
        return check(text)
    except ValueError as error:
        raise ValueError(f"{text!r}: expected {error}") from None
