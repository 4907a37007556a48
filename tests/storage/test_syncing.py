from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from etl_server.errors import ObjectStoreError
from etl_server.storage import LocalObjectStore, Owner, syncing
from etl_server.storage.object_paths import INCOMING
from etl_server.storage.syncing import sync_all


@pytest.fixture
def store(tmp_path: Path) -> LocalObjectStore:
    return LocalObjectStore(tmp_path / "store")


def contents(store: LocalObjectStore) -> dict[str, bytes]:
    return {info.name: store.read_object(info.name) for info in store.list_objects()}


@pytest.mark.parametrize("count", [1, 3, 100])
def test_objects_come_into_being_when_they_are_settled(store: LocalObjectStore, count: int) -> None:
    expected = {f"dir{number % 3}/{number}": b"new" * number for number in range(count)}
    store.put_object("dir0/0", b"old")
    puts = [store.put_unsettled(name, content) for name, content in expected.items()]
    assert contents(store) == {"dir0/0": b"old"}
    assert store.settle(puts) == [None] * count
    assert contents(store) == expected
    assert {info.name: info for info in store.list_objects()} == {put.info.name: put.info for put in puts}


def test_one_that_cannot_be_settled_fails_alone_and_leaves_nothing(store: LocalObjectStore, tmp_path: Path) -> None:
    puts = [store.put_unsettled(name, b"new") for name in ("a", "dir/b", "c", "d", "e", "f")]
    store.put_object("c/below", b"in the way")
    failed = store.settle(puts)
    assert [error is None for error in failed] == [True, True, False, True, True, True]
    assert isinstance(failed[2], ObjectStoreError)
    assert sorted(contents(store)) == ["a", "c/below", "d", "dir/b", "e", "f"]
    assert not list(tmp_path.rglob(f"{INCOMING}*"))


@pytest.mark.parametrize("count", [1, 3, 100])
@pytest.mark.parametrize("directories", [False, True])
def test_what_is_not_on_disk_is_told(
    store: LocalObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, directories: bool
) -> None:
    """Of contents, before they become objects; of directories, which have the names, afterwards."""
    broken = OSError(errno.EIO, os.strerror(errno.EIO))

    def fail(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == directories:
            raise broken

    store.put_object("0", b"old")
    puts = [store.put_unsettled(str(number), b"new") for number in range(count)]
    monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.setattr(syncing, "_sync_file_system", lambda descriptor: None if directories else broken)
    assert store.settle(puts) == [broken] * count
    assert contents(store) == ({put.info.name: b"new" for put in puts} if directories else {"0": b"old"})
    assert not list(tmp_path.rglob(f"{INCOMING}*"))


def test_a_file_that_is_gone_is_a_failure(store: LocalObjectStore, tmp_path: Path) -> None:
    put = store.put_unsettled("a", b"new")
    (tmp_path / "store" / put.incoming).unlink()
    (failed,) = store.settle([put])
    assert isinstance(failed, FileNotFoundError)
    assert contents(store) == {}


def test_a_directory_that_was_moved_or_removed_is_made_again(store: LocalObjectStore, tmp_path: Path) -> None:
    for number in range(2):
        store.settle([store.put_unsettled("dir/a", b"content")])
        (tmp_path / "store" / "dir").rename(tmp_path / f"moved{number}")
    store.settle([store.put_unsettled("dir/b", b"content")])
    assert contents(store) == {"dir/b": b"content"}
    store.delete_object("dir/b")
    store.settle([store.put_unsettled("dir/c", b"content")])
    assert contents(store) == {"dir/c": b"content"}
    assert [file.name for file in (tmp_path / "moved1").iterdir()] == ["a"]


def test_what_is_not_whole_is_removed_by_its_owner(store: LocalObjectStore, tmp_path: Path) -> None:
    mine, other = (Owner(digit * 16, tmp_path / "journal") for digit in "12")
    store.claim(other)
    store.put_unsettled("dir/a", b"content")
    store.claim(mine)
    store.put_unsettled("dir/a", b"content")
    store.put_unsettled("mine/only/b", b"content")
    store.put_object("object", b"content")
    store.clean(mine)
    (left,) = tmp_path.rglob(f"{INCOMING}*")
    assert left.name.startswith(f"{INCOMING}-{other.id}-")
    assert not (tmp_path / "store" / "mine").exists()
    assert contents(store) == {"object": b"content"}


def test_a_file_that_cannot_be_synced_is_told(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        there, missing = sync_all([(directory, "there"), (directory, "missing")])
    finally:
        os.close(directory)
    assert there is None
    assert missing is not None
    assert missing.errno == errno.ENOENT
