"""`etl_fqn`: the object is a local file of the target's, and no other file of the machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import pytest

from etl_server import ETLServer
from etl_server.testing import Driver, Target
from tests.conftest import Serve
from tests.raw_client import RawClient
from tests.stages import STORED, Stage, answering
from tests.testing.odd_names import ODD_NAMES

from .conftest import Drive
from .transforms import ALL_UPPER, STREAMS, Upper

SECRET = b"not for everybody"


class Kind(ETLServer):
    """Tells what the transform was given."""

    def transform(self, data: bytes | str, path: str, etl_args: str) -> bytes:
        return f"{type(data).__name__} {data if isinstance(data, str) else data.decode()}".encode()


@pytest.fixture
def mountpath(tmp_path: Path) -> Path:
    """Where the objects of the bucket `bck` are, on a mountpath of AIStore's."""
    objects = tmp_path / "mp1" / "@ais" / "bck" / "%ob"
    objects.mkdir(parents=True)
    return objects


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file that no object is."""
    path = tmp_path / "secret.txt"
    path.write_bytes(SECRET)
    return path


@pytest.mark.parametrize(
    ("cls", "direct_fqn"), [*((cls, False) for cls in ALL_UPPER), *((cls, True) for cls in STREAMS)]
)
async def test_a_file_is_the_object(
    serve: Serve, drive: Drive, mountpath: Path, cls: type[ETLServer], direct_fqn: bool
) -> None:
    (mountpath / "obj").write_bytes(b"content of the file")
    (mountpath / "empty").touch()
    driver = await drive(serve(cls, direct_fqn=direct_fqn))
    for way in (driver.push, driver.pull):
        reply = await way("bck", "obj", fqn=str(mountpath / "obj"))
        assert (reply.status, reply.body) == (200, b"CONTENT OF THE FILE")
        reply = await way("bck", "empty", fqn=str(mountpath / "empty"))
        assert (reply.status, reply.body) == (200, b"")


async def test_with_direct_fqn_the_transform_gets_the_path(serve: Serve, drive: Drive, mountpath: Path) -> None:
    file = mountpath / "obj"
    file.write_bytes(b"content")
    driver = await drive(serve(Kind, direct_fqn=True))
    assert (await driver.push("bck", "obj", fqn=str(file))).body == f"str {file}".encode()
    assert (await driver.pull("bck", "obj", fqn=str(file))).body == f"str {file}".encode()
    assert (await driver.push("bck", "obj", data=b"content")).body == b"bytes content"


async def test_without_direct_fqn_the_transform_gets_the_content(serve: Serve, drive: Drive, mountpath: Path) -> None:
    (mountpath / "obj").write_bytes(b"content")
    driver = await drive(serve(Kind))
    assert (await driver.push("bck", "obj", fqn=str(mountpath / "obj"))).body == b"bytes content"
    assert (await driver.pull("bck", "obj", fqn=str(mountpath / "obj"))).body == b"bytes content"


async def test_with_direct_fqn_the_path_has_no_links_left(serve: Serve, drive: Drive, mountpath: Path) -> None:
    (mountpath / "obj").write_bytes(b"content")
    (mountpath / "link").symlink_to(mountpath / "obj")
    driver = await drive(serve(Kind, direct_fqn=True))
    for fqn in (mountpath / "link", mountpath / "x" / ".." / "obj"):
        assert (await driver.push("bck", "obj", fqn=str(fqn))).body == f"str {mountpath / 'obj'}".encode()


async def test_the_file_goes_before_a_body(serve: Serve, target: Target, mountpath: Path) -> None:
    (mountpath / "obj").write_bytes(b"file")
    async with Driver(serve(Upper).url, target) as driver:
        assert (await driver.push("bck", "obj", data=b"body", fqn=str(mountpath / "obj"))).body == b"FILE"
        assert (await driver.push("bck", "obj", data=b"body", fqn="")).body == b"BODY"


@pytest.mark.parametrize("way", ["push", "pull"])
async def test_every_file_name_is_found(serve: Serve, drive: Drive, mountpath: Path, way: str) -> None:
    names = [name.replace("/", "_") for name in ODD_NAMES if name.strip("/.")]
    for name in names:
        (mountpath / name).write_bytes(b"content")
    driver = await drive(serve(Upper))
    replies = {name: (await getattr(driver, way)("bck", "obj", fqn=f"{mountpath}/{name}")).body for name in names}
    assert replies == dict.fromkeys(names, b"CONTENT")


async def test_a_large_file_streams(serve: Serve, drive: Drive, mountpath: Path) -> None:
    content = os.urandom(5 << 20)
    (mountpath / "obj").write_bytes(content)
    for cls in STREAMS:
        driver = await drive(serve(cls))
        assert (await driver.push("bck", "obj", fqn=str(mountpath / "obj"))).body == content.upper()


async def test_a_file_is_put_on_to_the_next_stage(serve: Serve, drive: Drive, mountpath: Path, target: Target) -> None:
    (mountpath / "obj").write_bytes(b"content")
    async with Stage(answering(STORED)) as stage:
        driver = await drive(serve(Upper, host_target=target.url))
        reply = await driver.push(
            "bck", "obj", fqn=str(mountpath / "obj"), pipeline=f"{stage.url}/ais%2F@%23%2Fdst%2Fobj"
        )
    assert reply.delivered == 7
    assert bytes(stage.requests[0].body) == b"CONTENT"


async def test_a_file_beyond_the_limit_is_refused(serve: Serve, drive: Drive, mountpath: Path) -> None:
    (mountpath / "obj").write_bytes(bytes(11))
    for cls in (Upper, *STREAMS):
        assert (await (await drive(serve(cls, max_body=10))).push("b", "o", fqn=str(mountpath / "obj"))).status == 413


# What may be read


LAYOUT = {
    "mp/@ais/bck/%ob/obj": True,
    "mp/@ais/bck/%ch/obj": True,
    "mp/@ais/bck/%ob/deep/er/obj": True,
    "@aws/bck/%ob/obj": True,
    "mp/@ais/@Bghort1l#ml/bck/%ob/obj": True,
    "mp/@ais/@#ml/bck/%ob/obj": True,
    "mp/@ais/bck/%wk/obj": False,
    "mp/@ais/bck/obj": False,
    "mp/ais/bck/%ob/obj": False,
    "mp/@ais/%ob/obj": False,
    "mp/@ais/a/b/%ob/obj": False,
    "mp/@/bck/%ob/obj": False,
    "%ob/obj": False,
    "obj": False,
}


async def test_without_roots_only_the_layout_of_the_target_is_read(serve: Serve, drive: Drive, tmp_path: Path) -> None:
    driver = await drive(serve(Upper))
    for number, (path, allowed) in enumerate(LAYOUT.items()):
        file = tmp_path / str(number) / path
        file.parent.mkdir(parents=True)
        file.write_bytes(SECRET)
        reply = await driver.push("bck", "obj", fqn=str(file))
        assert reply.status == (200 if allowed else 403), path
        assert (SECRET.upper() in reply.body.upper()) == allowed, path


async def test_with_roots_all_below_them_is_read_and_nothing_else(
    serve: Serve, drive: Drive, tmp_path: Path, mountpath: Path
) -> None:
    roots = (tmp_path / "one", tmp_path / "two")
    beside = tmp_path / "one-and-more"
    for folder in (*roots, beside):
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "file").write_bytes(SECRET)
    (mountpath / "obj").write_bytes(SECRET)
    driver = await drive(serve(Upper, fqn_roots=roots))
    for root in roots:
        assert (await driver.push("b", "o", fqn=str(root / "sub" / "file"))).body == SECRET.upper()
    for file in (beside / "sub" / "file", mountpath / "obj", Path("/etc/passwd"), roots[0]):
        assert (await driver.push("b", "o", fqn=str(file))).status == 403


async def test_a_link_may_lead_to_where_may_be_read(serve: Serve, drive: Drive, tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (real / "file").write_bytes(b"content")
    (tmp_path / "root").symlink_to(real)
    driver = await drive(serve(Upper, fqn_roots=(tmp_path / "root",)))
    assert (await driver.push("b", "o", fqn=str(tmp_path / "root" / "file"))).body == b"CONTENT"


# What is refused


@pytest.fixture
def forbidden(mountpath: Path, secret: Path) -> dict[str, str]:
    """Ways to ask for what is no object."""
    (mountpath / "link").symlink_to(secret)
    (mountpath / "folder").symlink_to(secret.parent)
    (mountpath / "chain").symlink_to(mountpath / "link")
    (mountpath / "loop").symlink_to(mountpath / "loop")
    (mountpath / "device").symlink_to("/dev/zero")
    (mountpath / "directory").mkdir()
    os.mkfifo(mountpath / "fifo")
    out = "../" * (len(mountpath.parts) - 1)
    return {
        "outside": str(secret),
        "outside and missing": f"{secret}.missing",
        "dots": f"{mountpath}/{out}{secret.relative_to('/')}",
        "dots behind a name": f"{mountpath}/directory/../{out}{secret.relative_to('/')}",
        "link": f"{mountpath}/link",
        "link to a link": f"{mountpath}/chain",
        "link to a folder": f"{mountpath}/folder/{secret.name}",
        "link to itself": f"{mountpath}/loop",
        "link to a device": f"{mountpath}/device",
        "device": "/dev/zero",
        "process": "/proc/self/environ",
        "directory": f"{mountpath}/directory",
        "fifo": f"{mountpath}/fifo",
        "NUL": f"{mountpath}/x\0",
        "NUL to cut it": f"{secret}\0{mountpath}/x",
        "relative": f"{mountpath}/obj".lstrip("/"),
        "relative out": f"../{secret.name}",
        "encoded once more": quote(f"{mountpath}/obj", safe=""),
        "encoded dots": f"{mountpath}/..%2f..%2f..%2f..%2f..%2f..%2f{secret.name}",
        "URL": f"file://{mountpath}/obj",
        "too long": f"{mountpath}/{'x' * 10_000}",
    }


ABSENT = {"encoded dots", "too long"}
"""These name files of the layout that are not there, and may be said to be missing."""


@pytest.mark.parametrize("cls", [Kind, *STREAMS])
@pytest.mark.parametrize("direct_fqn", [False, True])
async def test_what_is_no_object_is_refused(
    serve: Serve,
    drive: Drive,
    mountpath: Path,
    forbidden: dict[str, str],
    cls: type[ETLServer],
    direct_fqn: bool,
) -> None:
    (mountpath / "obj").write_bytes(b"content")
    driver = await drive(serve(cls, direct_fqn=direct_fqn))
    for way in (driver.push, driver.pull):
        for what, fqn in forbidden.items():
            reply = await way("bck", "obj", fqn=fqn)
            assert reply.status == 403 or (what in ABSENT and reply.status == 404), what
            assert SECRET not in reply.body, what
    reply = await driver.push("bck", "obj", fqn=str(mountpath / "obj"))
    assert reply.status == 200


async def test_with_roots_the_same_is_refused(
    serve: Serve, drive: Drive, mountpath: Path, forbidden: dict[str, str]
) -> None:
    driver = await drive(serve(Kind, fqn_roots=(mountpath,)))
    for what, fqn in forbidden.items():
        reply = await driver.push("bck", "obj", fqn=fqn)
        assert reply.status == 403 or (what in ABSENT and reply.status == 404), what
        assert SECRET not in reply.body, what


async def test_however_it_is_encoded_what_is_no_object_is_refused(serve: Serve) -> None:
    raws = ["%252Fetc%252Fpasswd", "/etc/passwd", "%2Fetc%2Fpasswd", "%00", "%2500", "%25", "%FF%25FF"]
    async with RawClient(serve(Upper).port) as client:
        for raw in raws:
            await client.send(f"PUT /bck/obj?etl_fqn={raw} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            answer = await client.answer()
            assert answer.status == 403, raw
            assert b"root:" not in answer.body
        await client.put("/bck/obj", b"x")
        assert (await client.answer()).body == b"X"


@pytest.mark.parametrize("cls", [Kind, *STREAMS])
async def test_a_file_that_is_not_there_is_missing(
    serve: Serve, drive: Drive, mountpath: Path, cls: type[ETLServer]
) -> None:
    (mountpath / "file").touch()
    (mountpath / "dangling").symlink_to(mountpath / "nowhere")
    driver = await drive(serve(cls))
    for name in ("missing", "no/such/folder", "file/below", "dangling"):
        for way in (driver.push, driver.pull):
            reply = await way("bck", "obj", fqn=str(mountpath / name))
            assert reply.status == 404, name
            assert b"detail" in reply.body


async def test_a_transform_that_leaves_a_file_half_read_closes_it(serve: Serve, drive: Drive, mountpath: Path) -> None:
    class Start(ETLServer):
        def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
            yield reader.read(3)

    (mountpath / "obj").write_bytes(bytes(1 << 20))
    driver = await drive(serve(Start))
    for _ in range(3):
        assert (await driver.push("bck", "obj", fqn=str(mountpath / "obj"))).body == bytes(3)
    assert opened(mountpath / "obj") == 0


def opened(path: Path) -> int:
    """How many descriptors of this process lead to a file."""

    def leads(descriptor: Path) -> Any:
        try:
            return descriptor.readlink() == path
        except OSError:
            return False

    return sum(leads(descriptor) for descriptor in Path("/proc/self/fd").iterdir())
