"""The parts of objects: S3 takes 10,000 of them for one, whatever its size."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from ..errors import ObjectStoreError

PART_SIZE = 8 << 20
"""Bytes of a part, where nothing calls for more."""
MOST_PARTS = 10_000
"""Parts that S3 takes of one object."""
LARGEST_OBJECT = 5 << 40
"""Bytes that all `MOST_PARTS` parts of a stream hold at least."""
LARGEST_PART = 5 << 30
"""Bytes that S3 takes as one part, or copies in one go."""


def part_size_of(size: int, least: int) -> int:
    """Bytes of the parts of an object of `size` bytes: `least`, or as many as it takes to need no part too many."""
    return max(least, -(-size // MOST_PARTS))


def growing_sizes(first: int, largest: int = LARGEST_OBJECT) -> Iterator[int]:
    """The sizes of the parts of a stream, whose end nobody knows: `MOST_PARTS` of them, which hold `largest` bytes.

    Each is larger than the one before by the same number of bytes: of `PART_SIZE` first, the 76th has twice as many.
    """
    growth = max(0, -(-2 * (largest - first * MOST_PARTS) // (MOST_PARTS * (MOST_PARTS - 1))))
    return (first + growth * number for number in range(MOST_PARTS))


def etag_of_parts(etags: Iterable[str]) -> str | None:
    """The ETag that S3 gives to an object made of parts that have these: None where those are no MD5s."""
    try:
        digests = [bytes.fromhex(etag.strip('"')) for etag in etags]
    except ValueError:
        return None
    if any(len(digest) != 16 for digest in digests):
        return None
    return f"{hashlib.md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(digests)}"


class PartCutter:
    """Makes parts of a multipart upload, the first of `part_size` bytes, of pieces of any size."""

    def __init__(self, part_size: int, largest: int = LARGEST_OBJECT) -> None:
        self._sizes = growing_sizes(part_size, largest)
        self._wanted = next(self._sizes)
        self._part = bytearray()

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The parts that this piece completes.

        Raises:
            ObjectStoreError: the stream is longer than all parts together.
        """
        rest = memoryview(piece).cast("B")
        while rest:
            if not self._wanted:
                raise ObjectStoreError(f"S3 takes no object that is larger than {MOST_PARTS} parts of this stream")
            taken = rest[: self._wanted - len(self._part)]
            self._part += taken
            rest = rest[len(taken) :]
            if len(self._part) == self._wanted:
                yield self.rest()
                self._wanted = next(self._sizes, 0)

    def rest(self) -> bytes:
        """What makes no whole part yet; it is taken out."""
        part = bytes(self._part)
        self._part.clear()
        return part


def cut(pieces: Iterable[bytes], part_size: int) -> Iterator[bytes]:
    """Pieces of any size as parts of a multipart upload; none of no bytes."""
    cutter = PartCutter(part_size)
    for piece in pieces:
        yield from cutter.feed(piece)
    if last := cutter.rest():
        yield last
