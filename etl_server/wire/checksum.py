"""Checksums by AIStore's names, as they stand in `ais-checksum-type` and `ais-checksum-value`."""

from __future__ import annotations

import hashlib
from typing import Any, Literal, Protocol, get_args

ChecksumType = Literal["xxhash2", "md5", "crc32c", "sha256", "sha512"]
CHECKSUM_TYPES: tuple[ChecksumType, ...] = get_args(ChecksumType)

CHECKSUM_TYPE_HEADER = "ais-checksum-type"
CHECKSUM_VALUE_HEADER = "ais-checksum-value"


class Checksum(Protocol):
    """A running checksum."""

    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


class _Crc32c:
    def __init__(self) -> None:
        import google_crc32c

        self._checksum: Any = google_crc32c.Checksum()  # type: ignore[no-untyped-call]

    def update(self, data: bytes, /) -> None:
        self._checksum.update(data)

    def hexdigest(self) -> str:
        return str(self._checksum.digest().hex())


def new_checksum(name: ChecksumType) -> Checksum:
    """A running checksum of AIStore's type `name`. `xxhash2` is XXH64 with seed 0; values are lower-case hex."""
    if name == "xxhash2":
        import xxhash

        return xxhash.xxh64()
    if name == "crc32c":
        return _Crc32c()
    return hashlib.new(name, usedforsecurity=False)


def checksum_of(name: ChecksumType, data: bytes) -> str:
    """The checksum of `data`, in hex."""
    checksum = new_checksum(name)
    checksum.update(data)
    return checksum.hexdigest()
