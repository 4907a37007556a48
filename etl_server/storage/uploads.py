"""A journal of uploads in parts, so that those of processes that were killed can be found."""

from __future__ import annotations

import json
import os
from pathlib import Path


class UploadJournal:
    """Uploads that have begun and not ended, in a file that several processes append to."""

    def __init__(self, path: Path) -> None:
        """`path`: the file, which comes into being with the first upload."""
        self._path = path

    def begun(self, key: str, upload: str) -> None:
        """An upload has begun."""
        self._append([upload, key])

    def ended(self, upload: str) -> None:
        """It was completed or aborted."""
        self._append([upload])

    def open_uploads(self) -> list[tuple[str, str]]:
        """Keys and upload ids of those that have not ended."""
        uploads: dict[str, str] = {}
        try:
            lines = self._path.read_text().splitlines()
        except FileNotFoundError:
            return []
        for line in lines:
            try:
                upload, *key = json.loads(line)
            except ValueError:  # the disk was full; the upload did not go on
                continue
            if key:
                uploads[upload] = key[0]
            else:
                uploads.pop(upload, None)
        return [(key, upload) for upload, key in uploads.items()]

    def remove(self) -> None:
        """There is nothing to be noted any more."""
        self._path.unlink(missing_ok=True)

    def _append(self, line: list[str]) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            # A line feed before it, too: what a full disk has cut off ends there.
            os.write(descriptor, f"\n{json.dumps(line)}\n".encode())
        finally:
            os.close(descriptor)
