from __future__ import annotations

import asyncio
import os
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPMessage, IncompleteRead
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etl_server.storage.object_paths import INCOMING
from etl_server.testing import Target
from etl_server.wire.checksum import CHECKSUM_TYPES, ChecksumType, checksum_of
from etl_server.wire.names import encode_uname
from etl_server.wire.pipeline import compose_etl_direct_put_url

from .odd_names import ODD_NAMES

Body = bytes | Iterator[bytes] | None


class Answer(NamedTuple):
    status: int
    headers: HTTPMessage
    body: bytes


def send(connection: HTTPConnection, method: str, path: str, body: Body, headers: dict[str, str]) -> Answer:
    connection.request(method, path, body, headers, encode_chunked=not isinstance(body, bytes | None))
    with connection.getresponse() as response:
        return Answer(response.status, response.headers, response.read())


def ask(target: Target, method: str, path: str, body: Body = None, **headers: str) -> Answer:
    """One request on a connection of its own; underscores in header names stand for dashes."""
    connection = HTTPConnection(target.netloc, timeout=30)
    try:
        return send(connection, method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    finally:
        connection.close()


def base_path(target: Target) -> str:
    return urlsplit(target.url).path


def object_path(target: Target, bucket: str, name: str) -> str:
    return f"{base_path(target)}/{encode_uname(target.uname(bucket, name))}"


def put(target: Target, bucket: str, name: str, body: Body, **headers: str) -> Answer:
    return ask(target, "PUT", object_path(target, bucket, name), body, **headers)


def get(target: Target, bucket: str, name: str) -> Answer:
    return ask(target, "GET", object_path(target, bucket, name))


def incoming(target: Target) -> list[Path]:
    """The unfinished objects of `dst`."""
    return list(target.path("dst", "x").parent.rglob(f"{INCOMING}*"))


@contextmanager
def raw_connection(target: Target) -> Iterator[socket.socket]:
    host, port = target.netloc.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        yield connection


# Reading


@pytest.mark.parametrize("checksum", CHECKSUM_TYPES)
def test_get_answers_with_content_length_and_checksum(tmp_path: Path, checksum: ChecksumType) -> None:
    content = os.urandom(100_000)
    (tmp_path / "obj").write_bytes(content)
    with Target({"src": tmp_path}, checksum=checksum) as target:
        answer = get(target, "src", "obj")
    assert answer.status == 200
    assert answer.body == content
    assert answer.headers["Content-Length"] == "100000"
    assert answer.headers["ais-checksum-type"] == checksum
    assert answer.headers["ais-checksum-value"] == checksum_of(checksum, content)


def test_without_a_checksum_none_comes(tmp_path: Path) -> None:
    (tmp_path / "obj").write_bytes(b"x")
    with Target({"src": tmp_path}, checksum=None) as target:
        answer = get(target, "src", "obj")
    assert answer.body == b"x"
    assert not [name for name in answer.headers if name.lower().startswith("ais-")]


def test_head_answers_what_get_would_but_the_body(target: Target) -> None:
    target.path("src", "obj").write_bytes(b"content")
    path = object_path(target, "src", "obj")
    connection = HTTPConnection(target.netloc, timeout=30)
    head = send(connection, "HEAD", path, None, {})
    got = send(connection, "GET", path, None, {})
    connection.close()
    assert (head.status, head.body) == (200, b"")
    assert got.body == b"content"
    for name in ("Content-Length", "Content-Type", "ais-checksum-type", "ais-checksum-value"):
        assert head.headers[name] == got.headers[name] is not None


def test_an_empty_object_is_read_and_written(target: Target) -> None:
    assert put(target, "dst", "empty", b"", Content_Length="0").status == 200
    answer = get(target, "dst", "empty")
    assert (answer.status, answer.body, answer.headers["Content-Length"]) == (200, b"", "0")
    assert answer.headers["ais-checksum-value"] == checksum_of("xxhash2", b"")
    assert target.names("dst") == ["empty"]


def test_a_reader_has_the_whole_old_object_while_it_is_replaced(target: Target) -> None:
    old, new = bytes(32 << 20), b"new"
    target.path("src", "obj").write_bytes(old)
    connection = HTTPConnection(target.netloc, timeout=30)
    connection.request("GET", object_path(target, "src", "obj"))
    response = connection.getresponse()
    begin = response.read(1)
    assert put(target, "src", "obj", new).status == 200
    assert begin + response.read() == old
    connection.close()
    assert get(target, "src", "obj").body == new


def test_a_file_that_shrinks_while_it_is_sent_is_no_whole_object(target: Target) -> None:
    file = target.path("src", "obj")
    file.touch()
    os.truncate(file, 256 << 20)
    connection = HTTPConnection(target.netloc, timeout=30)
    connection.request("GET", object_path(target, "src", "obj"))
    response = connection.getresponse()
    response.read(1)
    os.truncate(file, 1)
    with pytest.raises(IncompleteRead):
        response.read()
    connection.close()


def test_a_reader_that_goes_away_harms_nobody(target: Target, caplog: pytest.LogCaptureFixture) -> None:
    target.path("src", "obj").write_bytes(bytes(32 << 20))
    with raw_connection(target) as connection:
        connection.sendall(f"GET {object_path(target, 'src', 'obj')} HTTP/1.1\r\nHost: t\r\n\r\n".encode())
        connection.recv(1)
    assert len(get(target, "src", "obj").body) == 32 << 20
    target.stop()
    assert caplog.records == []


# Writing


def test_put_stores_and_answers_like_a_target(target: Target) -> None:
    answer = put(target, "dst", "dir/obj", b"content")
    assert (answer.status, answer.body, answer.headers["Content-Length"]) == (200, b"", "0")
    assert target.read("dst", "dir/obj") == b"content"
    assert target.path("dst", "dir/obj").read_bytes() == b"content"


def test_put_takes_a_chunked_body_of_any_size(target: Target) -> None:
    piece = os.urandom(1 << 20)
    assert put(target, "dst", "obj", iter([piece] * 5)).status == 200
    assert target.read("dst", "obj") == piece * 5


def test_put_stores_the_bytes_as_they_came(target: Target) -> None:
    assert put(target, "dst", "obj", b"not gzip at all", Content_Encoding="gzip").status == 200
    assert target.read("dst", "obj") == b"not gzip at all"


def test_put_lets_a_client_wait_for_its_consent(target: Target) -> None:
    head = f"PUT {object_path(target, 'dst', 'obj')} HTTP/1.1\r\nHost: t\r\nContent-Length: 4\r\n"
    with raw_connection(target) as connection:
        connection.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"body")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
    assert target.read("dst", "obj") == b"body"


@pytest.mark.parametrize("checksum", CHECKSUM_TYPES)
def test_put_with_the_right_checksum_is_stored(target: Target, checksum: ChecksumType) -> None:
    value = checksum_of(checksum, b"content")
    assert put(target, "dst", "obj", b"content", ais_checksum_type=checksum, ais_checksum_value=value).status == 200
    assert target.read("dst", "obj") == b"content"


@pytest.mark.parametrize("checksum", CHECKSUM_TYPES)
def test_put_with_a_wrong_checksum_is_refused_and_the_old_object_stays(target: Target, checksum: ChecksumType) -> None:
    put(target, "dst", "obj", b"old")
    value = checksum_of(checksum, b"content")
    answer = put(target, "dst", "obj", b"other content", ais_checksum_type=checksum, ais_checksum_value=value)
    assert answer.status == 400
    assert b"checksum" in answer.body
    assert target.read("dst", "obj") == b"old"
    assert incoming(target) == []


@pytest.mark.parametrize(
    "headers",
    [
        {"ais_checksum_type": "crc64", "ais_checksum_value": "0"},
        {"ais_checksum_type": "md5"},
        {"ais_checksum_value": checksum_of("md5", b"content")},
    ],
)
def test_put_with_an_unknown_or_incomplete_checksum_is_refused(target: Target, headers: dict[str, str]) -> None:
    answer = put(target, "dst", "obj", b"content", **headers)
    assert answer.status == 400
    assert b"expected one of xxhash2, md5, crc32c, sha256, sha512, with its value" in answer.body
    assert target.names("dst") == []
    assert incoming(target) == []


@pytest.mark.parametrize(
    "part",
    [
        b"Content-Length: 100\r\n\r\nonly a part",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n5\r\nse",
    ],
)
@pytest.mark.parametrize("reset", [False, True])
def test_a_put_that_is_cut_stores_nothing(target: Target, part: bytes, reset: bool) -> None:
    put(target, "dst", "obj", b"old")
    with raw_connection(target) as connection:
        connection.sendall(f"PUT {object_path(target, 'dst', 'obj')} HTTP/1.1\r\nHost: t\r\n".encode() + part)
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    record = target.wait_for_requests(2)[-1]
    assert (record.method, record.status) == ("PUT", 400)
    assert target.read("dst", "obj") == b"old"
    assert incoming(target) == []


def test_a_put_with_broken_framing_stores_nothing(target: Target) -> None:
    head = f"PUT {object_path(target, 'dst', 'obj')} HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n"
    with raw_connection(target) as connection:
        connection.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"5\r\nfirst\r\nzz\r\n0\r\n\r\n")
    assert target.wait_for_requests(1)[-1].status == 400
    assert target.names("dst") == []
    assert incoming(target) == []


def test_a_put_in_progress_when_the_target_stops_stores_nothing(tmp_path: Path) -> None:
    begun = threading.Event()

    async def note(request: web.Request) -> None:
        begun.set()

    target = Target({"dst": tmp_path}, on_request=note)
    target.start()
    with raw_connection(target) as connection:
        head = f"PUT {object_path(target, 'dst', 'obj')} HTTP/1.1\r\nHost: t\r\nContent-Length: 100\r\n\r\n"
        connection.sendall(head.encode() + b"a part")
        assert begun.wait(30)
        target.stop()
        while connection.recv(1000):
            pass
    assert list(tmp_path.iterdir()) == []


def test_concurrent_puts_of_one_object_leave_one_of_them_whole(target: Target) -> None:
    contents = [bytes([number]) * 300_000 for number in range(16)]
    put(target, "dst", "obj", contents[0])
    with ThreadPoolExecutor(8) as pool:
        puts = [pool.submit(put, target, "dst", "obj", content) for content in contents]
        gets = [pool.submit(get, target, "dst", "obj") for _ in range(16)]
        assert {future.result().status for future in puts} == {200}
        for answer in (future.result() for future in gets):
            assert answer.body in contents
            assert answer.headers["ais-checksum-value"] == checksum_of("xxhash2", answer.body)
    assert target.read("dst", "obj") in contents
    assert target.names("dst") == ["obj"]
    assert incoming(target) == []


def test_an_object_that_another_one_is_in_the_way_of_is_refused(target: Target) -> None:
    put(target, "dst", "a", b"object")
    assert put(target, "dst", "a/b", b"below it").status == 409
    assert put(target, "dst", "a/b/c", b"far below it").status == 409
    assert get(target, "dst", "a/b").status == 404
    put(target, "dst", "dir/c", b"object")
    assert put(target, "dst", "dir", b"above it").status == 409
    assert target.names("dst") == ["a", "dir/c"]
    assert incoming(target) == []


def test_a_name_that_is_too_long_for_a_file_is_refused(target: Target) -> None:
    assert put(target, "dst", "n" * 300, b"content").status == 409
    assert get(target, "dst", "n" * 300).status == 404
    assert incoming(target) == []


def test_a_bucket_s_directory_comes_with_its_first_object(tmp_path: Path) -> None:
    with Target({"dst": tmp_path / "not" / "yet"}) as target:
        assert target.names("dst") == []
        assert get(target, "dst", "obj").status == 404
        assert not (tmp_path / "not").exists()
        assert put(target, "dst", "obj", b"content").status == 200
        assert target.names("dst") == ["obj"]


def test_a_stopped_target_leaves_only_objects_behind(tmp_path: Path) -> None:
    with Target({"dst": tmp_path}) as target:
        put(target, "dst", "obj", b"content")
    assert list(tmp_path.rglob("*")) == [tmp_path / "obj"]


# Names


@pytest.mark.parametrize("name", ODD_NAMES)
def test_an_odd_name_goes_out_and_comes_back(target: Target, name: str) -> None:
    assert put(target, "dst", name, b"content").status == 200
    assert target.names("dst") == [name]
    assert get(target, "dst", name).body == b"content"
    assert target.read("dst", name) == b"content"
    assert target.requests[-1].uname == f"ais/@#/dst/{name}"


def test_a_long_name_and_a_long_header_are_taken(target: Target) -> None:
    name = "/".join(["é" * 100] * 15)
    assert put(target, "dst", name, b"content", X_Long="x" * 20_000).status == 200
    assert get(target, "dst", name).body == b"content"


def test_odd_names_are_objects_of_their_own(target: Target) -> None:
    names = [name for name in ODD_NAMES if name not in ("..", ".")]  # "../up" and "./here" want them as directories
    for number, name in enumerate(names):
        assert put(target, "dst", name, str(number).encode()).status == 200, name
    assert target.names("dst") == sorted(names)
    assert [target.read("dst", name) for name in names] == [str(number).encode() for number in range(len(names))]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(min_size=1, max_size=60).filter(lambda raw: b"\0" not in raw))
def test_any_name_is_stored_below_the_bucket_and_read_again(target: Target, raw: bytes) -> None:
    name = raw.decode("utf-8", "surrogateescape")
    # One object at a time, so that none is in the way of another.
    assert put(target, "dst", name, raw).status == 200
    assert target.names("dst") == [name]
    assert get(target, "dst", name).body == raw
    path = target.path("dst", name)
    path.unlink()
    for directory in list(path.parents)[: name.count("/")]:
        directory.rmdir()


def test_names_lead_nowhere_outside_the_bucket(target: Target, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"not an object")
    for name in ("../secret", "/../secret", "x/../../secret", f"{INCOMING}/../../secret", str(tmp_path / "secret")):
        assert get(target, "src", name).status == 404
        assert put(target, "src", name, b"stored").status == 200
    assert (tmp_path / "secret").read_bytes() == b"not an object"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret", "src"]


def test_ordinary_files_are_objects(target: Target, tmp_path: Path) -> None:
    (tmp_path / "src" / "dir").mkdir()
    (tmp_path / "src" / "dir" / "100% sure.txt").write_bytes(b"content")
    assert target.names("src") == ["dir/100% sure.txt"]
    assert get(target, "src", "dir/100% sure.txt").body == b"content"


# What is in a directory and no object


def test_a_link_is_followed_inside_the_bucket_only(target: Target, tmp_path: Path) -> None:
    source = tmp_path / "src"
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"not an object")
    (source / "file").write_bytes(b"content")
    (source / "inside").symlink_to("file")
    (source / "out").symlink_to(tmp_path / "outside" / "file")
    (source / "out_dir").symlink_to(tmp_path / "outside")
    (source / "dangling").symlink_to("nowhere")
    (source / "circle").symlink_to("circle")
    assert target.names("src") == ["file", "inside"]
    assert get(target, "src", "inside").body == b"content"
    for name in ("out", "out_dir/file", "dangling", "circle", "circle/x"):
        assert get(target, "src", name).status == 404, name
        with pytest.raises(FileNotFoundError):
            target.read("src", name)
    for name in ("circle/x", "circle/x/y"):
        assert put(target, "src", name, b"x").status == 409, name


def test_nothing_is_written_through_a_link_out_of_the_bucket(target: Target, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"not an object")
    (tmp_path / "src" / "out").symlink_to(tmp_path / "outside" / "file")
    (tmp_path / "src" / "out_dir").symlink_to(tmp_path / "outside")
    assert put(target, "src", "out_dir/new", b"x").status == 409
    assert put(target, "src", "out_dir/sub/new", b"x").status == 409
    assert put(target, "src", "out", b"takes the link's place").status == 200
    assert [path.read_bytes() for path in (tmp_path / "outside").iterdir()] == [b"not an object"]
    assert target.read("src", "out") == b"takes the link's place"


def test_only_regular_files_are_objects(target: Target, tmp_path: Path) -> None:
    (tmp_path / "src" / "dir").mkdir()
    os.mkfifo(tmp_path / "src" / "fifo")
    assert target.names("src") == []
    assert get(target, "src", "dir").status == 404
    assert get(target, "src", "fifo").status == 404


def test_an_unfinished_object_is_nowhere_to_be_seen(target: Target, tmp_path: Path) -> None:
    unfinished = tmp_path / "src" / INCOMING / "dir"
    unfinished.mkdir(parents=True)
    (unfinished / "part").write_bytes(b"a part")
    (tmp_path / "src" / "sub").mkdir()
    (tmp_path / "src" / "sub" / f"{INCOMING}-1").write_bytes(b"no object can have this name")
    assert target.names("src") == []
    assert get(target, "src", f"{INCOMING}/dir/part").status == 404


# Refusals


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "POST"])
@pytest.mark.parametrize(
    "base",
    [
        "/v1/etl/_object/dev/wrong",
        "/v1/etl/_object/dev/{secret}x",
        "/v1/etl/_object/dev/",
        "/v1/etl/_object/dev/%ff",
        "/v1/etl/_object/other/{secret}",
        "/v1/etl/_object//{secret}",
        "/v1/etl/_object/dev%2F{secret}/",
        "/v1/objects/dev/{secret}",
        "",
    ],
)
def test_who_does_not_know_the_secret_learns_and_changes_nothing(target: Target, method: str, base: str) -> None:
    target.path("src", "obj").write_bytes(b"content")
    secret = target.url.rpartition("/")[2]
    path = f"{base.format(secret=secret)}/{encode_uname('ais/@#/src/obj')}"
    answer = ask(target, method, path, b"changed" if method in ("PUT", "POST") else None)
    assert answer.status == 403
    assert b"content" not in answer.body
    assert secret.encode() not in answer.body
    assert target.read("src", "obj") == b"content"


def test_each_target_has_a_secret_of_its_own(tmp_path: Path) -> None:
    with Target({"src": tmp_path}) as one, Target({"src": tmp_path}) as other:
        assert one.url.rpartition("/")[2] != other.url.rpartition("/")[2]
        assert other.url.rpartition("/")[2] not in repr(other)


def test_a_secret_and_a_name_may_be_any_text(tmp_path: Path) -> None:
    (tmp_path / "obj").write_bytes(b"content")
    with Target({"src": tmp_path}, etl_name="é l/1", secret="a/b %?#é") as target:
        assert get(target, "src", "obj").body == b"content"


@pytest.mark.parametrize(
    "uname", ["aws/@#/src/obj", "ais/@uuid#ns/src/obj", "ais/@#/none/obj", "ais/@#/src/none", "ais/@#/dst/obj"]
)
def test_an_unknown_bucket_or_object_is_not_found(target: Target, uname: str) -> None:
    target.path("src", "obj").write_bytes(b"content")
    for method in ("GET", "HEAD"):
        assert ask(target, method, f"{base_path(target)}/{encode_uname(uname)}").status == 404


def test_put_into_an_unknown_bucket_is_not_found(target: Target) -> None:
    assert put(target, "none", "obj", b"content").status == 404


@pytest.mark.parametrize(
    "segment",
    [
        "",
        "obj",
        "src%2Fobj",
        "ais%2Fsrc%2Fobj",
        "ais%2F@%23%2Fsrc",
        "ais%2F@%23%2Fsrc%2F",
        "ais%2F@%23%2F%2Fobj",
        "%2F@%23%2Fsrc%2Fobj",
        "ais%2F@%2Fsrc%2Fobj",
        "ais%2F%23%2Fsrc%2Fobj",
        "ais/@%23/src/obj",
        "ais%2F@%23%2Fsrc/obj",
        "ais%252F@%2523%252Fsrc%252Fobj",
        "ais%2F@%23%2Fsrc%2Fobj%00",
        "ais%2F@#%2Fsrc%2Fobj",
    ],
)
def test_a_malformed_uname_is_a_bad_request(target: Target, segment: str) -> None:
    target.path("src", "obj").write_bytes(b"content")
    for method, body in (("GET", None), ("HEAD", None), ("PUT", b"x")):
        assert ask(target, method, f"{base_path(target)}/{segment}", body).status == 400
    assert target.names("src") == ["obj"]
    assert target.read("src", "obj") == b"content"


def test_a_path_without_a_uname_is_a_bad_request(target: Target) -> None:
    assert ask(target, "GET", base_path(target)).status == 400


@pytest.mark.parametrize("method", ["POST", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods_are_refused(target: Target, method: str) -> None:
    target.path("src", "obj").write_bytes(b"content")
    answer = ask(target, method, object_path(target, "src", "obj"))
    assert answer.status == 405
    assert set(re.split(r",\s*", answer.headers["Allow"])) == {"GET", "HEAD", "PUT"}
    assert target.read("src", "obj") == b"content"


# What it tells of itself


@pytest.mark.parametrize("name", ["obj", "dir/a b#c?d%e+f&g", "/leading", "naïve"])
def test_a_destination_is_where_an_etl_server_puts_an_object(target: Target, name: str) -> None:
    destination = target.destination("dst", name)
    parts = urlsplit(destination)
    assert parts.netloc == target.netloc
    assert parts.path == "/" + quote(f"ais/@#/dst/{name}", safe="@")
    assert re.fullmatch(r"uuid=[^&]+&owt=\d+", parts.query)
    url = urlsplit(compose_etl_direct_put_url(destination, target.url, "src/whatever", "args=1"))
    assert ask(target, "PUT", f"{url.path}?{url.query}", b"content").status == 200
    assert target.read("dst", name) == b"content"
    assert target.requests[-1].query == f"{parts.query}&etl_args=args%3D1"


def test_unames_name_bucket_and_object(target: Target) -> None:
    assert target.uname("src", "dir/obj") == "ais/@#/src/dir/obj"


def test_requests_are_on_record_with_what_they_said_and_got(target: Target) -> None:
    put(target, "dst", "a b", b"content", X_Mark="here")
    get(target, "dst", "none")
    ask(target, "GET", object_path(target, "dst", "a b") + "?latest-ver=true&x=%2B")
    ask(target, "POST", "/no/object's/path/at/all")
    first, second, third, fourth = target.requests
    assert (first.method, first.uname, first.status) == ("PUT", "ais/@#/dst/a b", 200)
    assert (first.raw_uname, first.query) == ("ais%2F@%23%2Fdst%2Fa%20b", "")
    assert first.headers["x-mark"] == "here"
    assert "here" not in repr(first)
    assert (second.method, second.uname, second.status) == ("GET", "ais/@#/dst/none", 404)
    assert (third.method, third.query, third.status) == ("GET", "latest-ver=true&x=%2B", 200)
    assert (fourth.method, fourth.uname, fourth.status) == ("POST", "", 403)


def test_the_record_of_requests_is_bounded(target: Target) -> None:
    connection = HTTPConnection(target.netloc, timeout=30)
    for _ in range(10_005):
        send(connection, "DELETE", "/", None, {})
    get(target, "src", "last")
    connection.close()
    assert len(target.requests) == 10_000
    assert target.requests[-1].uname == "ais/@#/src/last"


def test_waiting_for_requests_ends_with_the_last_of_them(target: Target) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(target.wait_for_requests, 2)
        get(target, "src", "one")
        get(target, "src", "two")
        assert [record.uname for record in waiting.result()] == ["ais/@#/src/one", "ais/@#/src/two"]


def test_waiting_for_requests_that_do_not_come_is_a_timeout(target: Target) -> None:
    get(target, "src", "one")
    with pytest.raises(TimeoutError, match="1 of 2"):
        target.wait_for_requests(2, timeout=0.01)


def test_open_connections_are_counted(target: Target) -> None:
    connections = [HTTPConnection(target.netloc, timeout=30) for _ in range(3)]
    for number, connection in enumerate(connections):
        assert target.open_connections == number
        send(connection, "GET", object_path(target, "src", "none"), None, {})
    assert target.open_connections == 3
    for connection in connections:
        connection.close()
    target.stop()
    assert target.open_connections == 0


# Faults


def test_a_hook_may_answer_in_the_target_s_stead(tmp_path: Path) -> None:
    (tmp_path / "obj").write_bytes(b"content")
    asked = []

    async def second_is_busy(request: web.Request) -> web.StreamResponse | None:
        asked.append(request.method)
        return web.Response(status=503, text="busy") if len(asked) == 2 else None

    with Target({"src": tmp_path}, on_request=second_is_busy) as target:
        answers = [get(target, "src", "obj") for _ in range(3)]
        assert [(answer.status, answer.body) for answer in answers] == [
            (200, b"content"),
            (503, b"busy"),
            (200, b"content"),
        ]
        assert [record.status for record in target.requests] == [200, 503, 200]


def test_a_hook_may_cut_the_connection(tmp_path: Path) -> None:
    async def cut(request: web.Request) -> None:
        assert request.transport is not None
        request.transport.abort()

    with Target({"dst": tmp_path}, on_request=cut) as target:
        with pytest.raises(ConnectionError):
            put(target, "dst", "obj", bytes(1 << 20))
        target.wait_for_requests(1)
        assert target.names("dst") == []


# Starting and stopping


async def test_it_serves_the_loop_that_it_was_started_on(tmp_path: Path) -> None:
    with Target({"dst": tmp_path}) as target:
        answers = await asyncio.gather(
            *(asyncio.to_thread(put, target, "dst", f"obj{number}", b"x") for number in range(8))
        )
        assert [answer.status for answer in answers] == [200] * 8


def test_it_can_be_stopped_and_started_again(tmp_path: Path) -> None:
    threads = threading.active_count()
    target = Target({"dst": tmp_path})
    for number in range(2):
        target.start()
        assert put(target, "dst", f"obj{number}", b"x").status == 200
        target.stop()
        target.stop()
        with pytest.raises(ConnectionRefusedError):
            get(target, "dst", "obj0")
    assert target.names("dst") == ["obj0", "obj1"]
    assert threading.active_count() == threads


def test_starting_it_twice_is_an_error(target: Target) -> None:
    with pytest.raises(RuntimeError, match="running already"):
        target.start()
    assert get(target, "src", "none").status == 404


def test_a_port_that_is_taken_is_an_error(target: Target, tmp_path: Path) -> None:
    threads = threading.active_count()
    other = Target({"src": tmp_path}, port=int(target.netloc.rpartition(":")[2]))
    with pytest.raises(OSError, match="in use"):
        other.start()
    assert threading.active_count() == threads
    assert other.open_connections == 0


def test_an_address_in_version_6_is_bracketed(tmp_path: Path) -> None:
    with Target({"dst": tmp_path}, host="::1") as target:
        assert target.netloc.startswith("[::1]:")
        assert put(target, "dst", "obj", b"x").status == 200


def test_it_has_no_address_before_it_is_started(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="started"):
        _ = Target({"src": tmp_path}).url


@pytest.mark.parametrize("bucket", ["", "a/b"])
def test_a_bucket_s_name_is_one_segment(tmp_path: Path, bucket: str) -> None:
    with pytest.raises(ValueError, match="bucket"):
        Target({bucket: tmp_path})


def test_an_empty_name_or_secret_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="empty"):
        Target({"src": tmp_path}, secret="")
    with pytest.raises(ValueError, match="empty"):
        Target({"src": tmp_path}, etl_name="")


def test_a_bucket_that_it_does_not_have_is_a_key_error(target: Target) -> None:
    with pytest.raises(KeyError):
        target.names("none")
