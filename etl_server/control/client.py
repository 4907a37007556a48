"""A client of AIStore's control plane."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from functools import partial
from http import HTTPStatus
from threading import Thread
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote

from ..config import Settings, check_endpoint
from ..errors import ClusterError, ConfigError, ETLNotRunningError, JobFailedError
from ..runtime.clients import ResponseRawReader
from ..wire.buckets import Bucket, object_url_path
from ..wire.etl_spec import INIT_TIMEOUT, parse_duration
from ..wire.names import ETL_ARGS, check_etl_name
from .models import (
    ABORTED,
    RUNNING,
    ETLDetails,
    ETLInfo,
    Job,
    JobProgress,
    JobStatus,
    NodeHealth,
    NodeLogs,
    NodeMetrics,
)
from .transport import Transport

_TRANSFORM = "etl-bck"
_GRACE = 30.0
"""Seconds on top of an ETL's own init timeout, for the cluster to say what it came to."""

T = TypeVar("T")


class AIStoreClient:
    """An AIStore cluster: its ETLs, and buckets and objects through them. A context manager, or to be closed.

    Every method raises `ClusterError` when the cluster refuses, with its words and the status of its answer (404:
    there is no such thing, 409: there is one already, 401 and 403: the token), and `ClusterUnreachableError` when it
    cannot be talked to. What only asks is tried again then; what changes something is not, because it may have been
    done. A name that no ETL can have is a `ValueError`.
    """

    def __init__(
        self,
        url: str = "",
        settings: Settings | None = None,
        *,
        retries: int = 3,
        backoff: float = 0.5,
        poll: float = 1.0,
    ) -> None:
        """
        Args:
            url: the cluster's proxy, such as `http://proxy:51080`; default: the setting `AIS_ENDPOINT`.
            settings: TLS, token and timeouts; default: the environment's.
            retries: how often a question is repeated.
            backoff: seconds before the first repetition; each further one waits twice as long, 10 s at most.
            poll: seconds between two questions while waiting.

        Raises:
            ConfigError: the URL is none, or a setting has a bad value.
        """
        settings = settings or Settings.load()
        try:
            url = check_endpoint(url or settings.ais_endpoint)
        except ValueError as error:
            shown = settings.redact(url or settings.ais_endpoint)
            raise ConfigError(f"AIStore's URL {shown!r}: expected {error}") from None
        self._transport = Transport(url, settings, retries, backoff)
        self._poll = poll

    def __enter__(self) -> AIStoreClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    # Starting and stopping

    def init(self, spec: Mapping[str, Any], on_stage: Callable[[str], None] | None = None) -> ETLInfo:
        """Start a new ETL, and wait until it runs.

        Args:
            spec: what `build_etl_spec` gives.
            on_stage: called with the ETL's stage whenever that changes.

        Raises:
            ClusterError: with status 409: there is an ETL of this name already, running or not.
            ETLNotRunningError: it did not get to run. It stays listed, as aborted, until it is removed.
        """
        timeout = parse_duration(spec.get("init_timeout", INIT_TIMEOUT)) + _GRACE
        start = partial(self._transport.call_within, timeout, "PUT", "etl", body=dict(spec))
        return self._until_running(spec["name"], start, timeout, on_stage)

    def start(
        self, name: str, on_stage: Callable[[str], None] | None = None, init_timeout: str = INIT_TIMEOUT
    ) -> ETLInfo:
        """Start an ETL that was stopped, and wait until it runs. Raises as `init` does."""
        timeout = parse_duration(init_timeout) + _GRACE
        start = partial(self._transport.call_within, timeout, "POST", _etl(name, "start"))
        return self._until_running(name, start, timeout, on_stage)

    def stop(self, name: str) -> None:
        """Stop an ETL and what it is transforming. It stays listed, and can be started again."""
        self._transport.call("POST", _etl(name, "stop"))

    def remove(self, name: str) -> None:
        """Stop an ETL and remove it."""
        self._transport.call("DELETE", _etl(name))

    # Looking at them

    def etls(self) -> list[ETLInfo]:
        """The cluster's ETLs, by name."""
        return sorted(self._ask("etl", _each(ETLInfo.parse)), key=lambda etl: etl.name)

    def info(self, name: str) -> ETLInfo:
        """An ETL as it stands in the list.

        Raises:
            ClusterError: with status 404: there is no such ETL.
        """
        _etl(name)
        for etl in self.etls():
            if etl.name == name:
                return etl
        raise ClusterError(f"there is no ETL {name!r}", HTTPStatus.NOT_FOUND)

    def details(self, name: str, job: str = "") -> ETLDetails:
        """How a running ETL was started, and the objects that failed: those that were read, or those of a job.

        Args:
            job: the id of a job that transforms a bucket; empty: objects as they are read.
        """
        return self._ask(_etl(name), ETLDetails.parse, {"uuid": job})

    def health(self, name: str) -> list[NodeHealth]:
        """The state of a running ETL's pods."""
        return self._ask(_etl(name, "health"), _each(NodeHealth.parse))

    def metrics(self, name: str) -> list[NodeMetrics]:
        """What a running ETL's pods use."""
        return self._ask(_etl(name, "metrics"), _each(NodeMetrics.parse))

    def logs(self, name: str, target: str = "") -> list[NodeLogs]:
        """What a running ETL's pods have written; with `target`, that node's only."""
        return self._ask(_etl(name, "logs", *([target] if target else [])), _each(NodeLogs.parse))

    # Transforming

    def transform_bucket(
        self,
        name: str,
        source: Bucket,
        destination: Bucket,
        *,
        extensions: Mapping[str, str] | None = None,
        prefix: str = "",
        prepend: str = "",
        dry_run: bool = False,
        workers: int = 0,
        continue_on_error: bool = False,
        timeout: str = INIT_TIMEOUT,
    ) -> Job:
        """Begin to transform a bucket into another one. The job goes on by itself: see `wait_for_job`.

        Args:
            extensions: what the objects' extensions become, without dots: `{"jpg": "png"}`.
            prefix: transform the objects whose names begin with this.
            prepend: what the results' names begin with.
            dry_run: read and transform, and store nothing.
            workers: objects that a target transforms at once; 0: one a disk.
            continue_on_error: go on when an object fails, and do not end the job there.
            timeout: how long a request to the ETL may take, as in `parse_duration`.
        """
        value: dict[str, Any] = {"ext": dict(extensions)} if extensions else {}
        value |= {"num-workers": workers} if workers else {}
        value |= {"coer": True} if continue_on_error else {}
        value |= {"prefix": prefix, "prepend": prepend, "dry_run": dry_run}
        value |= {"force": False, "latest-ver": False, "synchronize": False}
        check_etl_name(name)
        value |= {"id": name, "request_timeout": timeout, "pipeline": None}
        id_ = self._transport.call(
            "POST",
            f"buckets/{source.name}",
            source.query() | {"bck_to": destination.uname()},
            {"action": _TRANSFORM, "name": "", "value": value},
        ).strip()
        if not id_:
            raise ClusterError("the cluster gives the job no id, so whether it succeeds cannot be known")
        return Job(id_, name)

    def job_status(self, job: Job) -> JobStatus:
        """Whether a job goes on, and how it ended."""
        return self._ask("cluster", JobStatus.parse, {"what": "status"}, _job_message(job))

    def job_progress(self, job: Job) -> JobProgress:
        """How far a job is."""
        return self._ask("cluster", JobProgress.parse, {"what": "qryxstats"}, _job_message(job))

    def stop_job(self, job: Job) -> None:
        """Abort a job. What it has stored stays."""
        self._transport.call("PUT", "cluster", body={"action": "stop", "name": "", "value": _job_message(job)})

    def wait_for_job(
        self,
        job: Job,
        on_progress: Callable[[JobProgress], None] | None = None,
        timeout: float | None = None,
    ) -> JobProgress:
        """Wait until a job has ended, and every object in it was transformed.

        Args:
            on_progress: called with how far the job is, time and again.
            timeout: seconds to wait; None: as long as it takes.

        Raises:
            JobFailedError: it was aborted, or ended with an error, or objects of it failed, which
                `details(job.etl, job.id).errors` lists.
            TimeoutError: it goes on after `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            status = self.job_status(job)
            progress = self.job_progress(job)
            if on_progress is not None:
                on_progress(progress)
            if status.finished:
                break
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"job {job.id} goes on after {timeout:g} s")
            time.sleep(self._poll)
        if status.aborted or status.error:
            how = "was aborted" if status.aborted else "ended with an error"
            raise JobFailedError(f"job {job.id} {how}" + (f": {status.error}" if status.error else ""))
        if errors := self.details(job.etl, job.id).errors:
            raise JobFailedError(f"job {job.id} ended, and {len(errors)} of its objects failed")
        return progress

    def get_object(self, name: str, bucket: Bucket, object_name: str, etl_args: str = "") -> ResponseRawReader:
        """Read an object through an ETL, as a stream to be closed.

        A result that breaks off fails the reading with `UpstreamUnreachableError`.
        """
        check_etl_name(name)
        query = bucket.query() | {"etl_name": name} | ({ETL_ARGS: etl_args} if etl_args else {})
        return ResponseRawReader(self._transport.open(object_url_path(bucket, object_name), query))

    def _ask(self, path: str, parse: Callable[[Any], T], query: Mapping[str, str] | None = None, body: Any = None) -> T:
        """What the answer to a GET says.

        Raises:
            ClusterError: it is not of the form that AIStore's have, for one.
        """
        answer = self._transport.get_json(path, query, body)
        try:
            return parse(answer)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ClusterError(f"the answer to {path} is not as expected: {type(error).__name__}: {error}") from error

    def _until_running(
        self, name: str, start: Callable[[], str], timeout: float, on_stage: Callable[[str], None] | None
    ) -> ETLInfo:
        """Ask for the start and wait until the ETL runs.

        A cluster answers once it runs, which takes minutes. Meanwhile the list of ETLs tells its stage.
        """
        answer: Future[str] = Future()
        Thread(target=_settle, args=(answer, start), daemon=True).start()
        deadline = time.monotonic() + timeout
        stage = ""
        while True:
            wait_for((answer,), timeout=self._poll)
            answered = answer.done()
            if answered and (failure := answer.exception()) is not None:
                if isinstance(failure, ClusterError) and failure.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                    raise ETLNotRunningError(f"{name} does not run: {failure.detail}", failure.status) from failure
                raise failure
            try:
                etl = self.info(name)
            except ClusterError as error:
                if answered and error.status != HTTPStatus.NOT_FOUND:
                    raise
                etl = None  # it takes a moment until it is listed
            if etl is not None and etl.stage != stage:
                stage = etl.stage
                if on_stage is not None:
                    on_stage(stage)
            if answered and etl is not None:
                if etl.stage == RUNNING:
                    return etl
                if etl.stage == ABORTED:
                    raise ETLNotRunningError(f"{name} does not run: the cluster lists it as aborted")
            if time.monotonic() >= deadline:
                raise ETLNotRunningError(f"{name} does not run after {timeout:g} s; stage: {stage or 'not listed'}")
            if answered:
                time.sleep(self._poll)


def _settle(future: Future[str], call: Callable[[], str]) -> None:
    try:
        future.set_result(call())
    except BaseException as error:
        future.set_exception(error)


def _etl(name: str, *rest: str) -> str:
    """The path of an ETL, or of something of it."""
    check_etl_name(name)
    return "/".join(["etl", name, *(quote(part, safe="") for part in rest)])


def _job_message(job: Job) -> dict[str, Any]:
    return {"ID": job.id, "Kind": _TRANSFORM, "DaemonID": "", "Bck": None, "Buckets": None}


def _each(parse: Callable[[Mapping[str, Any]], T]) -> Callable[[Any], list[T]]:
    return lambda answer: [parse(each) for each in answer or ()]
