"""What goes over the wire is what AIStore's own package sends."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from etl_server.control import AIStoreClient, Bucket, Job, build_etl_spec, class_environment
from etl_server.wire.names import decode_path

from ..aistore_venv import aistore_python, needs_aistore
from .fake_cluster import FakeCluster

pytestmark = needs_aistore

NAME = "thumbnails"
SRC, DST = Bucket("src"), Bucket("dst")
JOB = Job("job-1", NAME)

CALLS: dict[str, Callable[[AIStoreClient], object]] = {
    "init": lambda client: client.init(build_etl_spec(NAME, "image:1", {"A": "1", "B": "x y"}, command=["run", "it"])),
    "init with everything": lambda client: client.init(
        build_etl_spec(
            NAME,
            "image:1",
            {"ETL_DIRECT_FQN": "true"},
            command=["run"],
            communication="ws",
            direct_put=True,
            init_timeout="1m",
            object_timeout="30s",
        )
    ),
    "init of a class": lambda client: client.init(
        build_etl_spec(
            NAME,
            "image:1",
            class_environment("payload", packages=["numpy", "pillow"], os_packages=["ffmpeg"], workers=3),
        )
    ),
    "list": lambda client: client.etls(),
    "details": lambda client: client.details(NAME),
    "details of a job": lambda client: client.details(NAME, "job-1"),
    "logs": lambda client: client.logs(NAME),
    "logs of a target": lambda client: client.logs(NAME, "t1"),
    "stop": lambda client: client.stop(NAME),
    "start": lambda client: client.start(NAME),
    "remove": lambda client: client.remove(NAME),
    "transform": lambda client: client.transform_bucket(NAME, SRC, DST),
    "transform with everything": lambda client: client.transform_bucket(
        NAME,
        SRC,
        DST,
        timeout="10m",
        prefix="a/",
        prepend="out/",
        extensions={"jpg": "png"},
        dry_run=True,
        workers=4,
        continue_on_error=True,
    ),
    "job status": lambda client: client.job_status(JOB),
    "job progress": lambda client: client.job_progress(JOB),
    "stop job": lambda client: client.stop_job(JOB),
    "object": lambda client: client.get_object(NAME, SRC, "d/ü b?#%.txt", "x=1&y +z").readall(),
}


@pytest.mark.parametrize("call", CALLS)
def test_it_sends_what_aistore_sends(call: str, client: AIStoreClient, cluster: FakeCluster) -> None:
    prepare(cluster, call)
    script = Path(__file__).parent / "aistore_calls.py"
    command = [str(aistore_python()), "-I", str(script), cluster.url, call]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    theirs = sent(cluster)
    prepare(cluster, call)
    CALLS[call](client)
    # Ours goes on to ask whether what it started runs.
    assert sent(cluster)[: len(theirs)] == theirs
    assert theirs


def prepare(cluster: FakeCluster, call: str) -> None:
    cluster.etls.clear()
    cluster.jobs.clear()
    cluster.seen.clear()
    cluster.buckets = {"src": {"d/ü b?#%.txt": b"hi", "a/b.jpg": b"b"}}
    if not call.startswith("init"):
        cluster.running(NAME)
    if call == "start":
        cluster.etls[NAME].stage = "Aborted"
    if "job" in call:
        with AIStoreClient(cluster.url) as client:
            client.transform_bucket(NAME, SRC, DST)
        cluster.seen.clear()


def sent(cluster: FakeCluster) -> list[tuple[Any, ...]]:
    """The requests, as far as they mean something."""
    return [
        (seen.node, seen.method, decode_path(seen.path), seen.query, normalised(seen.body)) for seen in cluster.seen
    ]


def normalised(body: Any) -> Any:
    """Without what is in the nature of each: the class itself, and the image and command that serve it."""
    if not isinstance(body, dict) or "runtime" not in body:
        return body
    runtime = body["runtime"]
    environment = {variable["name"]: variable["value"] for variable in runtime["env"]}
    if environment.pop("ETL_CLASS_PAYLOAD", None):
        runtime = {key: value for key, value in runtime.items() if key not in ("image", "command")}
    return body | {"runtime": runtime | {"env": environment}}
