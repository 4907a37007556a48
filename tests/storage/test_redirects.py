"""S3 clients that follow redirects: a gateway that answers nothing else, before a real server."""

from __future__ import annotations

import io
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import botocore.session
import pytest
import trustme
from botocore.exceptions import ClientError

from etl_server import RedirectError, follow_redirects

from .s3_proxy import S3Proxy, answer, redirect
from .s3_servers import ACCESS_KEY, REGION, SECRET_KEY, RcloneServer, aio_s3_client, s3_client

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BODY = bytes(range(256)) * 4096
STATUSES = (301, 302, 307, 308)


@pytest.fixture
def gateway(s3_server: RcloneServer, s3_proxy: S3Proxy) -> Iterator[S3Proxy]:
    """Redirects every request to a proxy before the server."""
    with S3Proxy(s3_server.url) as gateway:
        gateway.inject(redirect(307, s3_proxy.url), times=None)
        yield gateway


@pytest.mark.parametrize("early", [False, True], ids=["after the body", "before the body"])
@pytest.mark.parametrize("status", STATUSES)
def test_method_headers_and_body_go_to_the_new_host_signed_for_it(
    s3_proxy: S3Proxy, s3_server: RcloneServer, s3: S3Client, bucket: str, status: int, early: bool
) -> None:
    s3_proxy.inject(redirect(status, s3_server.url, early=early), times=None)
    client = follow_redirects(s3_client(s3_proxy.url))
    client.put_object(Bucket=bucket, Key="a b/ü", Body=BODY, ContentType="text/x-test")
    client.put_object(Bucket=bucket, Key="file", Body=io.BytesIO(BODY), ChecksumAlgorithm="SHA256")
    assert s3.get_object(Bucket=bucket, Key="a b/ü")["Body"].read() == BODY
    assert s3.head_object(Bucket=bucket, Key="a b/ü")["ContentType"] == "text/x-test"
    assert client.get_object(Bucket=bucket, Key="file")["Body"].read() == BODY
    assert client.head_object(Bucket=bucket, Key="file")["ContentLength"] == len(BODY)
    client.delete_object(Bucket=bucket, Key="file")
    with pytest.raises(ClientError, match="404"):
        client.head_object(Bucket=bucket, Key="file")


def test_other_clients_take_a_redirect_for_an_error(s3_proxy: S3Proxy, s3_server: RcloneServer, bucket: str) -> None:
    s3_proxy.inject(redirect(307, s3_server.url), operation="PutObject")
    follow_redirects(s3_client(s3_proxy.url))
    with pytest.raises(ClientError, match="307"):
        s3_client(s3_proxy.url).put_object(Bucket=bucket, Key="key", Body=BODY)


def test_files_go_up_and_down_in_parts(gateway: S3Proxy, bucket: str, tmp_path: Path) -> None:
    source, goal = tmp_path / "source", tmp_path / "goal"
    source.write_bytes(BODY * 12)
    client = follow_redirects(s3_client(gateway.url))
    client.upload_file(str(source), bucket, "file")
    client.download_file(bucket, "file", str(goal))
    assert goal.read_bytes() == source.read_bytes()
    assert gateway.operations.count("UploadPart") > 1


def test_paginators_follow(gateway: S3Proxy, s3: S3Client, bucket: str) -> None:
    for number in range(5):
        s3.put_object(Bucket=bucket, Key=f"{number}")
    pages = follow_redirects(s3_client(gateway.url)).get_paginator("list_objects_v2")
    found = [
        item["Key"]
        for page in pages.paginate(Bucket=bucket, PaginationConfig={"PageSize": 2})
        for item in page["Contents"]
    ]
    assert found == ["0", "1", "2", "3", "4"]


def test_resources_follow(gateway: S3Proxy, bucket: str) -> None:
    resource = boto3.Session(ACCESS_KEY, SECRET_KEY, region_name=REGION).resource("s3", endpoint_url=gateway.url)
    item = follow_redirects(resource).Object(bucket, "key")
    item.put(Body=BODY)
    assert item.get()["Body"].read() == BODY


def test_clients_of_botocore_itself_follow(gateway: S3Proxy, s3: S3Client, bucket: str) -> None:
    client: Any = botocore.session.get_session().create_client(
        "s3",
        region_name=REGION,
        endpoint_url=gateway.url,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
    )
    follow_redirects(client).put_object(Bucket=bucket, Key="key", Body=BODY)
    assert s3.get_object(Bucket=bucket, Key="key")["Body"].read() == BODY


def test_presigned_urls_are_as_before(gateway: S3Proxy, bucket: str) -> None:
    client = follow_redirects(s3_client(gateway.url))
    url = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "key"})
    assert url.startswith(f"{gateway.url}/{bucket}/key?")
    assert gateway.requests == []


@pytest.mark.parametrize("status", STATUSES)
async def test_aiobotocore_follows(s3_proxy: S3Proxy, s3_server: RcloneServer, bucket: str, status: int) -> None:
    s3_proxy.inject(redirect(status, s3_server.url), times=None)
    async with aio_s3_client(s3_proxy.url) as client:
        follow_redirects(client)
        await client.put_object(Bucket=bucket, Key="key", Body=io.BytesIO(BODY))
        assert await (await client.get_object(Bucket=bucket, Key="key"))["Body"].read() == BODY
        pages = client.get_paginator("list_objects_v2")
        assert [item["Key"] async for page in pages.paginate(Bucket=bucket) for item in page["Contents"]] == ["key"]


def test_three_redirects_are_followed_and_the_fourth_is_an_error(s3_proxy: S3Proxy, s3: S3Client, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="key", Body=BODY)
    client = follow_redirects(s3_client(s3_proxy.url))
    s3_proxy.inject(redirect(307, s3_proxy.url), times=3)
    assert client.get_object(Bucket=bucket, Key="key")["Body"].read() == BODY
    s3_proxy.clear()
    s3_proxy.inject(redirect(307, s3_proxy.url), times=None)
    with pytest.raises(RedirectError, match="at most 3") as failed:
        client.get_object(Bucket=bucket, Key="key")
    assert failed.value.hops == [f"{s3_proxy.url}/{bucket}/key"] * 5
    assert len(s3_proxy.requests) == 4


def test_a_redirect_without_a_location_stays_an_error(s3_proxy: S3Proxy, bucket: str) -> None:
    s3_proxy.inject(answer(308, "PermanentRedirect"), operation="PutObject")
    with pytest.raises(ClientError, match="PermanentRedirect"):
        follow_redirects(s3_client(s3_proxy.url)).put_object(Bucket=bucket, Key="key", Body=BODY)


def test_a_redirect_to_another_region_is_left_to_botocore(s3_proxy: S3Proxy, s3: S3Client, bucket: str) -> None:
    headers = {"x-amz-bucket-region": "eu-west-1", "Location": "http://127.0.0.1:1/"}
    s3_proxy.inject(answer(301, "PermanentRedirect", headers), operation="PutObject")
    follow_redirects(s3_client(s3_proxy.url)).put_object(Bucket=bucket, Key="key", Body=BODY)
    assert "/eu-west-1/s3/" in s3_proxy.requests[-1].headers["Authorization"]
    assert s3.get_object(Bucket=bucket, Key="key")["Body"].read() == BODY


class Pipe(io.RawIOBase):
    """A body that can be read once."""

    def __init__(self, content: bytes) -> None:
        self._content = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._content.readinto(buffer)


@pytest.fixture
def https(s3_server: RcloneServer, tmp_path: Path) -> Iterator[tuple[S3Proxy, Path]]:
    """A gateway that speaks https, and the file of the authority that vouches for it."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with S3Proxy(s3_server.url, context) as gateway:
        yield gateway, tmp_path / "ca.pem"


def test_a_body_that_cannot_be_rewound_is_an_error_before_any_of_it_is_read(
    https: tuple[S3Proxy, Path], bucket: str
) -> None:
    gateway, ca = https
    client = follow_redirects(s3_client(gateway.url, verify=ca))
    pipe: Any = Pipe(BODY)
    with pytest.raises(RedirectError, match="cannot be rewound, Pipe: expected bytes or a seekable file"):
        client.put_object(Bucket=bucket, Key="key", Body=pipe, ContentLength=len(BODY))
    assert gateway.requests == []
    assert pipe.read() == BODY


@pytest.mark.parametrize("early", [False, True], ids=["after the body", "before the body"])
def test_a_file_is_sent_from_where_it_stands(
    s3_proxy: S3Proxy, s3_server: RcloneServer, s3: S3Client, bucket: str, early: bool
) -> None:
    s3_proxy.inject(redirect(307, s3_server.url, early=early), times=None)
    file = io.BytesIO(b"passed over" + BODY)
    file.seek(len(b"passed over"))
    follow_redirects(s3_client(s3_proxy.url)).put_object(Bucket=bucket, Key="key", Body=file)
    assert s3.get_object(Bucket=bucket, Key="key")["Body"].read() == BODY


@pytest.mark.parametrize(("secure", "plain"), [("https", "http"), ("https", "HTTP"), ("HTTPS", "http")])
def test_nothing_goes_from_https_to_http_unless_allowed(
    https: tuple[S3Proxy, Path], s3_proxy: S3Proxy, s3: S3Client, bucket: str, secure: str, plain: str
) -> None:
    gateway, ca = https
    gateway.inject(redirect(307, s3_proxy.url.replace("http", plain)), times=None)
    # rclone takes no checksum that comes behind a body of chunks, as botocore sends it over https.
    url = gateway.url.replace("https", secure)
    client = follow_redirects(s3_client(url, verify=ca, request_checksum_calculation="when_required"))
    with pytest.raises(RedirectError, match="https to http: expected follow_redirects"):
        client.put_object(Bucket=bucket, Key="key", Body=BODY)
    assert s3_proxy.requests == []
    follow_redirects(client, allow_http=True)
    client.put_object(Bucket=bucket, Key="key", Body=io.BytesIO(BODY))
    assert s3.get_object(Bucket=bucket, Key="key")["Body"].read() == BODY


async def test_aiobotocore_follows_three_and_sends_no_body_that_cannot_be_rewound(
    s3_proxy: S3Proxy, s3: S3Client, bucket: str
) -> None:
    s3.put_object(Bucket=bucket, Key="key", Body=BODY)
    async with aio_s3_client(s3_proxy.url) as client:
        follow_redirects(client)
        s3_proxy.inject(redirect(307, s3_proxy.url), times=3)
        assert await (await client.get_object(Bucket=bucket, Key="key"))["Body"].read() == BODY
        s3_proxy.clear()
        s3_proxy.inject(redirect(307, s3_proxy.url), times=None)
        with pytest.raises(RedirectError, match="at most 3") as failed:
            await client.get_object(Bucket=bucket, Key="key")
        assert failed.value.hops == [f"{s3_proxy.url}/{bucket}/key"] * 5
        assert len(s3_proxy.requests) == 4
        s3_proxy.clear()
        pipe: Any = Pipe(BODY)
        with pytest.raises(RedirectError, match="cannot be rewound, Pipe"):
            await client.put_object(Bucket=bucket, Key="key", Body=pipe, ContentLength=len(BODY))
        assert s3_proxy.requests == []
        assert pipe.read() == BODY


async def test_aiobotocore_goes_from_https_to_http_only_where_allowed(
    https: tuple[S3Proxy, Path], s3_proxy: S3Proxy, s3: S3Client, bucket: str
) -> None:
    gateway, ca = https
    gateway.inject(redirect(307, s3_proxy.url), times=None)
    async with aio_s3_client(gateway.url, verify=ca, request_checksum_calculation="when_required") as client:
        follow_redirects(client)
        with pytest.raises(RedirectError, match="https to http"):
            await client.put_object(Bucket=bucket, Key="key", Body=BODY)
        assert s3_proxy.requests == []
        follow_redirects(client, allow_http=True)
        await client.put_object(Bucket=bucket, Key="key", Body=BODY)
    assert s3.get_object(Bucket=bucket, Key="key")["Body"].read() == BODY


PATCHED = """
import asyncio, sys, boto3
url, bucket, access, secret = sys.argv[1:]
arguments = dict(endpoint_url=url, aws_access_key_id=access, aws_secret_access_key=secret, region_name="us-east-1")
boto3.setup_default_session()
import etl_server.botocore_patch
import aiobotocore.session, botocore.session, s3fs
client = boto3.client("s3", **arguments)
client.put_object(Bucket=bucket, Key="boto3", Body=b"1")
boto3.session.Session().resource("s3", **arguments).Object(bucket, "resource").put(Body=b"2")
botocore.session.get_session().create_client("s3", **arguments).put_object(Bucket=bucket, Key="botocore", Body=b"5")
async def main():
    async with aiobotocore.session.get_session().create_client("s3", **arguments) as client:
        await client.put_object(Bucket=bucket, Key="aiobotocore", Body=b"3")
asyncio.run(main())
fs = s3fs.S3FileSystem(key=access, secret=secret, endpoint_url=url)
fs.pipe(f"{bucket}/s3fs", b"4")
assert fs.cat(f"{bucket}/s3fs") == b"4"
print(*(item["Key"] for item in client.list_objects_v2(Bucket=bucket)["Contents"]))
"""


def test_the_patch_serves_every_client_of_a_process(gateway: S3Proxy, bucket: str) -> None:
    command = [sys.executable, "-c", PATCHED, gateway.url, bucket, ACCESS_KEY, SECRET_KEY]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.split() == ["aiobotocore", "boto3", "botocore", "resource", "s3fs"]
