"""The class that is served until an overlay names another."""

from __future__ import annotations

from etl_server import ETLServer


class Upper(ETLServer):
    """Upper-cases ASCII text."""

    def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
        return data.upper()
