"""Logging of a server process: one line an event, on stderr, as text or as JSON, and no secret in any of them.

Line breaks and other control characters are written as escapes, so that nothing that is logged can look like an event
of its own. Only on a terminal, text keeps its line breaks, for people; what follows one is indented.
"""

from __future__ import annotations

import json
import logging
import logging.config
import sys
import threading
from datetime import datetime, timezone
from typing import NamedTuple

from ..config import Settings
from ..wire.names import printable

_ESCAPES = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}
INDENT = "\n    "
ACCESS = "etl_server.access"
"""The logger of `ETL_ACCESS_LOG`."""


class Finished(NamedTuple):
    """What is logged of an object that is finished: the attribute `finished` of the log record."""

    way: str
    """How it came: push, pull, fqn, download, websocket."""
    object: str
    status: int
    ms: int
    """Milliseconds from when its request came."""
    detail: str = ""
    """Why it failed."""
    traceback: str = ""

    def __str__(self) -> str:
        """One line, and the traceback behind it."""
        reason = f": {self.detail}" if self.detail else ""
        text = escaped(f"{self.way} {self.object}: {self.status} after {self.ms} ms{reason}")
        return f"{text}\n{self.traceback.rstrip()}" if self.traceback else text


def escaped(text: str) -> str:
    """`text` without control characters and line breaks: they are written as Python writes them."""
    return text.translate(_ESCAPES)


class TextFormatter(logging.Formatter):
    """A line for people. `terminal`: line breaks stay."""

    def __init__(self, settings: Settings, *, terminal: bool = False) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s[%(process)d] %(message)s")
        self._settings = settings
        self._terminal = terminal

    def format(self, record: logging.LogRecord) -> str:
        text = self._settings.redact(super().format(_formattable(record))).rstrip()
        return INDENT.join(map(escaped, text.split("\n"))) if self._terminal else escaped(text)


class JsonFormatter(logging.Formatter):
    """A JSON object for programs: `time`, `level`, `logger`, `process`, `message`.

    Of an object also `way`, `object`, `status` and `ms`; and `traceback`, where there is one.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings

    def format(self, record: logging.LogRecord) -> str:
        record = _formattable(record)
        event = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
        }
        finished = getattr(record, "finished", None)
        if isinstance(finished, Finished):
            message, traceback = finished.detail, finished.traceback
            event |= {"way": finished.way, "object": self._told(finished.object)}
            event |= {"status": finished.status, "ms": finished.ms}
        else:
            message = record.getMessage()
            traceback = self.formatException(record.exc_info) if record.exc_info else record.exc_text or ""
        event["message"] = self._told(message)
        if traceback or record.stack_info:
            event["traceback"] = self._told(f"{traceback}\n{record.stack_info or ''}".strip())
        return json.dumps(event)

    def _told(self, text: str) -> str:
        return printable(self._settings.redact(text))


def _formattable(record: logging.LogRecord) -> logging.LogRecord:
    """The record, or where its arguments do not fit its message, one that says both: it is somebody's only trace."""
    try:
        record.getMessage()
    except Exception:
        record = logging.makeLogRecord({**vars(record), "msg": f"{record.msg} {record.args!r}", "args": None})
    return record


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
    """Send all of this process's logs to stderr, from `ETL_LOG_LEVEL` up: Python's warnings and dying threads too."""
    handler = logging.StreamHandler(sys.stderr)
    text = settings.log_format == "text"
    handler.setFormatter(TextFormatter(settings, terminal=sys.stderr.isatty()) if text else JsonFormatter(settings))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    level = settings.log_level.upper()
    logging.getLogger("etl_server").setLevel(level)
    logging.getLogger(ACCESS).setLevel(logging.INFO)  # whoever wants it has said so, at any level
    # uvicorn tells of each start, stop and connection; what matters of that is said here already.
    logging.getLogger("uvicorn").setLevel("DEBUG" if level == "DEBUG" else "WARNING")
    logging.captureWarnings(True)
    threading.excepthook = _log_thread


def _log_thread(died: threading.ExceptHookArgs) -> None:
    if died.exc_value is not None and not isinstance(died.exc_value, SystemExit):
        name = died.thread.name if died.thread is not None else "a thread"
        logging.getLogger("etl_server").error("%s raised", name, exc_info=died.exc_value)
