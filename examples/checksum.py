"""The checksum of an object, in hexadecimal. `etl_args`: the name of a hash, such as `md5`; default `sha256`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import BinaryIO

from etl_server import ETLServer

PIECE = 256 * 1024
"""Bytes that are hashed at a time."""

ALGORITHMS = sorted(name for name in hashlib.algorithms_guaranteed if not name.startswith("shake_"))
"""The hashes of every Python, without those whose digest has no fixed length."""


class Checksum(ETLServer):
    """Turns an object of any size into its checksum: much goes in, one line comes out."""

    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
        name = etl_args or "sha256"
        if name not in ALGORITHMS:
            raise ValueError(f"etl_args={name!r}: expected one of {', '.join(ALGORITHMS)}")
        digest = hashlib.new(name, usedforsecurity=False)
        while piece := reader.read(PIECE):
            digest.update(piece)
        yield digest.hexdigest().encode()

    def get_mime_type(self) -> str:
        return "text/plain"
