"""What is measured, and what is to be reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

OURS = "ours"
FASTAPI = "fastapi"
FLASK = "flask"
THREADED = "threaded"
GO = "go"
ASGI = "asgi"
UNMETERED = "unmetered"
LOOP = "loop"
SYNCING = "syncing"
XARGS = "xargs"
ALONE = "alone"
PYTHON = "python"
CEILING = "ceiling"
BOTO3 = "boto3"

AISTORE = (FASTAPI, FLASK, THREADED)

AS_FAST_AS_BOTO3 = 0.909
"""Objects a second: 10 % more time for one is the most."""

FLOOD_MEMORY = GIB
"""`ETL_MAX_MEMORY` of our server under the flood."""


class Measure(Enum):
    """How a case is run."""

    THROUGHPUT = "throughput"
    HEALTH = "health"
    CPU = "cpu"
    FLOOD = "flood"
    STARTUP = "startup"
    IMPORT = "import"
    JOB = "job"
    STORE = "store"


class Way(Enum):
    """How an object gets to a server, and where its result goes."""

    PUSH = "push"
    PULL = "pull"
    DIRECT_PUT = "direct put"
    PIPELINE = "pipeline"
    FQN = "fqn"
    WEBSOCKET = "websocket"
    FILES = "files"
    S3 = "s3"


class Generator(Enum):
    """What makes the load. wrk reads 8 KiB at a time, which from 1 MiB on costs more than a server does."""

    WRK = "wrk"
    HTTPLOAD = "httpload"
    WSLOAD = "wsload"


@dataclass(frozen=True)
class Metric:
    """The number that a case is about."""

    name: str
    """The field of a run that holds it."""
    unit: str
    higher_is_better: bool = True


RATE = Metric("rate", "objects/s")
P99 = Metric("p99_ms", "ms", higher_is_better=False)
PEAK = Metric("peak_bytes", "bytes", higher_is_better=False)
TIME = Metric("p50_ms", "ms", higher_is_better=False)


@dataclass(frozen=True)
class Case:
    """One case. `peers` are the servers that ours is put beside, by their keys."""

    name: str
    title: str
    peers: tuple[str, ...]
    measure: Measure = Measure.THROUGHPUT
    metric: Metric = RATE
    way: Way = Way.PUSH
    generator: Generator = Generator.WRK
    transform: str = "Echo"
    size: int = KIB
    """Bytes of an object."""
    connections: int = 16
    inflight: int = 1
    """Objects under way on each connection (WebSocket)."""
    count: int | None = None
    """Objects of a run; None: as many as there are in its seconds."""
    store: str = ""
    """What is done with an object store: `upload`, `download`, `read` or `list`."""
    workers: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of every server of the case."""
    ratios: Mapping[str, float] = field(default_factory=dict)
    """The least ratio ours/peer to reach."""
    at_most: float | None = None
    """The most that our own number may be."""
    again: bool = False
    """Whether it is the second run of a job that is measured."""
    photographs: bool = False
    """Whether the images of a job are as large as cameras make them."""


def _sized(size: int) -> str:
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} B"


def _throughput(
    name: str,
    size: int,
    peers: tuple[str, ...],
    *,
    way: Way = Way.PUSH,
    transform: str = "Echo",
    ratios: Mapping[str, float] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Case:
    bulk = size >= MIB and way not in (Way.DIRECT_PUT, Way.PIPELINE)
    generator = Generator.HTTPLOAD if bulk or transform == "Stream" else Generator.WRK
    if way is Way.WEBSOCKET:
        generator = Generator.WSLOAD
    return Case(
        name=f"{name}-{_sized(size).replace(' ', '')}".replace(" ", "-").lower(),
        title=f"{name} {_sized(size)}",
        peers=peers,
        way=way,
        generator=generator,
        transform=transform,
        size=size,
        connections=2 if size >= GIB else 16,
        inflight=2 if size >= MIB else 8,
        count=2 if size >= GIB else None,
        ratios=ratios or {},
        environment=environment or {},
    )


def _job(name: str, title: str, peers: tuple[str, ...] = (), **options: Any) -> Case:
    return Case(name=f"jobs-{name}", title=f"job: {title}", peers=peers, measure=Measure.JOB, workers=2, **options)


_THUMBNAILS: dict[str, Any] = {"transform": "Thumbnail", "count": 20_000, "size": 35 * KIB, "ratios": {ALONE: 0.91}}
_PHOTOGRAPHS: dict[str, Any] = {**_THUMBNAILS, "count": 2000, "size": 1158 * KIB, "photographs": True}
_SKIPPED: dict[str, Any] = {"count": 100_000, "size": 16, "way": Way.FILES, "again": True}

_DIRECT = {"DIRECT_PUT": "true"}
_PATHS = {"ETL_DIRECT_FQN": "true"}

CASES: tuple[Case, ...] = (
    _throughput("push", KIB, (*AISTORE, GO, ASGI), ratios={FASTAPI: 6, GO: 0.9}),
    _throughput("push", 64 * KIB, (*AISTORE, GO, ASGI)),
    _throughput("push", MIB, (*AISTORE, GO, ASGI), ratios={FASTAPI: 1.5, GO: 0.9}),
    _throughput("push", 16 * MIB, (*AISTORE, GO, ASGI)),
    _throughput("pull", KIB, (*AISTORE, GO), way=Way.PULL, ratios={FASTAPI: 20, GO: 0.7}),
    _throughput("pull", MIB, (*AISTORE, GO), way=Way.PULL),
    _throughput(
        "direct put",
        KIB,
        (*AISTORE, GO),
        way=Way.DIRECT_PUT,
        environment=_DIRECT,
        ratios={FASTAPI: 30, GO: 0.8},
    ),
    _throughput(
        "direct put",
        MIB,
        (*AISTORE, GO),
        way=Way.DIRECT_PUT,
        environment=_DIRECT,
        ratios={FASTAPI: 2.5, GO: 0.9},
    ),
    _throughput("pipeline", KIB, (*AISTORE, GO), way=Way.PIPELINE, environment=_DIRECT, ratios={FASTAPI: 20}),
    _throughput("fqn bytes", KIB, (*AISTORE, GO), way=Way.FQN),
    _throughput("fqn bytes", 16 * MIB, (*AISTORE, GO), way=Way.FQN),
    _throughput("fqn path", KIB, AISTORE, way=Way.FQN, environment=_PATHS),
    _throughput("fqn path", 16 * MIB, AISTORE, way=Way.FQN, environment=_PATHS),
    _throughput("websocket", KIB, (FASTAPI, GO, ASGI), way=Way.WEBSOCKET, ratios={FASTAPI: 3.5}),
    _throughput("websocket", 64 * KIB, (FASTAPI, GO, ASGI), way=Way.WEBSOCKET),
    _throughput("websocket", MIB, (FASTAPI, GO, ASGI), way=Way.WEBSOCKET, ratios={FASTAPI: 1.8}),
    _throughput("stream", KIB, AISTORE, transform="Stream", ratios={FASTAPI: 5}),
    _throughput("stream", MIB, AISTORE, transform="Stream", ratios={FASTAPI: 3}),
    _throughput("stream", GIB, AISTORE, transform="Stream"),
    _throughput("metrics push", KIB, (UNMETERED,), ratios={UNMETERED: 0.98}),
    _throughput("metrics websocket", KIB, (UNMETERED,), way=Way.WEBSOCKET, ratios={UNMETERED: 0.98}),
    Case(
        name="health",
        title="p99 of /health while 64 transforms of 200 ms run",
        peers=AISTORE,
        measure=Measure.HEALTH,
        metric=P99,
        transform="Sleep",
        connections=64,
        at_most=20,
    ),
    Case(
        name="cpu",
        title="zlib of 256 KiB, 2 workers on 2 cores",
        peers=(LOOP, FASTAPI),
        measure=Measure.CPU,
        transform="Zlib",
        size=256 * KIB,
        workers=2,
        ratios={LOOP: 0.95},
    ),
    Case(
        name="flood",
        title="peak memory, 200 pushes of 64 MiB at once",
        peers=(FASTAPI, GO),
        measure=Measure.FLOOD,
        metric=PEAK,
        size=64 * MIB,
        connections=200,
        count=200,
        environment={"ETL_MAX_MEMORY": str(FLOOD_MEMORY)},
        at_most=1.5 * FLOOD_MEMORY,
    ),
    Case(
        name="start-up",
        title="start-up: process start to first 200",
        peers=(*AISTORE, GO, ASGI),
        measure=Measure.STARTUP,
        metric=TIME,
    ),
    Case(
        name="import",
        title="import etl_server",
        peers=(FASTAPI, PYTHON),
        measure=Measure.IMPORT,
        metric=TIME,
    ),
    _job("photographs-files", "2,000 photographs, files to files", (ALONE,), way=Way.FILES, **_PHOTOGRAPHS),
    _job("photographs-s3", "2,000 photographs, S3 to S3", (ALONE,), way=Way.S3, **_PHOTOGRAPHS),
    _job("thumbnails-files", "20,000 small JPEGs, files to files", (ALONE,), way=Way.FILES, **_THUMBNAILS),
    _job("thumbnails-s3", "20,000 small JPEGs, S3 to S3", (ALONE,), way=Way.S3, **_THUMBNAILS),
    _job(
        "small",
        "20,000 of 4 KiB as they came, files to files",
        (XARGS, SYNCING, LOOP),
        way=Way.FILES,
        count=20_000,
        size=4 * KIB,
        ratios={XARGS: 5, SYNCING: 3, LOOP: 3},
    ),
    _job("skip-time", "100,000 skipped by a second run, time", metric=TIME, at_most=10_000, **_SKIPPED),
    _job("skip-memory", "100,000 skipped by a second run, memory", metric=PEAK, at_most=300 * MIB, **_SKIPPED),
    *(
        Case(
            name=f"store-{action}",
            title=f"{action}_object of 1 GiB, S3",
            peers=(BOTO3,),
            measure=Measure.STORE,
            store=action,
            size=GIB,
            ratios={BOTO3: AS_FAST_AS_BOTO3},
        )
        for action in ("upload", "download")
    ),
    Case(
        name="store-read",
        title="peak memory, open_object of 1 GiB, S3",
        peers=(),
        measure=Measure.STORE,
        metric=PEAK,
        store="read",
        size=GIB,
        at_most=64 * MIB,
    ),
    Case(
        name="store-list",
        title="peak memory, 100,000 objects listed, S3",
        peers=(),
        measure=Measure.STORE,
        metric=PEAK,
        store="list",
        count=100_000,
        at_most=64 * MIB,
    ),
)


def select(names: list[str]) -> list[Case]:
    """The cases whose name or title has one of `names` in it; all of them where there are no names."""
    wanted = [name.lower() for name in names]
    return [case for case in CASES if not wanted or any(n in case.name or n in case.title.lower() for n in wanted)]
