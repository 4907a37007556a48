"""What a job is to do: the objects of its source, the names of their outputs, and what the ledger knows of both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote

from ..errors import JobError
from ..storage import LocalObjectStore, ObjectInfo, ObjectStore
from .ledger import Ledger, Planned
from .naming import Naming, Router, Selection

COLLISIONS_SHOWN = 5
LOOKUPS = 16
"""Objects of a list that are looked up at once."""


def identity(info: ObjectInfo) -> str:
    """What an object is: text that is another one when its content is."""
    if info.etag is not None:
        return info.etag
    return f"{info.size} {info.modified.timestamp() if info.modified else ''}"


def output_identity(info: ObjectInfo, router: Router) -> str:
    """What an output is. One that is called after its content may be written by several sources, each time anew."""
    return identity(info) if router == "name" else str(info.size)


def plan_objects(
    ledger: Ledger, source: ObjectStore, selection: Selection, naming: Naming, names: Iterable[str] | None
) -> None:
    """Put the objects of the source into the ledger's plan.

    Args:
        names: the objects; None: all that the source lists. One that is not there is planned, and will fail.

    Raises:
        JobError: two sources would write one output.
        FileNotFoundError: there is no such bucket or directory.
    """
    objects = source.list_objects(selection.prefix) if names is None else _look_up(source, names, selection)
    ledger.plan(
        Planned(info.name, naming.output(info.name), info.size, identity(info), selection.takes(info.name))
        for info in objects
    )
    if naming.router == "name":
        collisions = ledger.collisions(COLLISIONS_SHOWN)
        if collisions:
            told = "; ".join(f"{first} and {second} would both be {output}" for output, first, second in collisions)
            raise JobError(f"two sources would write one output: {told}")


def note_outputs(ledger: Ledger, sink: ObjectStore, naming: Naming) -> None:
    """Tell the ledger what is in the sink, so that an output which is gone or changed is made again.

    Raises:
        JobError: there is no such bucket.
    """
    try:
        ledger.note_present(
            (info.name, output_identity(info, naming.router)) for info in sink.list_objects(naming.prepend)
        )
    except FileNotFoundError as error:
        if not isinstance(sink, LocalObjectStore):  # a directory comes into being with the first output
            raise JobError(f"{_base(sink)}: there is no such place for outputs: {error}") from None


def check_apart(source: ObjectStore, sink: ObjectStore, ledger: Ledger, selection: Selection, naming: Naming) -> None:
    """Raise JobError where outputs would be written over selected sources, or be taken for sources by the next run."""
    source_base, sink_base = _base(source), _base(sink)
    if not (source_base.startswith(sink_base) or sink_base.startswith(source_base)):
        return
    for output in ledger.outputs():
        if naming.router == "content-hash":
            output = naming.hashed(output, "0" * 64)
        full = sink_base + output
        if full.startswith(source_base) and selection.takes(full.removeprefix(source_base)):
            raise JobError(
                f"{sink_base}: the output {output} would be one of the job's own sources;"
                " expected another place, or --match, --exclude and --ext that tell them apart"
            )


def _base(store: ObjectStore) -> str:
    """What all names of a store begin with, however the store is spelled."""
    if isinstance(store, LocalObjectStore):
        return str(store.root).rstrip("/") + "/"
    return unquote(store.get_uri("x"), errors="surrogateescape").removesuffix("x")


def _look_up(source: ObjectStore, names: Iterable[str], selection: Selection) -> Iterator[ObjectInfo]:
    def look_up(name: str) -> ObjectInfo:
        try:
            return source.stat_object(name)
        except (FileNotFoundError, ValueError):  # the store cannot even have an object of this name
            return ObjectInfo(name, 0, "missing", None)

    chosen = (name for name in names if name and selection.takes(name))
    with ThreadPoolExecutor(LOOKUPS) as pool:
        batch: list[str] = []
        for name in chosen:
            batch.append(name)
            if len(batch) == 64 * LOOKUPS:
                yield from pool.map(look_up, batch)
                batch.clear()
        yield from pool.map(look_up, batch)
