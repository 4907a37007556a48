"""What has become of every object of a job, in an SQLite file that outlives the run.

The plan of a run is a temporary table beside it, so that a million objects are compared without being held.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from ..config import cache_directory
from ..errors import JobError
from ..storage import Owner

SCHEMA_VERSION = 2
PAGE = 1000
"""Rows that are read, or written, in one go."""
HANDOVER = 10.0
"""Seconds that the processes of a run which was killed may need to end."""

_SCHEMA = """
CREATE TABLE about (
    source TEXT NOT NULL,
    sink TEXT NOT NULL,
    run INTEGER NOT NULL,
    id TEXT NOT NULL,             -- that of no other ledger
    littered INTEGER NOT NULL     -- whether the sink may hold what is half-written, and by whom: Litter
);
CREATE TABLE objects (
    output TEXT PRIMARY KEY,      -- the output's name by plan
    source TEXT NOT NULL,
    source_id TEXT NOT NULL,      -- what the source was
    fingerprint TEXT NOT NULL,    -- what the transform was
    stored TEXT,                  -- the name of the output that was last written
    stored_id TEXT,               -- what that is
    status TEXT NOT NULL,         -- done, failed
    error TEXT NOT NULL,
    bytes_in INTEGER NOT NULL,
    bytes_out INTEGER NOT NULL,
    seconds REAL NOT NULL,
    finished REAL NOT NULL,       -- Unix seconds
    run INTEGER NOT NULL
) WITHOUT ROWID;
"""

_PLAN = """
CREATE TEMP TABLE plan (
    id INTEGER PRIMARY KEY, source TEXT NOT NULL UNIQUE, output TEXT NOT NULL, size INTEGER NOT NULL,
    source_id TEXT NOT NULL, selected INTEGER NOT NULL, due INTEGER NOT NULL DEFAULT 0,
    passed_over INTEGER NOT NULL DEFAULT 0 -- it would be due, but only others were asked for
);
CREATE TEMP TABLE present (name TEXT PRIMARY KEY, id TEXT NOT NULL) WITHOUT ROWID;
"""


class Litter(IntEnum):
    """Whether a run that was killed may have left something half-written in the sink."""

    NONE = 0
    HERE = 1
    """Its processes were on this machine, and have ended."""
    ELSEWHERE = 2
    """They were on machines that may not know yet that it has ended."""


class Task(NamedTuple):
    """An object that is to be transformed."""

    id: int
    source: str
    output: str
    size: int
    """Bytes of the source."""


class Outcome(NamedTuple):
    """What came of a task."""

    id: int
    error: str = ""
    """Empty: it is done."""
    stored: str = ""
    """The name that the output has in the sink."""
    stored_id: str = ""
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: float = 0.0
    store_failed: bool = False
    """It is the store that failed, not the object."""


class Planned(NamedTuple):
    """An object of the source, as the plan has it."""

    source: str
    output: str
    size: int
    source_id: str
    selected: bool


class Totals(NamedTuple):
    """Numbers of a plan."""

    objects: int = 0
    bytes: int = 0


class Row(NamedTuple):
    """One object in a report.

    `status`: done, skipped, failed, pending where the run ended before it, or `not chosen` where only others were.
    """

    source: str
    output: str
    status: str
    bytes_in: int
    bytes_out: int
    seconds: float
    error: str


def default_path(source: str, sink: str) -> Path:
    """Where the ledger of jobs from `source` to `sink` is kept."""
    key = hashlib.sha256(_sql_bytes(f"{source}\n{sink}")).hexdigest()[:16]
    return cache_directory() / "jobs" / f"{key}.sqlite"


class Ledger:
    """The ledger of the jobs from one source to one sink. A context manager; used by one thread."""

    def __init__(self, path: Path | None, source: str, sink: str) -> None:
        """`path`: None for a ledger that is forgotten.

        Raises:
            JobError: another run uses it, or it is the ledger of another source and sink.
        """
        self._lock = -1
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._lock = _lock(path)
            except OSError as error:
                raise JobError(f"--ledger {path}: expected a file that can be written: {error}") from None
        self._db = sqlite3.connect(path or ":memory:", isolation_level=None)
        try:
            self._prepare(path, source, sink)
        except sqlite3.DatabaseError as error:
            self.close()
            raise JobError(f"--ledger {path}: expected a ledger of etl-server: {error}") from None
        except BaseException:
            self.close()
            raise

    def _prepare(self, path: Path | None, source: str, sink: str) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
        elif version != SCHEMA_VERSION:
            raise JobError(f"--ledger {path}: its version is {version}, expected {SCHEMA_VERSION}")
        about = self._db.execute("SELECT source, sink, run, id, littered FROM about").fetchone()
        if about is None:
            about = (_to_sql(source), _to_sql(sink), 0, uuid.uuid4().hex[:16], 0)
            self._db.execute("INSERT INTO about VALUES (?, ?, ?, ?, ?)", about)
        if (of := tuple(map(_from_sql, about[:2]))) != (source, sink):
            raise JobError(f"--ledger {path}: it is of {of[0]} to {of[1]}, expected {source} to {sink}")
        self.run = about[2] + 1
        self.owner = Owner(about[3], Path(f"{path}.uploads"))
        """Whom what is half-written in the sink belongs to: this job, which has no other run while this one lasts."""
        self._littered = Litter(about[4])
        self._db.execute("UPDATE about SET run = ?", (self.run,))
        self._db.executescript(_PLAN)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @property
    def lock(self) -> int:
        """A descriptor that holds the ledger for whoever has it open, -1 if there is none. Workers inherit it."""
        return self._lock

    @property
    def littered(self) -> Litter:
        """Whether a run that was killed may have left something half-written in the sink."""
        return self._littered

    @littered.setter
    def littered(self, littered: Litter) -> None:
        self._db.execute("UPDATE about SET littered = ?", (littered,))
        self._littered = littered

    # Planning

    def plan(self, objects: Iterable[Planned]) -> None:
        """Take up the objects of the source. One that comes twice counts once."""
        insert = "INSERT OR IGNORE INTO plan (source, output, size, source_id, selected) VALUES (?, ?, ?, ?, ?)"
        with self._transaction():
            self._db.executemany(
                insert,
                (
                    (_to_sql(each.source), _to_sql(each.output), each.size, each.source_id, each.selected)
                    for each in objects
                ),
            )

    def note_present(self, outputs: Iterable[tuple[str, str]]) -> None:
        """Take up what is in the sink: names, and what they are."""
        with self._transaction():
            insert = "INSERT OR REPLACE INTO present VALUES (?, ?)"
            self._db.executemany(insert, ((_to_sql(name), output_id) for name, output_id in outputs))

    def collisions(self, most: int) -> list[tuple[str, str, str]]:
        """Outputs that several sources would write, with two of them."""
        self._db.execute("CREATE INDEX temp.by_output ON plan (output, selected)")
        found = self._db.execute(
            "SELECT output, min(source), max(source) FROM plan WHERE selected"
            " GROUP BY output HAVING count(*) > 1 ORDER BY output LIMIT ?",
            (most,),
        )
        return [(_from_sql(output), _from_sql(first), _from_sql(last)) for output, first, last in found]

    def outputs(self) -> Iterator[str]:
        """The planned names of all outputs."""
        return (_from_sql(name) for (name,) in self._db.execute("SELECT output FROM plan WHERE selected"))

    def choose(self, fingerprint: str, *, force: bool = False, only_failed: bool = False) -> Totals:
        """Mark what is to be done: what is new, changed, failed before, or missing in the sink. Returns how much."""
        valid = (
            "o.status = 'done' AND o.source = plan.source AND o.source_id = plan.source_id AND o.fingerprint = ?"
            " AND EXISTS (SELECT 1 FROM present p WHERE p.name = o.stored AND p.id = o.stored_id)"
        )
        invalid = f"NOT EXISTS (SELECT 1 FROM objects o WHERE o.output = plan.output AND {valid})"  # noqa: S608
        failed = "EXISTS (SELECT 1 FROM objects o WHERE o.output = plan.output AND o.status = 'failed')"
        due = failed if only_failed else "1" if force else invalid
        with self._transaction():
            arguments = [fingerprint] if due == invalid else []
            self._db.execute(f"UPDATE plan SET due = 1 WHERE selected AND {due}", arguments)  # noqa: S608
            if only_failed:
                passed_over = f"UPDATE plan SET passed_over = 1 WHERE selected AND NOT due AND {invalid}"  # noqa: S608
                self._db.execute(passed_over, [fingerprint])
        return self._totals("due")

    def passed_over(self) -> Totals:
        """How much would be to do, had only what failed not been asked for."""
        return self._totals("passed_over")

    def selected(self) -> Totals:
        """How much of the source is selected."""
        return self._totals("selected")

    def listed(self) -> Totals:
        """How much there is in the source."""
        return self._totals("1")

    def _totals(self, condition: str) -> Totals:
        query = f"SELECT count(*), coalesce(sum(size), 0) FROM plan WHERE {condition}"  # noqa: S608
        return Totals(*self._db.execute(query).fetchone())

    def due(self) -> Iterator[Task]:
        """What is to be done, sorted by name."""
        last: str | bytes = ""
        query = "SELECT id, source, output, size FROM plan WHERE due AND source > ? ORDER BY source LIMIT ?"
        while page := self._db.execute(query, (last, PAGE)).fetchall():
            for number, source, output, size in page:
                yield Task(number, _from_sql(source), _from_sql(output), size)
            last = page[-1][1]

    def orphans(self, prefix: str) -> list[tuple[str, str]]:
        """Planned and stored names of outputs whose source, of those with that prefix, is gone."""
        begin = _sql_bytes(prefix)
        found = self._db.execute(
            "SELECT output, stored FROM objects o WHERE substr(CAST(source AS BLOB), 1, ?) = ?"
            " AND NOT EXISTS (SELECT 1 FROM plan WHERE plan.source = o.source)",
            (len(begin), begin),
        )
        return [(_from_sql(output), _from_sql(stored or "")) for output, stored in found]

    def is_needed(self, stored: str, output: str) -> bool:
        """Whether another object than the one planned as `output` has its content under the name `stored`."""
        query = "SELECT 1 FROM objects WHERE stored = ? AND output != ? LIMIT 1"
        return self._db.execute(query, (_to_sql(stored), _to_sql(output))).fetchone() is not None

    def unnamed(self, names: Iterable[str]) -> list[str]:
        """Those of the names under which no object has its output."""
        self._db.execute("CREATE TEMP TABLE IF NOT EXISTS claimed (name TEXT PRIMARY KEY) WITHOUT ROWID")
        with self._transaction():
            self._db.execute("DELETE FROM claimed")
            self._db.executemany("INSERT OR IGNORE INTO claimed VALUES (?)", ((_to_sql(name),) for name in names))
        query = "SELECT name FROM claimed EXCEPT SELECT stored FROM objects"
        return [_from_sql(name) for (name,) in self._db.execute(query)]

    def forget(self, output: str) -> None:
        """The output is no more."""
        self._db.execute("DELETE FROM objects WHERE output = ?", (_to_sql(output),))

    # Working

    def record(self, outcomes: Iterable[Outcome], fingerprint: str) -> None:
        """Save what came of tasks. Of one that failed, the output that it had before stays known."""
        now = time.time()
        with self._transaction():
            self._db.executemany(
                "INSERT INTO objects SELECT output, source, source_id, ?, ?, ?, ?, ?, ?, ?, ?, ?, ? FROM plan"
                " WHERE id = ? ON CONFLICT (output) DO UPDATE SET source = excluded.source,"
                " source_id = excluded.source_id, fingerprint = excluded.fingerprint,"
                " stored = coalesce(excluded.stored, stored), stored_id = coalesce(excluded.stored_id, stored_id),"
                " status = excluded.status, error = excluded.error, bytes_in = excluded.bytes_in,"
                " bytes_out = excluded.bytes_out, seconds = excluded.seconds, finished = excluded.finished,"
                " run = excluded.run",
                [
                    (
                        fingerprint,
                        _to_sql(outcome.stored) if outcome.stored else None,
                        outcome.stored_id or None,
                        "failed" if outcome.error else "done",
                        outcome.error,
                        outcome.bytes_in,
                        outcome.bytes_out,
                        outcome.seconds,
                        now,
                        self.run,
                        outcome.id,
                    )
                    for outcome in outcomes
                ],
            )

    def rows(self) -> Iterator[Row]:
        """What has become of every selected object, sorted by name."""
        query = (
            "SELECT p.source, coalesce(o.stored, p.output), CASE WHEN o.run = ? AND p.due THEN o.status"
            " WHEN p.due THEN 'pending' WHEN p.passed_over THEN 'not chosen' ELSE 'skipped' END,"
            " coalesce(o.bytes_in, 0), coalesce(o.bytes_out, 0), coalesce(o.seconds, 0),"
            " CASE WHEN o.run = ? THEN o.error ELSE '' END"
            " FROM plan p LEFT JOIN objects o ON o.output = p.output WHERE p.selected ORDER BY p.source"
        )
        for source, output, *rest in self._db.execute(query, (self.run, self.run)):
            yield Row(_from_sql(source), _from_sql(output), *rest)

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db)


class _Transaction:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._db.execute("COMMIT")
        elif self._db.in_transaction:
            self._db.execute("ROLLBACK")


def _to_sql(name: str) -> str | bytes:
    """A name as a column holds it: what is not UTF-8, as names of files may be, cannot be text."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return _sql_bytes(name)
    return name


def _from_sql(name: str | bytes) -> str:
    return name.decode(errors="surrogateescape") if isinstance(name, bytes) else name


def _sql_bytes(name: str) -> bytes:
    return name.encode(errors="surrogateescape")


def _lock(path: Path) -> int:
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + HANDOVER
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 32, 0).decode().strip()
            # Its workers may outlive a run that was killed for a moment, and still write outputs.
            if _lives(owner) or time.monotonic() > deadline:
                os.close(descriptor)
                raise JobError(f"--ledger {path}: another run uses it (process {owner or 'unknown'})") from None
            time.sleep(0.05)
        else:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            return descriptor


def _lives(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    try:
        # A process that was killed and that nobody has waited for yet
        return ") Z" not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return True
