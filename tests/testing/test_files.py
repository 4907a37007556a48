from __future__ import annotations

from pathlib import Path

from etl_server.testing.files import BucketFiles


def test_an_object_is_there_as_a_whole_from_its_commit_on(tmp_path: Path) -> None:
    files = BucketFiles(tmp_path)
    with files.create("obj") as upload:
        upload.write(b"first ")
        upload.write(b"second")
        assert files.names() == []
        upload.commit()
        assert files.path("obj").read_bytes() == b"first second"
    assert files.names() == ["obj"]


def test_an_upload_that_is_not_committed_leaves_nothing(tmp_path: Path) -> None:
    files = BucketFiles(tmp_path)
    with files.create("obj") as upload:
        upload.write(b"part")
    files.remove_incoming()
    assert list(tmp_path.iterdir()) == []


def test_the_directory_of_unfinished_objects_stays_while_it_is_used(tmp_path: Path) -> None:
    files = BucketFiles(tmp_path)
    with files.create("obj") as upload:
        files.remove_incoming()
        upload.write(b"content")
        upload.commit()
    assert files.names() == ["obj"]


def test_a_bucket_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "obj").write_bytes(b"content")
    (tmp_path / "link").symlink_to("real")
    files = BucketFiles(tmp_path / "link")
    assert files.names() == ["obj"]
    with files.open("obj") as file:
        assert file.read() == b"content"
