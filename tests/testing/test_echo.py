from __future__ import annotations

import io
from pathlib import Path

from etl_server.testing import Echo, EchoStream


def test_echo_returns_what_it_is_given() -> None:
    assert Echo().transform(b"as it is", "src/obj", "") == b"as it is"


def test_echo_reads_the_file_that_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "obj").write_bytes(b"from the file")
    assert Echo().transform(str(tmp_path / "obj"), "src/obj", "") == b"from the file"


def test_echo_stream_passes_on_pieces_of_at_most_64_kib() -> None:
    data = bytes(range(256)) * 1000
    pieces = list(EchoStream().transform_stream(io.BytesIO(data), "src/obj", ""))
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) == 64 * 1024


def test_echo_stream_begins_before_the_input_has_ended() -> None:
    reader = io.BytesIO(bytes(200_000))
    next(iter(EchoStream().transform_stream(reader, "src/obj", "")))
    assert reader.tell() == 64 * 1024
