from __future__ import annotations

import asyncio
import errno
import json
import os
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import trustme
from aiohttp import web
from pydantic import SecretStr

from etl_server import Settings
from etl_server.errors import ConfigError, ObjectStoreError, ObjectStoreTransientError, RedirectError
from etl_server.storage import AISObjectStore, RetryPolicy, open_store
from tests.aistore_venv import aistore_python, needs_aistore
from tests.helpers import UNREADABLE

from .ais_cluster import BUCKET, AISCluster, Fault

MIB = 1 << 20
CONTENT = os.urandom(9 * MIB + 123)
QUICK = RetryPolicy(tries=3, first_wait=0.01)


@pytest.fixture
def cluster() -> Iterator[AISCluster]:
    with AISCluster(page_size=10) as running:
        yield running


@pytest.fixture
def store(cluster: AISCluster) -> Iterator[AISObjectStore]:
    with AISObjectStore(BUCKET, "pre fix", endpoint=cluster.url, policy=QUICK) as opened:
        yield opened


def read(store: AISObjectStore, name: str, start: int = 0, stop: int | None = None) -> bytes:
    with store.open_object(name, start, stop) as stream:
        return stream.read()


def status(code: int) -> Fault:
    async def fault(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=code, text="injected")

    return fault


async def reset(request: web.BaseRequest) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


def truncate(content: bytes, size: int, header: str = "x: y") -> Fault:
    """Answer with the first `size` bytes of what would be the content."""

    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\n{header}\r\n\r\n"

    async def fault(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.write(head.encode() + content[:size])
        request.transport.close()
        return web.Response()

    return fault


def test_an_object_is_what_was_put(store: AISObjectStore, cluster: AISCluster) -> None:
    put = store.put_object("dir/obj", b"content", content_type="text/x-test")
    assert (put.name, put.size) == ("dir/obj", 7)
    assert cluster.objects == {"pre fix/dir/obj": b"content"}
    info = store.stat_object("dir/obj")
    assert (info.name, info.size) == ("dir/obj", 7)
    assert info.modified is not None
    assert info.modified.utcoffset() is not None
    assert [(listed.size, listed.etag) for listed in store.list_objects()] == [(7, info.etag)]
    assert read(store, "dir/obj") == b"content"
    assert store.get_uri("dir/obj") == f"ais://{BUCKET}/pre%20fix/dir/obj"
    assert store.exists("dir/obj")
    store.delete_object("dir/obj")
    store.delete_object("dir/obj")
    assert not store.exists("dir/obj")


@pytest.mark.parametrize("bounds", [(0, None), (2, 5), (2, None), (5, 99), (99, None), (7, 7), (5, 2), (0, 0), (7, 9)])
def test_a_range_is_a_slice(store: AISObjectStore, bounds: tuple[int, int | None]) -> None:
    store.put_object("obj", b"content")
    assert read(store, "obj", *bounds) == b"content"[slice(*bounds)]


@pytest.mark.parametrize("size", [0, 1, 64 << 10, (64 << 10) + 1, len(CONTENT)])
def test_a_body_goes_to_the_target_alone(store: AISObjectStore, cluster: AISCluster, tmp_path: Path, size: int) -> None:
    content = CONTENT[:size]
    (tmp_path / "up").write_bytes(content)
    told: list[tuple[int, int]] = []
    store.put_object("bytes", content)
    store.put_object("stream", iter([content[:10], content[10:]]))
    store.upload_object("file", tmp_path / "up", lambda done, total: told.append((done, total)))
    assert cluster.objects == {f"pre fix/{name}": content for name in ("bytes", "stream", "file")}
    assert told[-1] == (size, size)
    assert told == sorted(told)
    for request in cluster.requests:
        assert request.headers["Content-Length"] == str(size)
        assert (request.headers.get("Connection") == "close") == (request.node == "gateway" and size > 64 << 10)
    store.download_object("file", tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == content


def test_an_iterable_that_fails_leaves_the_old_object(store: AISObjectStore, cluster: AISCluster) -> None:
    def broken() -> Iterator[bytes]:
        yield CONTENT
        raise ValueError("the source broke")

    store.put_object("obj", b"old")
    with pytest.raises(ValueError, match="the source broke"):
        store.put_object("obj", broken())
    assert cluster.objects == {"pre fix/obj": b"old"}


def test_a_file_that_cannot_be_read_is_not_tried_again(store: AISObjectStore, cluster: AISCluster) -> None:
    cluster.objects["pre fix/obj"] = b"old"
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        store.upload_object("obj", UNREADABLE)
    assert len(cluster.requests) <= 2  # the session's own second one, in case that the connection is stale
    assert cluster.objects["pre fix/obj"] == b"old"


@pytest.mark.parametrize("error", [OSError, ValueError])
def test_a_callback_that_fails_is_not_tried_again(
    store: AISObjectStore, tmp_path: Path, error: type[Exception]
) -> None:
    (tmp_path / "up").write_bytes(CONTENT)
    told: list[int] = []

    def fail(done: int, total: int) -> None:
        told.append(done)
        raise error("stop")

    with pytest.raises(error, match="stop"):
        store.upload_object("obj", tmp_path / "up", fail)
    assert len(told) <= 2  # as above
    assert not store.exists("obj")


def test_missing_objects_and_buckets_are_named(store: AISObjectStore, cluster: AISCluster) -> None:
    for ask in (store.open_object, store.stat_object, store.get_object_size):
        with pytest.raises(FileNotFoundError) as caught:
            ask("not there")
        assert caught.value.filename == store.get_uri("not there")
    with AISObjectStore("nowhere", endpoint=cluster.url) as nowhere:
        for use in (lambda: list(nowhere.list_objects()), lambda: nowhere.put_object("a", b"")):
            with pytest.raises(FileNotFoundError, match="ais://nowhere"):
                use()


@pytest.mark.parametrize("fault", [status(500), status(503), status(429), reset], ids=["500", "503", "429", "reset"])
@pytest.mark.parametrize("node", ["gateway", "target"])
def test_what_may_pass_is_tried_again(store: AISObjectStore, cluster: AISCluster, node: str, fault: Fault) -> None:
    cluster.faults += [(node, fault)]
    store.put_object("obj", CONTENT)
    cluster.faults += [(node, fault)]
    assert read(store, "obj") == CONTENT
    assert cluster.faults == []


@pytest.mark.parametrize("node", ["gateway", "target"])
def test_a_node_that_does_not_answer_is_asked_again(cluster: AISCluster, node: str) -> None:
    async def silence(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.Event().wait()
        return web.Response()

    settings = Settings.load(io_timeout=1)
    with AISObjectStore(BUCKET, endpoint=cluster.url, settings=settings, policy=QUICK) as store:
        cluster.faults += [(node, silence)]
        store.put_object("obj", b"content")
        cluster.faults += [(node, silence)]
        assert read(store, "obj") == b"content"
        assert cluster.faults == []
        cluster.faults += [(node, silence)] * 2 * QUICK.tries  # the session asks once more each time
        with pytest.raises(ObjectStoreTransientError, match="timed out"):
            store.stat_object("obj")


def test_trying_again_has_an_end(store: AISObjectStore, cluster: AISCluster) -> None:
    for ask in (
        lambda: store.put_object("obj", b"content"),
        lambda: store.open_object("obj"),
        lambda: store.exists("obj"),
        lambda: next(store.list_objects()),
        lambda: store.delete_object("obj"),
    ):
        cluster.faults[:] = [("gateway", status(503))] * QUICK.tries
        with pytest.raises(ObjectStoreTransientError, match="503"):
            ask()
        assert cluster.faults == []


@pytest.mark.parametrize(("code", "error"), [(401, PermissionError), (403, PermissionError), (400, ObjectStoreError)])
def test_a_refusal_is_final(store: AISObjectStore, cluster: AISCluster, code: int, error: type[Exception]) -> None:
    cluster.faults += [("target", status(code))]
    with pytest.raises(error, match=str(code)):
        store.put_object("obj", b"content")
    assert [request.node for request in cluster.requests] == ["gateway", "target"]


def test_a_stream_that_is_cut_goes_on_where_it_was(store: AISObjectStore, cluster: AISCluster) -> None:
    etag = str(store.stat_object("obj").etag) if store.put_object("obj", CONTENT) else ""
    cluster.faults += [("target", truncate(CONTENT, 5 * MIB + 7, f"ais-checksum-value: {etag}"))]
    assert read(store, "obj") == CONTENT


def test_a_truncated_body_is_never_a_shorter_object(store: AISObjectStore, cluster: AISCluster, tmp_path: Path) -> None:
    cluster.faults += [("target", truncate(CONTENT, 0))] * 2 * QUICK.tries
    with pytest.raises(ObjectStoreTransientError), store.open_object("obj") as stream:
        stream.read()
    with pytest.raises(ObjectStoreTransientError):
        store.download_object("obj", tmp_path / "goal")
    assert list(tmp_path.iterdir()) == []


def test_an_answer_with_less_than_it_says_is_never_a_shorter_object(store: AISObjectStore, cluster: AISCluster) -> None:
    async def less(request: web.BaseRequest) -> web.StreamResponse:
        headers = {"Content-Range": f"bytes 0-99/{len(CONTENT)}", "ais-checksum-value": etag}
        return web.Response(status=206, body=CONTENT[:10], headers=headers)

    store.put_object("obj", CONTENT)
    etag = store.stat_object("obj").etag or ""
    cluster.faults += [("target", less)]
    assert read(store, "obj", 0, 100) == CONTENT[:100]


def test_an_answer_without_a_length_asks_for_it_once_in_every_try(store: AISObjectStore, cluster: AISCluster) -> None:
    async def refuse(request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "HEAD":
            return web.Response(status=503)
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        return response

    cluster.faults += [("target", refuse)] * 100
    with pytest.raises(ObjectStoreTransientError, match="503"):
        store.open_object("obj")
    asked = [request.method for request in cluster.requests if request.node == "target"]
    assert asked == ["GET", "HEAD"] * QUICK.tries


def test_an_object_that_is_replaced_while_it_is_read_is_an_error(store: AISObjectStore, cluster: AISCluster) -> None:
    store.put_object("obj", CONTENT[::-1])
    cluster.faults += [("target", truncate(CONTENT, 5 * MIB, "ais-checksum-value: other"))]
    with store.open_object("obj") as stream, pytest.raises(ObjectStoreError, match="replaced"):
        stream.read()


def test_without_checksums_the_version_tells_contents_of_one_size_apart(
    store: AISObjectStore, cluster: AISCluster
) -> None:
    cluster.versions = True
    etags = set()
    for content in (CONTENT, CONTENT[::-1]):
        store.put_object("obj", content)
        (listed,) = store.list_objects()
        assert listed.etag == store.stat_object("obj").etag is not None
        etags.add(listed.etag)
    assert len(etags) == 2
    cluster.faults += [("target", truncate(CONTENT, 5 * MIB, header="ais-version: other"))]
    with store.open_object("obj") as stream, pytest.raises(ObjectStoreError, match="replaced"):
        stream.read()


def test_a_list_is_asked_for_page_by_page(store: AISObjectStore, cluster: AISCluster) -> None:
    cluster.objects |= {f"pre fix/n{number:02}": b"" for number in range(25)} | {"pre": b"", "pre fix/": b""}
    listed = store.list_objects("n")
    first = next(listed)
    assert len(cluster.requests) == 1
    cluster.faults += [("gateway", reset)]
    assert [first.name, *(info.name for info in listed)] == [f"n{number:02}" for number in range(25)]
    assert len(cluster.requests) == 4
    assert [info.name for info in store.list_objects("zz")] == []
    assert len(list(store.list_objects())) == 25


@pytest.mark.parametrize("text", ["", "[]", '{"entries": 1}', '{"uuid": ""}'])
def test_an_answer_that_is_no_list_is_not_an_empty_one(store: AISObjectStore, cluster: AISCluster, text: str) -> None:
    async def nonsense(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text=text)

    cluster.faults += [("gateway", nonsense)]
    with pytest.raises(ObjectStoreError, match="no list"):
        list(store.list_objects())


NAMES = [
    "with space",
    "a#b",
    "a?b=c",
    "100%",
    "%2F",
    "%2e%2e/x",
    "a+b",
    "naïve/日本語/😀",
    "a//b",
    "/lead",
    "trail/",
    "~",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_itself(cluster: AISCluster, name: str, tmp_path: Path) -> None:
    with AISObjectStore(BUCKET, endpoint=cluster.url, policy=QUICK) as store:
        store.put_object(name, b"content")
        assert cluster.objects == {name: b"content"}
        assert [info.name for info in store.list_objects()] == [name]
        assert read(store, name) == b"content"
        store.download_object(name, tmp_path)
    assert [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()] == [b"content"]


@pytest.mark.parametrize("name", ["..", "../other", "a/../b", "./a", ""])
def test_a_name_that_urls_cannot_hold_is_refused(store: AISObjectStore, cluster: AISCluster, name: str) -> None:
    for ask in (store.get_uri, store.stat_object, store.open_object, store.delete_object):
        with pytest.raises(ValueError, match="object name"):
            ask(name)
    with pytest.raises(ValueError, match="object name"):
        store.put_object(name, b"")
    assert cluster.requests == []


# Redirects and credentials


def test_the_token_goes_to_the_gateway_and_the_target() -> None:
    with AISCluster(token="the-token") as cluster:
        settings = Settings.load(authn_token=SecretStr("the-token"))
        with AISObjectStore(BUCKET, endpoint=cluster.url, settings=settings) as store:
            store.put_object("obj", b"content")
            assert read(store, "obj") == b"content"
        with AISObjectStore(BUCKET, endpoint=cluster.url) as store, pytest.raises(PermissionError):
            store.stat_object("obj")


@pytest.mark.parametrize(("secure", "plain"), [("https", "http"), ("https", "HTTP"), ("HTTPS", "http")])
@pytest.mark.parametrize("token", ["the-token", ""])
def test_no_token_goes_from_https_to_http(tmp_path: Path, token: str, secure: str, plain: str) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    settings = Settings.load(client_ca=tmp_path / "ca.pem", authn_token=SecretStr(token))
    with AISCluster(token=token, tls=tls) as cluster:
        with AISObjectStore(BUCKET, endpoint=cluster.url, policy=QUICK) as stranger, pytest.raises(ObjectStoreError):
            stranger.stat_object("obj")
        cluster.location = lambda url: url.replace("http", plain)
        url = cluster.url.replace("https", secure)
        with AISObjectStore(BUCKET, endpoint=url, settings=settings, policy=QUICK) as store:
            assert list(store.list_objects()) == []
            if token:
                with pytest.raises(RedirectError, match="https to http"):
                    store.put_object("obj", b"content")
            else:
                store.put_object("obj", b"content")
        assert any(request.node == "target" for request in cluster.requests) == (not token)


def test_redirects_have_an_end_and_stay_with_the_object(store: AISObjectStore, cluster: AISCluster) -> None:
    cluster.objects["other"] = b"other"
    cluster.location = lambda url: url.replace("pre%20fix/obj", "other")
    with pytest.raises(RedirectError, match="another object"):
        store.delete_object("obj")
    assert cluster.objects == {"other": b"other"}
    cluster.location = lambda url: url[url.index("/v1") :]
    cluster.requests.clear()
    with pytest.raises(RedirectError, match="at most 3"):
        store.stat_object("obj")
    assert len(cluster.requests) == 4
    cluster.location = lambda url: "ftp" + url[4:]
    with pytest.raises(RedirectError, match="http"):
        store.stat_object("obj")


@pytest.mark.parametrize("there", [b"other", None], ids=["other", "missing"])
def test_a_put_that_something_else_acknowledged_is_no_success(
    store: AISObjectStore, cluster: AISCluster, there: bytes | None
) -> None:
    if there is not None:
        store.put_object("obj", there)
    cluster.faults += [("gateway", status(200))]
    with pytest.raises(FileNotFoundError if there is None else ObjectStoreError, match="obj"):
        store.put_object("obj", b"content")


def test_a_server_that_tells_no_checksum_has_stored_it_all_the_same(store: AISObjectStore, cluster: AISCluster) -> None:
    """As AIStore does of a bucket without checksums and versions."""

    async def untold(request: web.BaseRequest) -> web.StreamResponse:
        cluster.objects["pre fix/obj"] = b"content"
        return web.Response()

    cluster.faults += [("target", untold)]
    assert store.put_object("obj", b"content").etag is None
    assert read(store, "obj") == b"content"


def test_an_object_that_nobody_asked_the_body_of_was_not_stored(store: AISObjectStore, cluster: AISCluster) -> None:
    cluster.faults += [("gateway", status(200))]
    with pytest.raises(ObjectStoreError, match="expected a redirect"):
        store.put_object("obj", CONTENT)


def test_a_store_is_opened_by_uri(cluster: AISCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(f"ais://{BUCKET}/a%20b/?endpoint={cluster.url}/") as store:
        store.put_object("c", b"content")
    assert cluster.objects == {"a b/c": b"content"}
    with pytest.raises(ConfigError, match="AIS_ENDPOINT"):
        open_store(f"ais://{BUCKET}")
    monkeypatch.setenv("AIS_ENDPOINT", cluster.url)
    with open_store(f"ais://{BUCKET}") as store:
        assert [info.name for info in store.list_objects()] == ["a b/c"]


LIST = """
import sys
from aistore.sdk import Client
bucket = Client(sys.argv[1]).bucket("data")
try:
    bucket.list_objects(prefix="pre fix/d", props="name,size,checksum,version")
except Exception:
    pass  # it understands msgpack alone
"""


@needs_aistore
def test_a_list_is_asked_for_in_the_words_of_aistores_own_package(store: AISObjectStore, cluster: AISCluster) -> None:
    subprocess.run([aistore_python(), "-I", "-c", LIST, cluster.url], check=True, timeout=60)
    (theirs,) = cluster.requests
    cluster.requests.clear()
    list(store.list_objects("d"))
    (ours,) = cluster.requests
    assert (ours.method, ours.raw_path.partition("?")[0]) == (theirs.method, theirs.raw_path.partition("?")[0])
    assert parse_qs(urlsplit(ours.raw_path).query).items() <= parse_qs(urlsplit(theirs.raw_path).query).items()
    mine, its = json.loads(ours.body), json.loads(theirs.body)
    assert mine["action"] == its["action"]
    assert mine["value"].items() <= its["value"].items()
