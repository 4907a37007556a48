"""What a cluster tells of its ETLs and jobs."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

RUNNING = "Running"
ABORTED = "Aborted"


@dataclass(frozen=True)
class ETLInfo:
    """An ETL in the list of them."""

    name: str
    stage: str
    """`Initializing`, `Running` or `Aborted`; the last also of one that was stopped."""
    job: str
    """The id of the job that the running ETL is to the cluster."""
    objects: int
    """How many objects it has transformed as they were read."""
    bytes_in: int
    """Of these objects as they were read."""
    bytes_out: int
    """Of what was made of them."""

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> ETLInfo:
        return cls(
            name=str(fields["id"]),
            stage=str(fields.get("stage", "")),
            job=str(fields.get("xaction_id", "")),
            objects=int(fields.get("obj_count", 0)),
            bytes_in=int(fields.get("in_bytes", 0)),
            bytes_out=int(fields.get("out_bytes", 0)),
        )


@dataclass(frozen=True)
class ObjectError:
    """An object that could not be transformed."""

    object: str
    """Its name."""
    status: int
    """The HTTP status that the ETL, or the target, gave it; 0: none is known."""
    message: str
    """Why, in their words."""

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> ObjectError:
        return cls(str(fields["obj_name"]), int(fields.get("ecode", 0)), str(fields.get("msg", "")))


@dataclass(frozen=True)
class ETLDetails:
    """How an ETL was started, and the objects that it failed for."""

    name: str
    communication: str
    """`hpush`, `hpull` or `ws`."""
    image: str
    """Empty, for an ETL that was started with a pod of its own."""
    command: tuple[str, ...]
    variables: tuple[str, ...]
    """The names of the container's environment variables. Their values may be secrets."""
    init_timeout: str
    """How long it may take to run, as `5m`."""
    object_timeout: str
    """How long a target waits for one object, as `45s`."""
    direct_put: bool
    """Whether it may deliver to the destination itself."""
    errors: tuple[ObjectError, ...]
    """The objects that failed: those that were read, or those of the job that was asked for."""

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> ETLDetails:
        message = fields["init_msg"]
        runtime = message.get("runtime") or {}
        return cls(
            name=str(message["name"]),
            communication=str(message.get("communication", "")).removesuffix("://"),
            image=str(runtime.get("image", "")),
            command=tuple(map(str, runtime.get("command") or ())),
            variables=tuple(str(variable["name"]) for variable in runtime.get("env") or ()),
            init_timeout=str(message.get("init_timeout", "")),
            object_timeout=str(message.get("obj_timeout", "")),
            direct_put=bool(message.get("support_direct_put", False)),
            errors=tuple(map(ObjectError.parse, fields.get("obj_errors") or ())),
        )


@dataclass(frozen=True)
class NodeHealth:
    """The state of one target's pod."""

    target: str
    """The id of the target."""
    status: str
    """In the words of the cluster, as `Running`."""

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> NodeHealth:
        return cls(str(fields["target_id"]), str(fields.get("health_status", "")))


@dataclass(frozen=True)
class NodeMetrics:
    """What one target's pod uses."""

    target: str
    """The id of the target."""
    cpu: float
    """Cores."""
    memory: int
    """Bytes."""

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> NodeMetrics:
        return cls(str(fields["target_id"]), float(fields.get("cpu", 0)), int(fields.get("mem", 0)))


@dataclass(frozen=True)
class NodeLogs:
    """What one target's pod has written."""

    target: str
    """The id of the target."""
    text: str

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> NodeLogs:
        text = base64.b64decode(fields.get("logs") or "").decode("utf-8", "replace")
        return cls(str(fields["target_id"]), text)


@dataclass(frozen=True)
class Job:
    """A bucket on its way through an ETL."""

    id: str
    etl: str
    """The ETL's name."""


@dataclass(frozen=True)
class JobStatus:
    """Whether a job goes on, and how it ended."""

    finished: bool
    """Whether it has ended, however that was."""
    aborted: bool
    error: str
    """What ended it; empty: no error did."""

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> JobStatus:
        return cls(bool(fields["end_time"]), bool(fields.get("aborted", False)), str(fields.get("err") or ""))


@dataclass(frozen=True)
class JobProgress:
    """How far a job is, on all targets together."""

    objects: int
    """Objects that are done."""
    bytes: int
    """Of the objects that were read."""

    @classmethod
    def parse(cls, targets: Mapping[str, Any]) -> JobProgress:
        stats = [snapshot.get("stats") or {} for snapshots in targets.values() for snapshot in snapshots or ()]
        return cls(
            sum(int(each.get("loc-objs", 0)) for each in stats), sum(int(each.get("loc-bytes", 0)) for each in stats)
        )
