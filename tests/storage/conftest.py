"""What the tests of storage share: S3 servers, buckets, and a proxy that makes things go wrong."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from .s3_proxy import S3Proxy
from .s3_servers import RcloneServer, moto_server, s3_client

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RcloneServer]:
    """rclone's S3 server of an empty directory; one for every process that runs tests."""
    with RcloneServer(tmp_path_factory.mktemp("s3")) as server:
        yield server.wait_until_listening()


@pytest.fixture(scope="session")
def s3(s3_server: RcloneServer) -> S3Client:
    """A boto3 client straight to that server, to put things there and to look at what is there."""
    return s3_client(s3_server.url)


@pytest.fixture
def bucket(s3_server: RcloneServer, s3: S3Client) -> str:
    """A new bucket of that server."""
    name = f"test-{uuid.uuid4()}"
    s3.create_bucket(Bucket=name)
    return name


@pytest.fixture
def s3_proxy(s3_server: RcloneServer) -> Iterator[S3Proxy]:
    """A proxy before that server."""
    with S3Proxy(s3_server.url) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    """URL of moto's server, for what rclone lacks."""
    with moto_server() as url:
        yield url
