from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from etl_server.storage.files import FileTree


def names(files: FileTree) -> list[str]:
    return sorted(name for name, _ in files.scan())


def test_an_object_is_there_as_a_whole_from_its_commit_on(tmp_path: Path) -> None:
    files = FileTree(tmp_path)
    with files.create("dir/obj") as incoming:
        incoming.write(b"first ")
        incoming.write(b"second")
        assert names(files) == []
        incoming.commit()
        assert files.path("dir/obj").read_bytes() == b"first second"
    assert names(files) == ["dir/obj"]


def test_what_fails_leaves_nothing_not_even_a_directory(tmp_path: Path) -> None:
    files = FileTree(tmp_path)
    with pytest.raises(TypeError), files.create("dir/sub/obj") as incoming:
        incoming.write("no bytes")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_the_directory_of_an_unfinished_object_stays_while_it_is_used(tmp_path: Path) -> None:
    files = FileTree(tmp_path)
    with files.create("dir/obj") as incoming:
        files.prune("dir/other")
        incoming.write(b"content")
        incoming.commit()
    assert names(files) == ["dir/obj"]


def test_a_bucket_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "obj").write_bytes(b"content")
    (tmp_path / "link").symlink_to("real")
    files = FileTree(tmp_path / "link")
    assert names(files) == ["obj"]
    with files.open("obj") as file:
        assert file.read() == b"content"


@pytest.mark.parametrize("call", ["dup", "unlink"])
def test_the_descriptor_of_a_directory_is_no_others_while_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """As if other threads entered so many directories just before the call that none is kept of those before."""
    files = FileTree(tmp_path)
    real = getattr(os, call)

    def late(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(os, call, real)
        for number in range(65):
            files.write(f"other{number}/obj", b"")
        return real(*args, **kwargs)

    monkeypatch.setattr(os, call, late)
    if call == "dup":
        with files.create("mine/obj") as incoming:
            incoming.commit()
        assert names(files) == ["mine/obj"]
    else:
        with pytest.raises(TypeError):
            files.write("mine/obj", "no bytes")  # type: ignore[arg-type]
        assert not (tmp_path / "mine").exists()
    assert len(list(tmp_path.iterdir())) == 65 + (call == "dup")
