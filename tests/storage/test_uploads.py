from __future__ import annotations

import errno
import resource
from pathlib import Path

import pytest

from etl_server.storage.uploads import UploadJournal


def test_a_note_that_does_not_fit_is_an_error_and_spoils_no_other(tmp_path: Path) -> None:
    """A limit of a file's size cuts a write short, as a full disk does."""
    path = tmp_path / "journal"
    journal = UploadJournal(path)
    journal.begun("key", "first")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, hard))
    try:
        with pytest.raises(OSError, match="No space left") as raised:
            journal.begun("key", "second")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(path))
    journal.begun("key", "third")
    assert journal.open_uploads() == [("key", "first"), ("key", "third")]
