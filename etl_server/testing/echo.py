"""Transforms that leave objects as they are: the second stage of a pipeline, and a first thing to serve."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from etl_server.server import ETLServer

PIECE = 64 * 1024


class Echo(ETLServer):
    """Returns the object; under `ETL_DIRECT_FQN` it reads the file that it is given."""

    def transform(self, data: bytes | str, path: str, etl_args: str) -> bytes:
        return Path(data).read_bytes() if isinstance(data, str) else data


class EchoStream(ETLServer):
    """Passes the object on in pieces of at most 64 KiB."""

    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
        while piece := reader.read(PIECE):
            yield piece
