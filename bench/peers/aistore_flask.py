"""`aistore[etl]`'s Flask server: `gunicorn 'aistore_flask:app()'`."""

from __future__ import annotations

from typing import Any

from aistore.sdk.etl.webserver.flask_server import FlaskServer  # type: ignore[import-not-found]
from bodies import chosen  # type: ignore[import-not-found]


def app() -> Any:
    """The WSGI application."""
    return type("Bench", (chosen(), FlaskServer), {})().app
