"""A journal of uploads in parts, so that those of processes that were killed can be found."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path


class UploadJournal:
    """Uploads that have begun and not ended, in a file that several processes append to. Lists are what it knows."""

    def __init__(self, path: Path) -> None:
        """`path`: the file, which comes into being with the first upload."""
        self._path = path

    def begun(self, key: str, upload: str) -> None:
        """An upload has begun."""
        note(self._path, [upload, key])

    def ended(self, upload: str) -> None:
        """It was completed or aborted."""
        note(self._path, [upload])

    def open_uploads(self) -> list[tuple[str, str]]:
        """Keys and upload ids of those that have not ended."""
        uploads: dict[str, str] = {}
        for noted in notes(self._path):
            if not isinstance(noted, list):
                continue
            upload, *key = noted
            if key:
                uploads[upload] = key[0]
            else:
                uploads.pop(upload, None)
        return [(key, upload) for upload, key in uploads.items()]

    def remove(self) -> None:
        """There is nothing to be noted any more."""
        self._path.unlink(missing_ok=True)


def note(journal: Path, value: object) -> None:
    """Append a line of JSON to a file, which several processes append to.

    Raises:
        OSError: it is not there, or not all of it.
    """
    descriptor = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        # A line feed before it, too: what a full disk has cut off ends there.
        line = f"\n{json.dumps(value)}\n".encode()
        if os.write(descriptor, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(journal))
    finally:
        os.close(descriptor)


def notes(journal: Path) -> Iterator[object]:
    """All that `note` has appended; nothing where there is no such file."""
    try:
        file = journal.open(encoding="utf-8")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            try:
                yield json.loads(line)
            except ValueError:  # the disk was full; whoever wanted to note it did not go on
                continue
