"""Logging of a server process: one line an event, on stderr, and no secret in any of them."""

from __future__ import annotations

import logging
import logging.config
import sys

from ..config import Settings


class RedactingFormatter(logging.Formatter):
    """Formats a record, traceback included, and takes the secrets out of what that gives."""

    def __init__(self, settings: Settings) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s[%(process)d] %(message)s")
        self._settings = settings

    def format(self, record: logging.LogRecord) -> str:
        return self._settings.redact(super().format(record))


class RedactingFilter(logging.Filter):
    """Takes the secrets out of what a library logs, whoever formats it."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self.settings.redact(record.getMessage()), ()
        return True


def redact_clients(settings: Settings) -> None:
    """HTTP clients log the URLs that they ask for, and the target's holds a secret."""
    for name in ("urllib3.connectionpool", "urllib3.util.retry", "httpx"):
        logger = logging.getLogger(name)
        if not any(isinstance(known, RedactingFilter) and known.settings == settings for known in logger.filters):
            logger.addFilter(RedactingFilter(settings))


def configure_logging(settings: Settings) -> None:
    """Send all of this process's logs to stderr, from `ETL_LOG_LEVEL` up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactingFormatter(settings))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    level = settings.log_level.upper()
    logging.getLogger("etl_server").setLevel(level)
    # uvicorn tells of each start, stop and connection; what matters of that is said here already.
    logging.getLogger("uvicorn").setLevel("DEBUG" if level == "DEBUG" else "WARNING")
