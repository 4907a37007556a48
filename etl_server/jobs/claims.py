"""Names that outputs are about to get from their content, noted in the journal of the job's owner.

No plan knows such a name. If the run is killed before the ledger does, this is how the next one finds the output.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..storage.uploads import note, notes

_OUTPUT = "output"


def claim(journal: Path, name: str) -> None:
    """From now on there may be an output of this name. Call it only where there was no such object before."""
    note(journal, {_OUTPUT: name})


def claimed(journal: Path) -> Iterator[str]:
    """All names that were claimed."""
    return (noted[_OUTPUT] for noted in notes(journal) if isinstance(noted, dict))
