"""Whatever is done to them, a directory, a bucket of S3 and a dictionary hold the same objects."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etl_server.errors import ObjectStoreTransientError
from etl_server.storage import LocalObjectStore, ObjectStore, RetryPolicy, S3ObjectStore

from .s3_proxy import S3Proxy, throttle
from .s3_servers import s3_client

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PART = 5 << 20
NAMES = st.sampled_from(["a.txt", "dir/a", "dir/b", "dir/sub/c", "dir2/a", "x y", "p%20q", "ü#?+&"])
CONTENTS = st.one_of(
    st.binary(max_size=100),
    st.builds(lambda byte, size: byte * size, st.binary(min_size=1, max_size=1), st.sampled_from([PART, PART + 1])),
)
STEPS = st.one_of(
    st.tuples(st.just("put"), NAMES, CONTENTS),
    st.tuples(st.just("stream"), NAMES, CONTENTS),
    st.tuples(st.just("broken source"), NAMES, CONTENTS),
    st.tuples(st.just("throttled"), NAMES, CONTENTS),
    st.tuples(st.just("delete"), NAMES, st.just(b"")),
    st.tuples(st.just("list"), st.sampled_from(["", "d", "dir", "dir/", "dir/s", "zz"]), st.just(b"")),
    st.tuples(st.just("read"), NAMES, st.just(b"")),
)


def halves(content: bytes, *, broken: bool = False) -> Iterator[bytes]:
    yield content[: len(content) // 2]
    yield content[len(content) // 2 :]
    if broken:
        raise ValueError("the source broke")


def listed(store: ObjectStore, prefix: str) -> dict[str, int]:
    infos = list(store.list_objects(prefix))
    assert len({info.name for info in infos}) == len(infos)
    return {info.name: info.size for info in infos}


def do(store: ObjectStore, step: str, name: str, content: bytes, expected: dict[str, bytes]) -> None:
    """Take the step, and look at what came of it. `expected` is what there is afterwards."""
    if step == "put":
        assert store.put_object(name, content).size == len(content)
    elif step == "stream":
        assert store.put_object(name, halves(content)).size == len(content)
    elif step == "broken source":
        with pytest.raises(ValueError, match="the source broke"):
            store.put_object(name, halves(content, broken=True))
    elif step == "delete":
        store.delete_object(name)
    elif step == "list":
        assert listed(store, name) == {key: len(value) for key, value in expected.items() if key.startswith(name)}
    elif name in expected:
        with store.open_object(name) as stream:
            assert stream.read() == expected[name]
    else:
        assert not store.exists(name)


@given(steps=st.lists(STEPS, max_size=12))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_directory_bucket_and_dictionary_agree(
    steps: list[tuple[str, str, bytes]], s3: S3Client, s3_proxy: S3Proxy
) -> None:
    expected: dict[str, bytes] = {}
    bucket = f"agree-{uuid.uuid4()}"
    s3.create_bucket(Bucket=bucket)
    policy = RetryPolicy(tries=2, first_wait=0.01)
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalObjectStore(folder) as local,
        S3ObjectStore(bucket, client=s3_client(s3_proxy.url), part_size=PART, policy=policy) as remote,
    ):
        for step, name, content in steps:
            if step == "throttled":
                s3_proxy.inject(throttle(), times=None, when=lambda request: request.method in ("PUT", "POST"))
                with pytest.raises(ObjectStoreTransientError):
                    remote.put_object(name, halves(content))
                s3_proxy.clear()
                continue
            if step in ("put", "stream"):
                expected[name] = content
            elif step == "delete":
                expected.pop(name, None)
            for store in (local, remote):
                do(store, step, name, content, expected)
        for store in (local, remote):
            assert listed(store, "") == {name: len(content) for name, content in expected.items()}
            for name in expected:
                do(store, "read", name, b"", expected)
        left = [path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()]
        assert sorted(left) == sorted(expected)
