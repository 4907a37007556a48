"""`aistore[etl]`'s FastAPI server: `uvicorn --factory aistore_fastapi:app`."""

from __future__ import annotations

from typing import Any

from aistore.sdk.etl.webserver.fastapi_server import FastAPIServer  # type: ignore[import-not-found]
from bodies import chosen  # type: ignore[import-not-found]


def app() -> Any:
    """The ASGI application."""
    return type("Bench", (chosen(), FastAPIServer), {})().app
