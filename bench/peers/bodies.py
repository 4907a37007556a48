"""The transforms under test, for peers: mixed into a server class of `aistore`, the one that BENCH_TRANSFORM names."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


class Echo:
    """The object as it came; of a file path, the file."""

    def transform(self, data: bytes | str, path: str, etl_args: str) -> bytes:
        return Path(data).read_bytes() if isinstance(data, str) else data


class Stream:
    """The object as it came, piece by piece."""

    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
        while chunk := reader.read(256 * 1024):
            yield chunk


class Sleep:
    """The object as it came, after 200 ms."""

    def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
        time.sleep(0.2)
        return data


class Zlib:
    """The object compressed."""

    def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
        return zlib.compress(data, 6)


def chosen() -> type:
    """The transform that this process is to serve."""
    return {each.__name__: each for each in (Echo, Stream, Sleep, Zlib)}[os.environ["BENCH_TRANSFORM"]]
