"""An AIStore cluster as its clients see it: a proxy and a target on real sockets, which remember what they are told."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from etl_server.testing.loop_thread import LoopThread

Hook = Callable[[web.Request], Awaitable[web.StreamResponse | None]]
TARGET_ID = "t1"


@dataclass(frozen=True)
class Seen:
    """A request, as it came over the wire."""

    node: str
    """`proxy` or `target`."""
    method: str
    path: str
    """Escaped."""
    raw_query: str
    query: dict[str, str]
    body: Any
    """Decoded JSON; None: there was none."""
    authorization: str | None


@dataclass
class Etl:
    spec: dict[str, Any]
    stage: str = "Initializing"
    polls: int = 0
    """How often the list of ETLs was asked for while it was initializing."""


@dataclass
class Job:
    etl: str
    source: str
    destination: str
    message: dict[str, Any]
    todo: list[str]
    polls: int = 0
    done: list[str] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    bytes_in: int = 0
    end_time: int = 0
    error: str = ""
    aborted: bool = False


class FakeCluster:
    """Answers as a cluster does whose targets transform objects to upper case.

    Everything that a test sets is a public attribute and may be set at any time. A context manager.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None, target_tls: ssl.SSLContext | None = None) -> None:
        self.etls: dict[str, Etl] = {}
        self.jobs: dict[str, Job] = {}
        self.buckets: dict[str, dict[str, bytes]] = {}
        self.seen: list[Seen] = []
        self.on_request: Hook | None = None
        """Called first with every request; may answer in the cluster's stead, or cut the connection."""
        self.token = ""
        """What a request to the proxy must be authorised by; empty: nothing."""
        self.init_error = ""
        """Why the next ETLs do not get to run."""
        self.init_polls = 0
        """How often an ETL is seen initializing before it runs."""
        self.answers_before_running = False
        """Answer a start at once, and not when the ETL runs."""
        self.bad_objects: set[str] = set()
        """Objects whose transform fails."""
        self.job_error = ""
        """What jobs end with."""
        self.objects_per_poll = 1
        """How far a job gets from one question for its status to the next."""
        self._tls = (tls, target_tls)
        self._netlocs: list[str] = []
        self._runners: list[web.AppRunner] = []
        self._loop = LoopThread("fake cluster")

    def __enter__(self) -> FakeCluster:
        self._loop.run(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for runner in self._runners:
            self._loop.run(runner.cleanup())
        self._loop.close()

    @property
    def url(self) -> str:
        """Where the proxy is."""
        return self._url(0)

    @property
    def target_url(self) -> str:
        """Where the target is."""
        return self._url(1)

    def requests(self, method: str = "", path: str = "") -> list[Seen]:
        """What was asked of the proxy and the target, by method and beginning of the path."""
        return [seen for seen in self.seen if method in ("", seen.method) and seen.path.startswith(path)]

    def running(self, name: str, **spec: Any) -> None:
        """Have an ETL that runs."""
        self.etls[name] = Etl({"name": name, "communication": "hpush://", **spec}, "Running")

    def _url(self, node: int) -> str:
        return f"{'https' if self._tls[node] else 'http'}://{self._netlocs[node]}"

    async def _listen(self) -> None:
        for node, answer in (("proxy", self._proxy), ("target", self._target)):
            app = web.Application()
            app.router.add_route("*", "/{path:.*}", self._recorder(node, answer))
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self._tls[len(self._runners)]).start()
            self._netlocs.append(f"127.0.0.1:{runner.addresses[0][1]}")
            self._runners.append(runner)

    def _recorder(self, node: str, answer: Callable[[Seen], Awaitable[web.StreamResponse]]) -> Any:
        async def handle(request: web.Request) -> web.StreamResponse:
            body = await request.read()
            seen = Seen(
                node,
                request.method,
                request.rel_url.raw_path,
                request.rel_url.raw_query_string,
                dict(request.query),
                json.loads(body) if body else None,
                request.headers.get("authorization"),
            )
            self.seen.append(seen)
            if self.on_request is not None and (given := await self.on_request(request)) is not None:
                return given
            if node == "proxy" and self.token and seen.authorization != f"Bearer {self.token}":
                return problem(401, "token required")
            return await answer(seen)

        return handle

    async def _proxy(self, seen: Seen) -> web.StreamResponse:
        match seen.method, seen.path.removeprefix("/v1/").split("/"):
            case "GET", ["etl"]:
                return self._list()
            case "PUT", ["etl"]:
                name = seen.body["name"]
                if name in self.etls:
                    return problem(409, f"p[p1]: etl job {name} already exists")
                self.etls[name] = Etl(seen.body)
                return await self._start(name)
            case _, ["etl", name, *what]:
                if name not in self.etls:
                    return problem(404, f'p[p1]: "etl job {name}" does not exist')
                return await self._etl(seen, name, what)
            case "POST", ["buckets", bucket]:
                return self._transform(unquote(bucket), seen)
            case "GET", ["objects", *_]:
                location = f"{self.target_url}{seen.path}?{seen.raw_query}&pid=p1"
                return web.Response(status=307, headers={"location": location})
            case "GET", ["cluster"]:
                return self._job(seen)
            case "PUT", ["cluster"]:
                job = self.jobs[seen.body["value"]["ID"]]
                job.aborted, job.end_time = True, 1
                return web.Response()
        return problem(404, f"unknown path {seen.path}")

    async def _target(self, seen: Seen) -> web.StreamResponse:
        match seen.method, seen.path.removeprefix("/v1/").split("/"):
            case "GET", ["objects", bucket, *name]:
                objects = self.buckets.get(unquote(bucket))
                key = unquote("/".join(name))
                if objects is None:
                    return problem(404, f'bucket "ais://{unquote(bucket)}" does not exist')
                if key not in objects:
                    return problem(404, f'"ais://{unquote(bucket)}/{key}" does not exist')
                if seen.query.get("etl_name") not in self.etls:
                    return problem(404, f'"etl job {seen.query.get("etl_name")}" does not exist')
                if key in self.bad_objects:
                    return problem(500, "Processing error: this one is bad")
                return web.Response(body=objects[key].upper() + seen.query.get("etl_args", "").encode())
        return problem(404, f"unknown path {seen.path}")

    def _list(self) -> web.Response:
        for etl in self.etls.values():
            if etl.stage == "Initializing":
                etl.polls += 1
                if self.answers_before_running and etl.polls > self.init_polls:
                    etl.stage = "Aborted" if self.init_error else "Running"
        listed = [
            {
                "id": name,
                "stage": etl.stage,
                "xaction_id": f"etl-{name}",
                "obj_count": 3,
                "in_bytes": 30,
                "out_bytes": 9,
            }
            for name, etl in self.etls.items()
        ]
        return web.json_response(listed)

    async def _start(self, name: str) -> web.Response:
        etl = self.etls[name]
        etl.stage = "Initializing"
        if not self.answers_before_running:
            while etl.polls < self.init_polls:
                await asyncio.sleep(0.005)
            etl.stage = "Aborted" if self.init_error else "Running"
            if self.init_error:
                return problem(500, self.init_error)
        return web.Response(text=f"etl-{name}")

    async def _etl(self, seen: Seen, name: str, what: list[str]) -> web.Response:
        etl = self.etls[name]
        match seen.method, what:
            case "GET", _ if etl.stage != "Running":
                return problem(404, f'"ETL[{name}]" does not exist')
            case "GET", []:
                job = self.jobs.get(seen.query.get("uuid", ""))
                return web.json_response({"init_msg": etl.spec, "obj_errors": job.errors if job else []})
            case "GET", ["logs", *target]:
                if target and target != [TARGET_ID]:
                    return problem(400, f'unknown target "{target[0]}"')
                logs = base64.b64encode(f"listening\n{name}: ready\n".encode()).decode()
                return web.json_response([{"target_id": TARGET_ID, "logs": logs}])
            case "GET", ["health"]:
                return web.json_response([{"target_id": TARGET_ID, "health_status": etl.stage}])
            case "GET", ["metrics"]:
                return web.json_response([{"target_id": TARGET_ID, "cpu": 0.25, "mem": 52428800}])
            case "POST", ["start"]:
                if etl.stage != "Aborted":
                    return problem(400, f"can't start ETL[{name}] during {etl.stage} stage")
                return await self._start(name)
            case "POST", ["stop"]:
                etl.stage = "Aborted"
                return web.Response()
            case "DELETE", []:
                del self.etls[name]
                return web.Response()
        return problem(404, f"unknown path {seen.path}")

    def _transform(self, source: str, seen: Seen) -> web.Response:
        value = seen.body["value"]
        if source not in self.buckets:
            return problem(404, f'bucket "ais://{source}" does not exist')
        if value["id"] not in self.etls:
            return problem(404, f'"etl job {value["id"]}" does not exist')
        name = f"job-{len(self.jobs) + 1}"
        destination = seen.query["bck_to"].strip("/").rpartition("/")[2]
        todo = sorted(key for key in self.buckets[source] if key.startswith(value["prefix"]))
        self.jobs[name] = Job(value["id"], source, destination, value, todo)
        return web.Response(text=name)

    def _job(self, seen: Seen) -> web.Response:
        name = seen.body["ID"]
        job = self.jobs.get(name)
        if job is None:
            return problem(404, f'job "{name}" does not exist')
        if seen.query["what"] == "qryxstats":
            stats = {"loc-objs": str(len(job.done)), "loc-bytes": str(job.bytes_in)}
            snap = {"id": name, "kind": "etl-bck", "stats": stats, "aborted": job.aborted}
            return web.json_response({TARGET_ID: [snap]})
        for _ in range(self.objects_per_poll if not job.end_time else 0):
            if not job.todo:
                job.end_time, job.error = 1_790_000_000_000_000_000, self.job_error
                break
            self._transform_one(job, job.todo.pop(0))
        status = {"uuid": name, "end_time": job.end_time, "err": job.error, "aborted": job.aborted}
        return web.json_response(status)

    def _transform_one(self, job: Job, key: str) -> None:
        if key in self.bad_objects:
            message = "Processing error: this one is bad"
            job.errors.append({"obj_name": f"ais://{job.source}/{key}", "msg": message, "ecode": 500})
            return
        content = self.buckets[job.source][key]
        job.done.append(key)
        job.bytes_in += len(content)
        for old, new in job.message.get("ext", {}).items():
            if key.endswith(f".{old}"):
                key = key.removesuffix(old) + new
        if not job.message["dry_run"]:
            self.buckets.setdefault(job.destination, {})[job.message["prepend"] + key] = content.upper()


def problem(status: int, message: str) -> web.Response:
    """An error as AIStore answers it."""
    fields = {"message": message, "method": "GET", "url_path": "/v1/…", "node": "p[p1]", "status": status}
    return web.json_response(fields, status=status)


def cut(request: web.Request) -> web.Response:
    """Cut the connection, without any answer."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()
