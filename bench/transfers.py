"""`python -m bench.transfers ACTION BY URL FILE`: the process of one transfer; prints what that took, as JSON.

It imports nothing that it does not need: its memory is measured.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .cases import BOTO3, MIB, OURS

BUCKET = "bench"
BIG, UP = "big", "up"


def upload(url: str, file: str) -> dict[str, Any]:
    from etl_server.storage import S3ObjectStore

    with S3ObjectStore(BUCKET, endpoint_url=url) as store:
        return _timed(lambda: store.upload_object(UP, file))


def upload_by_boto3(url: str, file: str) -> dict[str, Any]:
    import boto3

    client = boto3.client("s3", endpoint_url=url)
    return _timed(lambda: client.upload_file(file, BUCKET, UP))


def download(url: str, file: str) -> dict[str, Any]:
    from etl_server.storage import S3ObjectStore

    with S3ObjectStore(BUCKET, endpoint_url=url) as store:
        return _timed(lambda: store.download_object(BIG, file))


def download_by_boto3(url: str, file: str) -> dict[str, Any]:
    import boto3

    client = boto3.client("s3", endpoint_url=url)
    return _timed(lambda: client.download_file(BUCKET, BIG, file))


def read(url: str, file: str) -> dict[str, Any]:
    """Read an object as a stream."""
    from etl_server.storage import S3ObjectStore

    def read_all() -> int:
        size = 0
        with S3ObjectStore(BUCKET, endpoint_url=url) as store, store.open_object(BIG) as stream:
            while piece := stream.read(MIB):
                size += len(piece)
        return size

    return _timed(read_all)


def list_all(url: str, file: str) -> dict[str, Any]:
    """List a bucket."""
    from etl_server.storage import S3ObjectStore

    with S3ObjectStore(BUCKET, endpoint_url=url) as store:
        started = time.perf_counter()
        objects = sum(1 for _ in store.list_objects())
        return {"objects": objects, "bytes": None, "seconds": time.perf_counter() - started}


ACTIONS: dict[tuple[str, str], Callable[[str, str], dict[str, Any]]] = {
    ("upload", OURS): upload,
    ("upload", BOTO3): upload_by_boto3,
    ("download", OURS): download,
    ("download", BOTO3): download_by_boto3,
    ("read", OURS): read,
    ("list", OURS): list_all,
}


def _timed(work: Callable[[], int | None]) -> dict[str, Any]:
    started = time.perf_counter()
    size = work()
    return {"objects": 1, "bytes": size, "seconds": time.perf_counter() - started}


def _peak() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    action, by, *arguments = sys.argv[1:]
    print(json.dumps({**ACTIONS[action, by](*arguments), "peak_bytes": _peak()}))
