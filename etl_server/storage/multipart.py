"""The parts of objects: S3 takes 10,000 of them for one, whatever its size."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import isqrt
from typing import Any, NamedTuple

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
    growth = _growth(first, largest)
    return (first + growth * number for number in range(MOST_PARTS))


def growing_size_at(position: int, first: int) -> int:
    """The size of that part of a stream that holds the byte at `position`, of those of `growing_sizes(first)`."""
    growth = _growth(first, LARGEST_OBJECT)
    if not growth:
        return first
    slope = 2 * first - growth
    number = (isqrt(slope * slope + 8 * growth * position) - slope) // (2 * growth)
    return first + growth * min(number, MOST_PARTS - 1)


def _growth(first: int, largest: int) -> int:
    return max(0, -(-2 * (largest - first * MOST_PARTS) // (MOST_PARTS * (MOST_PARTS - 1))))


class SentPart(NamedTuple):
    """A part of an upload that the server has."""

    size: int
    """Bytes."""
    etag: str
    checksums: Mapping[str, str]
    """As the server named them: it wants them back with the completion."""


def sent_part(uri: str, size: int, answer: Mapping[str, Any]) -> SentPart:
    """A part as the answer to it tells.

    Raises:
        ObjectStoreError: it does not tell that the part is there.
    """
    if not answer.get("ETag"):
        raise ObjectStoreError(f"{uri}: the server acknowledged a part without an ETag")
    checksums = {name: answer[name] for name in answer if name.startswith("Checksum") and name != "ChecksumType"}
    return SentPart(size, answer["ETag"], checksums)


def completion(parts: Sequence[SentPart]) -> Any:
    """What a completion says of the parts, all of them, as botocore wants it."""
    return {
        "Parts": [{"PartNumber": number, "ETag": part.etag, **part.checksums} for number, part in enumerate(parts, 1)]
    }


def is_made_of(parts: Sequence[SentPart], size: int, etag: str | None) -> bool:
    """Whether an object of this size and ETag, with or without its quotes, is surely made of these very parts."""
    known = etag_of_parts(part.etag for part in parts)
    return known is not None and (size, (etag or "").strip('"')) == (sum(part.size for part in parts), known)


def uploads_to(key: str, page: Mapping[str, Any]) -> list[str]:
    """The ids of the uploads to a key in a page of the answer to ListMultipartUploads."""
    return [upload["UploadId"] for upload in page.get("Uploads", ()) if upload["Key"] == key]


def page_after(page: Mapping[str, Any]) -> dict[str, str]:
    """What asks for the page of uploads behind this one; nothing where it is the last.

    Raises:
        ObjectStoreError: the list does not go on where it was.
    """
    if not page.get("IsTruncated"):
        return {}
    marker = {name: page.get(f"Next{name}", "") for name in ("KeyMarker", "UploadIdMarker")}
    if marker == {name: page.get(name, "") for name in marker}:
        raise ObjectStoreError("a list of uploads that is not at its end does not go on")
    return marker


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
