"""What a server shows at `/metrics`: the names, and how a number gets there.

The data path adds to the lists and dictionaries of `Counts`, some tens of nanoseconds an object. When somebody asks,
what has been added since the last time goes into metrics of prometheus-client.

Several workers use that library's way for several processes. The supervising process makes a directory and tells the
workers where it is. Each of them has a place in it, a number, and keeps its metrics in memory-mapped files that are
called after the place, so that a worker that takes a dead one's place goes on counting where that one stopped: no
number goes down, and there are never more files. A worker brings its files up to date every second, and when it is
asked itself; whoever is asked adds up the files of all. What a worker that is killed has counted since the last time is
lost. What it had in flight counts no more: the supervising process removes its gauges.

Under another server of several processes, `PROMETHEUS_MULTIPROC_DIR` has to be set, as that library says; without, each
process shows its own numbers.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, disable_created_metrics, values
from prometheus_client.exposition import choose_encoder
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from .. import __version__
from ..errors import ConfigError
from .counts import Counts

SECONDS = range(10, 38)
"""Powers of two, of nanoseconds: from a microsecond to two minutes, each bucket twice the one before."""
BYTES = range(6, 35, 2)
"""Powers of two: from 64 bytes to 16 GiB, each bucket four times the one before."""

logger = logging.getLogger("etl_server.serve")

_RESTARTS = "etl_worker_restarts_total", "Workers that died and were started again."
_DIRECTORY = "etl-server-metrics-"


class Families:
    """The metrics of a process."""

    def __init__(self, class_name: str, directory: str = "") -> None:
        """`class_name`: of the user's class. `directory`: where several processes have their files."""
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._directory = directory
        self._shown: dict[object, float] = {}
        self._registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self._registry}
        self._requests = Counter("etl_requests_total", "Objects that are finished.", ["way", "status"], **own)
        self._seconds = _PowerHistogram(
            "etl_transform_seconds",
            "Seconds in the transform of one object.",
            ["way"],
            buckets=[2**power / 1e9 for power in SECONDS],
            **own,
        )
        self._bytes = _PowerHistogram(
            "etl_object_bytes",
            "Bytes of one object before and after its transform.",
            ["direction"],
            buckets=[2**power for power in BYTES],
            **own,
        )
        self._in_flight = Gauge(
            "etl_in_flight", "Objects whose work has begun and not ended.", multiprocess_mode="livesum", **own
        )
        self._admitted = Gauge(
            "etl_admitted_bytes", "Bytes of memory that objects take up.", multiprocess_mode="livesum", **own
        )
        self._direct_puts = Counter("etl_direct_puts_total", "Objects that were sent on.", ["result"], **own)
        self._retries = Counter("etl_delivery_retries_total", "Repeats of sending on what broke off.", **own)
        Counter(*_RESTARTS, **own)
        build = Gauge(
            "etl_build_info",
            "What serves, by its labels.",
            ["version", "python", "class_name"],
            multiprocess_mode="livemax",
            **own,
        )
        build.labels(__version__, platform.python_version(), class_name).set(1)
        if directory:
            _take_up_space(Path(directory))

    def publish(self, counts: Counts, in_flight: int, admitted: int) -> None:
        """Bring the metrics up to date."""
        for way in counts.ways:
            for outcome, count in way.outcomes.items():
                self._raise(self._requests, (way.name, outcome), count)
            on_loop, in_threads = way.times, way.thread_times
            times = [a + b for a, b in zip(on_loop.counts, in_threads.counts, strict=True)]
            self._add(self._seconds, way.name, times, SECONDS, (on_loop.total + in_threads.total) / 1e9)
        for direction, sizes in (("in", counts.taken), ("out", counts.made)):
            self._add(self._bytes, direction, sizes.counts, BYTES, sizes.total)
        for result, count in counts.direct_puts.items():
            self._raise(self._direct_puts, (result,), count)
        self._retries.inc(self._new(self._retries, counts.retries))
        self._in_flight.set(in_flight)
        self._admitted.set(admitted)

    def page(self, accept: str) -> tuple[bytes, str]:
        """The numbers of all workers as a Prometheus that accepts `accept` reads them, and the content type of that."""
        registry = self._registry
        if self._directory:
            registry = CollectorRegistry()
            registry.register(_AllProcesses(Path(self._directory)))
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type

    def _raise(self, counter: Counter, labels: tuple[object, ...], total: int) -> None:
        if new := self._new((counter, *labels), total):
            counter.labels(*labels).inc(new)

    def _add(self, histogram: _PowerHistogram, label: str, counts: list[int], powers: range, total: float) -> None:
        new = [self._new((histogram, label, power), count) for power, count in enumerate(counts)]
        if any(new):
            histogram.labels(label).add(_buckets(new, powers), self._new((histogram, label), total))

    def _new(self, key: object, total: float) -> float:
        """What has been added since the last time."""
        new = total - self._shown.get(key, 0)
        self._shown[key] = total
        return new


class _PowerHistogram(Histogram):
    """A histogram that is told of many values at once."""

    def add(self, counts: Sequence[float], total: float) -> None:
        """There were so many values more in each bucket, and this is their sum."""
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
        self._sum.inc(total)


def _buckets(counts: list[float], powers: range) -> list[float]:
    """Counts by each power of two, as counts by the powers that end a bucket, and one for what is above."""
    buckets = [0.0] * (len(powers) + 1)
    for power, count in enumerate(counts):
        number = -((powers.start - power) // powers.step)
        buckets[min(max(number, 0), len(powers))] += count
    return buckets


# Several processes


def join(place: int) -> None:
    """This process is the worker at that place, with what was counted there before."""
    values.ValueClass = values.MultiProcessValue(lambda: place)  # type: ignore[no-untyped-call]


def _take_up_space(directory: Path) -> None:
    """Have the disk give the files the space that they are to have: to write to one that is full ends a process."""
    for file in directory.glob("*.db"):
        with contextlib.suppress(FileNotFoundError), file.open("rb+") as opened:
            if size := os.fstat(opened.fileno()).st_size:
                os.posix_fallocate(opened.fileno(), 0, size)


class _AllProcesses(Collector):
    """The numbers of all processes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def collect(self) -> Iterable[Metric]:
        files = []
        for file in self._directory.glob("*.db"):
            with contextlib.suppress(FileNotFoundError):  # its process has just died
                if file.stat().st_size:  # else its process is about to fill it
                    files.append(str(file))
        return MultiProcessCollector.merge(files)  # type: ignore[no-any-return, no-untyped-call]


class Places:
    """The directory of the workers' files, as the supervising process has it. A context manager."""

    def __init__(self) -> None:
        """Raises `ConfigError` where there is no room for temporary files."""
        try:
            self._made = Path(tempfile.mkdtemp(prefix="etl-server-"))
        except OSError as error:
            raise ConfigError(
                f"ETL_METRICS=true: expected a directory for temporary files that can be written to: {error.strerror}"
            ) from None
        self._lock = os.open(self._made, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        _remove_left_behind(self._made.parent)
        # Only now by the name that others look for, as what is not locked there counts as left behind.
        self.directory = self._made.rename(self._made.with_name(_DIRECTORY + self._made.name.rpartition("-")[2]))
        self._restarts = 0
        try:
            self._file = MmapedDict(str(self.directory / "counter_supervisor.db"))  # type: ignore[no-untyped-call]
            self._count_restarts()
            _take_up_space(self.directory)
        except OSError as error:
            shutil.rmtree(self.directory, ignore_errors=True)
            os.close(self._lock)
            raise ConfigError(f"ETL_METRICS=true: expected room in {self._made.parent}: {error.strerror}") from None

    @property
    def environment(self) -> dict[str, str]:
        """What a worker's environment needs."""
        return {"PROMETHEUS_MULTIPROC_DIR": str(self.directory)}

    def restarted(self, place: int) -> None:
        """The worker at that place has died, and another takes it."""
        self._restarts += 1
        self._count_restarts()
        try:
            mark_process_dead(place, str(self.directory))  # type: ignore[no-untyped-call]
        except OSError as error:
            logger.error("/metrics still shows what a dead worker had in flight: %s", error)

    def _count_restarts(self) -> None:
        name, text = _RESTARTS
        self._file.write_value(mmap_key(name.removesuffix("_total"), name, [], [], text), self._restarts, 0.0)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """The workers are gone."""
        self._file.close()  # type: ignore[no-untyped-call]
        shutil.rmtree(self.directory, ignore_errors=True)
        os.close(self._lock)


def _remove_left_behind(parent: Path) -> None:
    """Remove the directories of supervising processes that were killed."""
    for directory in parent.glob(f"{_DIRECTORY}*"):
        try:
            lock = os.open(directory, os.O_RDONLY)
        except OSError:  # somebody else's
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(lock)
