"""How a job goes, for people on a terminal, for logs, and for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ..wire.names import printable
from .engines import Busy
from .ledger import Task
from .run import Observer, Summary

SLOW = 2.0
"""Seconds after which an object that is worked on is shown."""
TERMINAL_INTERVAL, PLAIN_INTERVAL, JSON_INTERVAL = 0.2, 5.0, 1.0
"""Seconds between two looks."""


def observer(as_json: bool, name: Callable[[int], str]) -> Display:
    """What suits whoever reads: `name` gives the name of a task's object."""
    if as_json:
        return JSONEvents(name)
    console = Console(stderr=True)
    return Terminal(name, console) if console.is_terminal else PlainLines(name)


class Display(Observer):
    """Base of the observers here, each a context manager. Looks at the job every `interval` seconds."""

    interval = PLAIN_INTERVAL

    def __init__(self, name: Callable[[int], str]) -> None:
        self._name = name
        self._shown = time.monotonic()

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def planned(self, summary: Summary, first: list[Task], orphans: list[str]) -> None:
        self._shown = time.monotonic()

    def progress(self, summary: Summary, busy: Callable[[], list[Busy]]) -> None:
        now = time.monotonic()
        if now - self._shown >= self.interval:
            self._shown = now
            self.show(summary, [one for one in busy() if one.seconds >= SLOW][:3])

    def failed(self, name: str, error: str) -> None:
        pass

    def show(self, summary: Summary, slow: list[Busy]) -> None:
        """Show how it goes."""
        raise NotImplementedError

    def _slow(self, slow: list[Busy]) -> str:
        return ", ".join(f"{printable(self._name(one.task_id))} for {one.seconds:.0f} s" for one in slow)


class Terminal(Display):
    """A bar on a terminal."""

    interval = TERMINAL_INTERVAL

    def __init__(self, name: Callable[[int], str], console: Console) -> None:
        super().__init__(name)
        self._bar = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TextColumn("{task.fields[slow]}"),
            console=console,
            transient=True,
        )
        self._started = time.monotonic()

    def planned(self, summary: Summary, first: list[Task], orphans: list[str]) -> None:
        super().planned(summary, first, orphans)
        self._started = time.monotonic()
        if summary.due.objects:
            self._task = self._bar.add_task("", total=summary.due.objects, numbers="", slow="")
            self._bar.start()

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def show(self, summary: Summary, slow: list[Busy]) -> None:
        through = summary.done + summary.failed
        slow_text = f"[yellow]slow: {escape(self._slow(slow))}" if slow else ""
        self._bar.update(self._task, completed=through, numbers=escape(numbers(summary, self._started)), slow=slow_text)

    def failed(self, name: str, error: str) -> None:
        self._bar.console.print(f"[red]failed[/] {escape(printable(name))}: {escape(error)}", highlight=False)


class PlainLines(Display):
    """A line every few seconds, for logs."""

    def planned(self, summary: Summary, first: list[Task], orphans: list[str]) -> None:
        super().planned(summary, first, orphans)
        self._started = time.monotonic()

    def show(self, summary: Summary, slow: list[Busy]) -> None:
        through = summary.done + summary.failed
        line = f"{through:,} of {summary.due.objects:,}  {numbers(summary, self._started)}"
        print(f"{line}  slow: {self._slow(slow)}" if slow else line, file=sys.stderr, flush=True)

    def failed(self, name: str, error: str) -> None:
        print(f"failed {name}: {error}", file=sys.stderr, flush=True)


class JSONEvents(Display):
    """A JSON object a line on standard output."""

    interval = JSON_INTERVAL

    def planned(self, summary: Summary, first: list[Task], orphans: list[str]) -> None:
        super().planned(summary, first, orphans)
        emit(
            "plan",
            objects=summary.selected.objects,
            bytes=summary.selected.bytes,
            due=summary.due.objects,
            due_bytes=summary.due.bytes,
            skipped=summary.skipped,
            not_chosen=summary.not_chosen,
            to_delete=len(orphans),
            first=[{"source": task.source, "output": task.output} for task in first],
        )

    def show(self, summary: Summary, slow: list[Busy]) -> None:
        emit(
            "progress",
            done=summary.done,
            failed=summary.failed,
            due=summary.due.objects,
            bytes_in=summary.bytes_read,
            bytes_out=summary.bytes_written,
            slow=[{"source": self._name(one.task_id), "seconds": round(one.seconds, 1)} for one in slow],
        )

    def failed(self, name: str, error: str) -> None:
        emit("failed", source=name, error=error)


def emit(event: str, **fields: Any) -> None:
    """Write an event for programs."""
    print(json.dumps({"event": event, **fields}), flush=True)


def numbers(summary: Summary, started: float) -> str:
    """Bytes, rate, failures and the time left."""
    elapsed = max(time.monotonic() - started, 0.001)
    rate = (summary.done + summary.failed) / elapsed
    left = f", {summary.pending / rate:.0f} s left" if rate else ""
    failed = f", {summary.failed:,} failed" if summary.failed else ""
    return f"{decimal(summary.bytes_read)} in, {decimal(summary.bytes_written)} out, {rate:.1f}/s{failed}{left}"
