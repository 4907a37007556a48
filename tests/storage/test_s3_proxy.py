"""The tests' own servers: what they inject arrives as the real thing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError, ResponseStreamingError

from tests.raw_client import PATIENCE

from . import s3_proxy as faults
from .s3_proxy import S3Proxy
from .s3_servers import aio_s3_client, s3_client

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BODY = bytes(range(256)) * 1024


def test_requests_pass_unchanged(s3_proxy: S3Proxy, s3: S3Client, bucket: str) -> None:
    client = s3_client(s3_proxy.url)
    client.put_object(Bucket=bucket, Key="a b/ü+%.bin", Body=BODY, Metadata={"name": "value"})
    answer = client.get_object(Bucket=bucket, Key="a b/ü+%.bin")
    assert answer["Body"].read() == BODY
    assert answer["Metadata"] == s3.head_object(Bucket=bucket, Key="a b/ü+%.bin")["Metadata"] != {}
    assert s3.head_object(Bucket=bucket, Key="a b/ü+%.bin")["ContentLength"] == len(BODY)
    assert s3_proxy.operations == ["PutObject", "GetObject"]


async def test_requests_of_aiobotocore_pass_unchanged(s3_proxy: S3Proxy, bucket: str) -> None:
    async with aio_s3_client(s3_proxy.url) as client:
        await client.put_object(Bucket=bucket, Key="key", Body=BODY)
        assert await (await client.get_object(Bucket=bucket, Key="key"))["Body"].read() == BODY


def test_a_wrong_key_is_refused_through_the_proxy(s3_proxy: S3Proxy, bucket: str) -> None:
    with pytest.raises(ClientError, match="InvalidAccessKeyId"):
        s3_client(s3_proxy.url, access_key="nobody").get_object(Bucket=bucket, Key="key")


@pytest.mark.parametrize(
    ("fault", "status", "code"), [(faults.throttle(), 503, "SlowDown"), (faults.internal_error(), 500, "InternalError")]
)
def test_the_nth_request_of_an_operation_is_answered_with_an_error(
    s3_proxy: S3Proxy, bucket: str, fault: faults.Fault, status: int, code: str
) -> None:
    client = s3_client(s3_proxy.url)
    s3_proxy.inject(fault, operation="PutObject", nth=2)
    client.put_object(Bucket=bucket, Key="1", Body=BODY)
    client.list_objects_v2(Bucket=bucket)
    with pytest.raises(ClientError) as refused:
        client.put_object(Bucket=bucket, Key="2", Body=BODY)
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert refused.value.response["Error"]["Code"] == code
    client.put_object(Bucket=bucket, Key="3", Body=BODY)


def test_a_reset_keeps_the_request_from_the_server(s3_proxy: S3Proxy, s3: S3Client, bucket: str) -> None:
    s3_proxy.inject(faults.reset())
    with pytest.raises(ConnectionClosedError):
        s3_client(s3_proxy.url).put_object(Bucket=bucket, Key="key", Body=BODY)
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket)


def test_a_lost_answer_leaves_the_server_with_what_was_sent(s3_proxy: S3Proxy, s3: S3Client, bucket: str) -> None:
    s3_proxy.inject(faults.lost_answer())
    with pytest.raises(ConnectionClosedError):
        s3_client(s3_proxy.url).put_object(Bucket=bucket, Key="key", Body=BODY)
    assert s3.get_object(Bucket=bucket, Key="key")["Body"].read() == BODY


def test_a_truncated_body_is_no_whole_one(s3_proxy: S3Proxy, s3: S3Client, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="key", Body=BODY)
    s3_proxy.inject(faults.truncate(1000), operation="GetObject")
    with pytest.raises(ResponseStreamingError):
        s3_client(s3_proxy.url).get_object(Bucket=bucket, Key="key")["Body"].read()


async def test_a_held_request_waits(s3_proxy: S3Proxy, s3: S3Client, bucket: str) -> None:
    hold = faults.Hold()
    s3_proxy.inject(hold, operation="PutObject")
    async with aio_s3_client(s3_proxy.url) as client:
        put = asyncio.ensure_future(client.put_object(Bucket=bucket, Key="key", Body=BODY))
        assert await asyncio.to_thread(hold.reached.wait, PATIENCE)
        assert "Contents" not in s3.list_objects_v2(Bucket=bucket)
        hold.release()
        await put
    assert len(s3.list_objects_v2(Bucket=bucket)["Contents"]) == 1
