from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from etl_server.errors import ConfigError, ObjectStoreError
from etl_server.storage import LocalObjectStore, ObjectStore, open_store
from tests.helpers import no_logs
from tests.testing.odd_names import ODD_NAMES


@pytest.fixture
def store(tmp_path: Path) -> LocalObjectStore:
    return LocalObjectStore(tmp_path / "store")


def read(store: ObjectStore, name: str, start: int = 0, stop: int | None = None) -> bytes:
    with store.open_object(name, start, stop) as stream:
        return stream.read()


def names(store: ObjectStore, prefix: str = "") -> list[str]:
    return sorted(info.name for info in store.list_objects(prefix))


def test_an_object_is_what_was_put(store: LocalObjectStore) -> None:
    info = store.put_object("dir/obj", b"content")
    assert (info.name, info.size) == ("dir/obj", 7)
    assert store.stat_object("dir/obj") == info == next(store.list_objects())
    assert read(store, "dir/obj") == b"content"
    assert store.exists("dir/obj")
    assert not store.exists("dir")
    assert store.put_object("dir/obj", (piece for piece in (b"con", b"tent"))).etag != info.etag


@pytest.mark.parametrize("bounds", [(0, None), (2, 5), (2, None), (5, 99), (99, None), (7, 7), (5, 2), (0, 0)])
def test_a_range_is_a_slice(store: LocalObjectStore, bounds: tuple[int, int | None]) -> None:
    store.put_object("obj", b"content")
    assert read(store, "obj", *bounds) == b"content"[slice(*bounds)]


def test_a_negative_range_is_refused(store: LocalObjectStore) -> None:
    store.put_object("obj", b"content")
    for bounds in ((-1, None), (0, -1)):
        with pytest.raises(ValueError, match="negative"):
            store.open_object("obj", *bounds)


def test_a_missing_object_is_named_by_its_uri(store: LocalObjectStore) -> None:
    for ask in (store.open_object, store.stat_object, store.get_object_size):
        with pytest.raises(FileNotFoundError) as caught:
            ask("not there")
        assert caught.value.filename == store.get_uri("not there")
    store.delete_object("not there")


def test_a_missing_directory_is_not_an_empty_store(store: LocalObjectStore) -> None:
    with pytest.raises(FileNotFoundError, match="store"):
        names(store)


def test_an_iterable_that_fails_leaves_the_old_object(store: LocalObjectStore, tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"part"
        raise OSError("the source broke")

    store.put_object("obj", b"old")
    for name in ("obj", "dir/new"):
        with pytest.raises(OSError, match="the source broke"):
            store.put_object(name, broken())
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "store").iterdir()] == [("obj", b"old")]


def test_a_list_does_not_hold_what_it_lists(store: LocalObjectStore) -> None:
    for number in range(5000):
        (store.root / f"{number % 10}").mkdir(parents=True, exist_ok=True)
        (store.root / f"{number % 10}" / f"object {number}").touch()
    tracemalloc.start()
    try:
        assert sum(1 for _ in store.list_objects()) == 5000
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_deleting_leaves_no_empty_directory_in_another_name_s_way(store: LocalObjectStore) -> None:
    store.put_object("a/b/c", b"1")
    store.delete_object("a/b/c")
    store.put_object("a", b"2")
    assert names(store) == ["a"]


def test_an_object_in_the_way_of_another_is_an_error(store: LocalObjectStore) -> None:
    store.put_object("a/b", b"1")
    for name in ("a", "a/b/c"):
        with pytest.raises(ObjectStoreError, match="no object can be stored"):
            store.put_object(name, b"2")
    assert names(store) == ["a/b"]


def test_a_prefix_is_text_and_not_a_directory(store: LocalObjectStore) -> None:
    for name in ("a", "ab/c", "ab/d/e", "b/ab", "/x", "../y"):
        store.put_object(name, b"")
    assert names(store, "a") == ["a", "ab/c", "ab/d/e"]
    assert names(store, "ab/") == ["ab/c", "ab/d/e"]
    assert names(store, "ab/d") == ["ab/d/e"]
    assert names(store, "/") == ["/x"]
    assert names(store, ".") == ["../y"]
    assert names(store, "zz/") == []


def test_odd_names_are_objects_of_their_own(store: LocalObjectStore, tmp_path: Path) -> None:
    with no_logs():
        for number, name in enumerate(ODD_NAMES):
            goal = tmp_path / str(number)
            goal.mkdir()
            store.put_object(name, name.encode("utf-8", "surrogateescape"))
            assert read(store, name) == name.encode("utf-8", "surrogateescape")
            store.download_object(name, goal)
            assert [path.is_relative_to(goal) for path in goal.rglob("*") if path.is_file()] == [True]
            store.delete_object(name)
        assert list((tmp_path / "store").iterdir()) == []


def test_nothing_is_read_or_written_through_a_link_that_leads_out(store: LocalObjectStore, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"no object")
    store.put_object("obj", b"content")
    (tmp_path / "store" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "store" / "file").symlink_to(tmp_path / "outside" / "file")
    assert names(store) == ["obj"]
    assert names(store, "link/") == []
    for name in ("link/file", "file"):
        assert not store.exists(name)
        store.delete_object(name)
    for name in ("link/new", "link/sub/new", "link/file"):
        with pytest.raises(ObjectStoreError, match="leads out"):
            store.put_object(name, b"x")
        with pytest.raises(ObjectStoreError, match="leads out"):
            LocalObjectStore(tmp_path).download_object("store/obj", _linked(tmp_path))
    assert [path.read_bytes() for path in (tmp_path / "outside").iterdir()] == [b"no object"]


def _linked(tmp_path: Path) -> Path:
    """A directory in which `store` leads out."""
    directory = tmp_path / "goal"
    if not directory.exists():
        directory.mkdir()
        (directory / "store").symlink_to(tmp_path / "outside")
    return directory


def test_an_object_s_own_path_has_no_links_left_and_does_not_lead_out(store: LocalObjectStore, tmp_path: Path) -> None:
    store.put_object("dir/obj", b"content")
    (store.root / "link").symlink_to("dir/obj")
    (tmp_path / "outside").write_text("secret")
    (store.root / "out").symlink_to(tmp_path / "outside")
    assert store.local_path("link") == store.local_path("dir/obj") == str(store.root / "dir" / "obj")
    for name in ("out", "missing", "dir"):
        with pytest.raises(FileNotFoundError):
            store.local_path(name)


@pytest.mark.parametrize("size", [0, 1, 4096, 3_000_000])
def test_all_of_an_object_is_read_at_once(store: LocalObjectStore, size: int) -> None:
    content = os.urandom(size)
    store.put_object("obj", content)
    assert store.read_object("obj") == content


def test_a_file_that_shrinks_while_it_is_read_is_an_error(store: LocalObjectStore, tmp_path: Path) -> None:
    store.put_object("obj", b"x" * (3 << 20))
    with store.open_object("obj") as stream:
        stream.read(1)
        os.truncate(tmp_path / "store" / "obj", 2 << 20)
        with pytest.raises(ObjectStoreError, match="shorter"):
            stream.read()


def test_a_file_goes_up_and_comes_down(store: LocalObjectStore, tmp_path: Path) -> None:
    content = os.urandom((2 << 20) + 5)
    (tmp_path / "up").write_bytes(content)
    told: list[tuple[int, int]] = []
    store.upload_object("obj", tmp_path / "up", lambda done, total: told.append((done, total)))
    assert told == [(1 << 20, len(content)), (2 << 20, len(content)), (len(content), len(content))]
    told.clear()
    store.download_object("obj", tmp_path / "down", callback=lambda done, total: told.append((done, total)))
    assert told[-1] == (len(content), len(content))
    assert (tmp_path / "down").read_bytes() == content


def test_a_download_replaces_a_file_only_if_told_to(store: LocalObjectStore, tmp_path: Path) -> None:
    goal = tmp_path / "goal"
    goal.write_bytes(b"old")
    store.put_object("obj", b"new")
    told: list[int] = []
    with pytest.raises(FileExistsError, match="goal"):
        store.download_object("obj", goal, callback=lambda done, total: told.append(done))
    assert told == []  # nothing was read in vain
    with pytest.raises(FileNotFoundError):
        store.download_object("missing", goal, overwrite=True)
    assert goal.read_bytes() == b"old"
    store.download_object("obj", goal, overwrite=True)
    assert goal.read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["goal", "store"]


def test_a_file_that_appears_during_a_download_is_not_replaced(store: LocalObjectStore, tmp_path: Path) -> None:
    store.put_object("obj", b"new")
    with pytest.raises(FileExistsError, match="goal"):
        store.download_object("obj", tmp_path / "goal", callback=lambda *_: (tmp_path / "goal").write_bytes(b"old"))
    assert (tmp_path / "goal").read_bytes() == b"old"


def test_a_store_is_opened_by_uri_or_path(tmp_path: Path) -> None:
    for uri in ("file://" + str(tmp_path / "a%20b"), str(tmp_path / "a b")):
        store = open_store(uri)
        assert store.get_uri("100% c") == f"file://{tmp_path}/a%20b/100%25%20c"
    assert open_store("file:///").get_uri("a") == "file:///a"


@pytest.mark.parametrize("uri", ["", "gs://bucket", "file://host/dir", "file:///dir?option=1", "://x"])
def test_a_uri_of_no_store_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        open_store(uri)


def test_a_name_is_not_empty(store: LocalObjectStore) -> None:
    for ask in (store.get_uri, store.stat_object, store.open_object, store.delete_object):
        with pytest.raises(ValueError, match="at least one character"):
            ask("")
    with pytest.raises(ValueError, match="at least one character"):
        store.put_object("", b"")


def test_what_a_killed_process_leaves_is_no_object(store: LocalObjectStore, tmp_path: Path) -> None:
    writer = (
        "import os, signal, sys; from etl_server.storage import open_store\n"
        "def pieces():\n"
        "    yield b'part'\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "open_store(sys.argv[1]).put_object('dir/obj', pieces())"
    )
    store.put_object("dir/obj", b"old")
    ended = subprocess.run([sys.executable, "-c", writer, str(tmp_path / "store")], check=False)
    assert ended.returncode == -signal.SIGKILL
    (left,) = (path for path in (tmp_path / "store" / "dir").iterdir() if path.name != "obj")
    assert left.read_bytes() == b"part"
    assert names(store) == ["dir/obj"]
    assert not store.exists(f"dir/{left.name}")
    assert read(store, "dir/obj") == b"old"


def test_a_content_that_is_not_on_disk_is_no_object(
    store: LocalObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that crashes is to leave no name without its content."""
    sync = os.fsync

    def fail(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(descriptor)

    store.put_object("obj", b"old")
    goal = tmp_path / "goal"
    goal.write_bytes(b"new")
    monkeypatch.setattr(os, "fsync", fail)
    for write in (
        lambda: store.put_object("obj", b"new"),
        lambda: store.put_object("obj", iter([b"new"])),
        lambda: store.upload_object("obj", goal),
        lambda: store.download_object("obj", goal, overwrite=True),
    ):
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            write()
    assert store.read_object("obj") == b"old"
    assert goal.read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["goal", "obj", "store"]


def test_names_and_new_directories_are_on_disk_before_a_put_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalObjectStore(tmp_path / "new" / "store")
    synced: list[tuple[str, bool]] = []

    def note(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_dir():
            synced.append((path.relative_to(tmp_path).as_posix(), store.exists("dir/obj")))

    monkeypatch.setattr(os, "fsync", note)
    store.put_object("dir/obj", b"content")
    assert synced == [(".", False), ("new", False), ("new/store", False), ("new/store/dir", True)]
    synced.clear()
    store.delete_object("dir/obj")
    assert synced == [("new/store/dir", False)]


def test_threads_that_share_a_store_put_objects_in_the_directories_of_their_names(
    store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More directories than a store keeps open, and threads that switch often: nothing waits for a disk."""
    names = [f"{number % 300}/{number}" for number in range(4500)]

    def put(name: str) -> None:
        store.put_object(name, name.encode())

    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(12) as threads:
            list(threads.map(put, names))
    finally:
        sys.setswitchinterval(interval)
    assert {info.name: store.read_object(info.name).decode() for info in store.list_objects()} == {
        name: name for name in names
    }
