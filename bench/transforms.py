"""The transforms under test, as a user of etl_server writes them. `bench/peers/bodies.py` has the same for peers."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from etl_server import ETLServer


class Echo(ETLServer):
    """The object as it came; of a file path, the file."""

    def transform(self, data: bytes | str, path: str, etl_args: str) -> bytes:
        return Path(data).read_bytes() if isinstance(data, str) else data


class Stream(ETLServer):
    """The object as it came, piece by piece."""

    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
        while chunk := reader.read(256 * 1024):
            yield chunk


class Sleep(ETLServer):
    """The object as it came, after 200 ms."""

    def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
        time.sleep(0.2)
        return data


class Zlib(ETLServer):
    """The object compressed."""

    def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
        return zlib.compress(data, 6)
