"""Upper-case text of any size, piece by piece. `etl_args`: none."""

from __future__ import annotations

from collections.abc import Iterator
from io import BufferedIOBase

from etl_server import ETLServer

PIECE = 64 * 1024
"""Bytes of one piece, at most."""


class Upper(ETLServer):
    """Upper-cases the letters a to z. All other bytes stay as they are, so UTF-8 survives a cut anywhere."""

    def transform_stream(self, reader: BufferedIOBase, path: str, etl_args: str) -> Iterator[bytes]:
        # read1() gives what has come; read() would wait for a whole piece before the first output could leave.
        while piece := reader.read1(PIECE):
            yield piece.upper()

    def get_mime_type(self) -> str:
        return "text/plain"
