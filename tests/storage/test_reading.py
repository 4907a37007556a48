"""Streams over a network, read to their end."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from etl_server.errors import ObjectStoreTransientError
from etl_server.storage.files import FileSlice
from etl_server.storage.reading import ResumingReader
from etl_server.storage.retry import RetryPolicy

CONTENT = bytes(range(256)) * 4000


class Body(io.BytesIO):
    """Notes how much is asked for, and is cut off after some bytes."""

    def __init__(self, content: bytes, asked: list[int | None], cut: int | None) -> None:
        super().__init__(content)
        self._asked = asked
        self._cut = cut

    def read(self, size: int | None = -1) -> bytes:
        self._asked.append(size)
        if self._cut is None:
            return super().read(size)
        if self.tell() >= self._cut:
            raise ObjectStoreTransientError("cut off")
        return super().read(self._cut - self.tell())


def opener(asked: list[int | None], cut: int | None = None) -> Callable[[int], Body]:
    return lambda position: Body(CONTENT[position:], asked, cut)


def test_all_that_is_left_is_asked_for_in_one_go_and_not_copied() -> None:
    asked: list[int | None] = []
    body = Body(CONTENT, asked, None)
    with io.BufferedReader(ResumingReader(opener(asked), 0, len(CONTENT), RetryPolicy(), body)) as stream:
        assert stream.read() is CONTENT
        assert stream.read() == b""
        assert asked == [len(CONTENT)]
        stream.seek(1000)
        assert stream.read() == CONTENT[1000:]


def test_it_is_put_together_where_the_connection_is_cut() -> None:
    asked: list[int | None] = []
    reader = ResumingReader(opener(asked, 300_000), 0, len(CONTENT), RetryPolicy(first_wait=0))
    assert reader.read() == CONTENT
    assert asked == [1_024_000, 724_000, 724_000, 424_000, 424_000, 124_000, 124_000]


def test_a_file_is_read_to_its_end_and_no_further(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    with path.open("rb") as file, FileSlice(file, 100, 500_000) as part:
        part.seek(10)
        assert part.read() == CONTENT[110:500_000]
        assert part.read() == b""
