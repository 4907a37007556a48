"""README.md and the pages beside it: what they say is so."""

from __future__ import annotations

import hashlib
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import cast

import pytest
import typer
from typer.core import TyperGroup

from etl_server import ETLServer
from etl_server.cli import app

from .helpers import ROOT, ServerProcess, known_variables

README = (ROOT / "README.md").read_text()
PAGES = [
    ROOT / "README.md",
    ROOT / "examples" / "README.md",
    ROOT / "examples" / "s3.md",
    ROOT / "deploy" / "README.md",
]


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def lines(block: str) -> Iterator[str]:
    """The commands of a block, without their comments and without what they are piped into."""
    for line in block.replace("\\\n", "").splitlines():
        if command := re.sub(r"(\s+#.*|\s+[|>&] ?.*)$", "", line):
            yield command


def run(block: str, folder: Path) -> list[bytes]:
    """Run a block that starts servers and asks them, in a folder; what each `curl` of it got."""
    ports: dict[str, str] = {}

    def port(match: re.Match[str]) -> str:
        if match[0] not in ports:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                ports[match[0]] = str(listener.getsockname()[1])
        return ports[match[0]]

    answers = []
    with ExitStack() as servers:
        for line in lines(
            re.sub(r"\b80\d\d\b", port, block).replace("/tmp/", f"{folder}/").replace("$PWD", str(folder))
        ):
            program, *arguments = shlex.split(line)
            if program == "etl-server":
                variables = {"ETL_HOST": "127.0.0.1", "ETL_WORKERS": "1", "ETL_PORT": ports.get("8000", "8000")}
                server = ServerProcess("-m", "etl_server", *arguments, environment=variables, cwd=folder)
                servers.enter_context(server).wait_until_listening()
            else:
                assert program == "curl"
                answers.append(subprocess.check_output(["curl", "-sSf", *arguments], cwd=folder))
    return answers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that looks like the project's."""
    for name in ("README.md", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def test_the_first_class_is_served_as_it_is_written(folder: Path) -> None:
    (folder / "checksum.py").write_text(blocks("python")[0])
    (block,) = (block for block in blocks("sh") if "serve checksum.py" in block)
    assert run(block, folder) == [hashlib.new(name, README.encode()).hexdigest().encode() for name in ("sha256", "md5")]


def test_two_stages_are_put_together_as_it_is_written(folder: Path) -> None:
    (block,) = (block for block in blocks("sh") if "ais-node-url" in block)
    assert run(block, folder) == [hashlib.sha256(README.encode().upper()).hexdigest().encode()]


def test_stores_are_served_as_it_is_written(folder: Path) -> None:
    (block,) = (block for block in blocks("sh") if "--sink /tmp/upper" in block)
    assert run(block, folder) == [(ROOT / "examples/data/text/fable.txt").read_bytes().upper(), b""]
    assert (folder / "upper" / "readme.txt").read_bytes() == README.encode().upper()


def test_streams_and_stores_are_used_as_it_is_written(tmp_path: Path) -> None:
    streaming, stores = blocks("python")[1:3]
    names: dict[str, type[ETLServer]] = {}
    exec(f"from etl_server import ETLServer\n{streaming}", names)
    pieces = names["Upper"]().transform_stream(BytesIO(b"piece"), "", "")
    assert list(cast("Iterable[bytes]", pieces)) == [b"PIECE"]

    uri = re.search(r's3://[^"]+', stores)
    assert uri is not None
    (tmp_path / "june").mkdir()
    (tmp_path / "june" / "cat.jpg").write_bytes(b"meow" * 1000)
    program = stores.replace(uri[0], str(tmp_path))
    shown = subprocess.check_output([sys.executable, "-c", program], cwd=tmp_path, text=True)
    assert shown == "june/cat.jpg 4000\n"
    assert (tmp_path / "cat.jpg").read_bytes() == b"meow" * 1000
    assert (tmp_path / "june" / "new.bin").read_bytes() == b"meow" * 512


def commands() -> Iterator[str]:
    for page in PAGES:
        for block in blocks("sh", page.read_text()):
            yield from (line for line in lines(block) if line.startswith("etl-server "))


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_a_command_is_one(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _, *arguments = shlex.split(line)
    name, command = None, typer.main.get_command(app)
    while isinstance(command, TyperGroup):
        name, found, arguments = command.resolve_command(typer.Context(command), arguments)
        assert found is not None
        command = found
    command.make_context(name, arguments)  # raises what the user would be told


def test_every_setting_is_in_the_table_and_no_other() -> None:
    table = README.partition("\n## Settings\n")[2].partition("\n## ")[0]
    first = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    assert sorted(re.findall(r"`(\w+)`", " ".join(first))) == sorted(known_variables())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        there = page.parent / name if name else page
        assert there.exists()
        if anchor:
            titles = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
