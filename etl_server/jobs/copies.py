"""Files for transforms that want a path, of objects that are no local files."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..storage import ObjectStore, Owner

LONGEST_EXTENSION = 16
"""Characters of an extension that a copy keeps: libraries go by it."""


class Copies:
    """Copies of objects in a folder of the system's temporary directory, which is there when it is needed."""

    def __init__(self, owner: Owner) -> None:
        """`owner`: who may remove what is left of it when this process is killed: `remove_copies`."""
        self._prefix = _prefix(owner)
        self._folder: Path | None = None
        self._lock = threading.Lock()
        self._numbers = itertools.count()

    @contextmanager
    def copy(self, store: ObjectStore, object_name: str) -> Iterator[Path]:
        """A file with the object's content and its extension, as long as the context lasts. Any thread may call it.

        Raises:
            FileNotFoundError: there is no such object.
        """
        stem, dot, extension = object_name.rpartition("/")[2].rpartition(".")
        kept = dot + extension if stem and extension.isalnum() and len(extension) <= LONGEST_EXTENSION else ""
        file = self._own_folder() / f"{next(self._numbers)}{kept}"
        try:
            store.download_object(object_name, file)
            yield file
        finally:
            file.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the folder."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _own_folder(self) -> Path:
        with self._lock:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix=self._prefix))
            return self._folder


def remove_copies(owner: Owner) -> None:
    """Remove what processes of `owner` on this machine, none of which is alive any more, have left."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_prefix(owner)}*"):
        shutil.rmtree(folder, ignore_errors=True)


def _prefix(owner: Owner) -> str:
    return f"etl-server-{owner.id}-"
