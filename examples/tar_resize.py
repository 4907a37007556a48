"""A WebDataset shard with smaller images. `etl_args`: the longest edge to leave, in pixels; default `256`."""

from __future__ import annotations

import re
import tarfile
import warnings
from collections.abc import Iterator
from io import BytesIO
from typing import BinaryIO

from PIL import Image

from etl_server import ETLServer

IMAGES = (".jpg", ".jpeg", ".png")
PIECE = 128 * tarfile.BLOCKSIZE
"""Bytes that are copied at a time: whole blocks, so that only the last piece of a member has to be filled up."""


class TarResize(ETLServer):
    """Copies a tar file member by member, and shrinks the images on the way. One image is in memory at a time."""

    def setup(self) -> None:
        # Pillow refuses an image of twice its limit of pixels; let what it only warns of fail as well.
        warnings.simplefilter("error", Image.DecompressionBombWarning)

    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
        edge = etl_args or "256"
        if not re.fullmatch("[1-9][0-9]{0,4}", edge):
            raise ValueError(f"etl_args={edge!r}: expected the longest edge in pixels, such as 256")
        # "r|" reads a stream: forwards only.
        with tarfile.open(fileobj=reader, mode="r|", tarinfo=WholeHeader) as shard:
            for member in shard:
                yield from copy(shard, member, int(edge))
                shard.members.clear()  # type: ignore[attr-defined]  # else it remembers every member that passed by
        yield bytes(2 * tarfile.BLOCKSIZE)  # the end of a tar file

    def get_mime_type(self) -> str:
        return "application/x-tar"


def copy(shard: tarfile.TarFile, member: tarfile.TarInfo, edge: int) -> Iterator[bytes]:
    """The pieces of a member: its header, its content, and zeros up to a whole block."""
    content = None if member.issym() or member.islnk() else shard.extractfile(member)
    if content is None:
        yield member.tobuf()
        return
    # Only name, time, owner and mode are taken over: extended headers may repeat a size that no longer holds.
    member.type, member.pax_headers = tarfile.REGTYPE, {}
    if member.name.lower().endswith(IMAGES):
        image = shrink(content.read(), edge)
        member.size = len(image)
        content = BytesIO(image)
    yield member.tobuf()
    while piece := content.read(PIECE):
        yield piece + bytes(-len(piece) % tarfile.BLOCKSIZE)


def shrink(content: bytes, edge: int) -> bytes:
    """A JPEG or PNG image with no edge longer than `edge` pixels; the very same bytes where that holds already."""
    with Image.open(BytesIO(content), formats=["JPEG", "PNG"]) as image:
        if max(image.size) <= edge:
            return content
        image.thumbnail((edge, edge), reducing_gap=2.0 if image.format == "JPEG" else None)
        out = BytesIO()
        # The orientation is part of `exif`: the image stays as it lies, as do boxes and masks that belong to it.
        kept = {name: image.info[name] for name in ("exif", "icc_profile") if name in image.info}
        image.save(out, image.format, quality=90, **kept)
    return out.getvalue()


class WholeHeader(tarfile.TarInfo):
    """A member's header. `tarfile` takes a header that is cut off or damaged for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> WholeHeader:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # a block of zeros: this is the end
            raise tarfile.ReadError(f"the shard is cut off or damaged: {error}") from None
