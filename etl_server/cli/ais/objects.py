"""`etl-server ais get`: one object through an ETL."""

from __future__ import annotations

import io
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ...errors import ConfigError
from .common import NameArgument, UrlOption, check_name, connect, tell, usage_errors

_STDOUT = Path("-")
_PIECE = 1024 * 1024


def get(
    name: NameArgument,
    uri: Annotated[str, typer.Argument(metavar="OBJECT", help="Such as ais://bucket/dir/name.")],
    url: UrlOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write; -: stdout. Default: the object's last name, here."),
    ] = None,
    etl_args: Annotated[str, typer.Option(help="Arguments for the transform.")] = "",
) -> None:
    """Read an object through an ETL.

    The file is there when the whole result is; until then it has another name.

    Example: etl-server ais get my-thumbnails ais://photos/cat.jpg -o cat-small.jpg
    """
    from ...wire.buckets import parse_object

    check_name(name)
    with usage_errors():
        bucket, object_name = parse_object(uri)
    if output is None:
        output = Path(object_name.rpartition("/")[2])
    with _told(output):
        if not output.name or output.is_dir():
            raise ConfigError(f"--output {str(output)!r}: expected a file")
        if not output.resolve().parent.is_dir():
            raise ConfigError(f"--output {str(output)!r}: expected a file in a folder that exists")
    with connect(url) as client, client.get_object(name, bucket, object_name, etl_args) as reader:
        if output == _STDOUT:
            shutil.copyfileobj(reader, sys.stdout.buffer, _PIECE)
            sys.stdout.buffer.flush()
            return
        with _told(output):
            if output.exists() and not output.is_file():
                with output.open("wb") as device:
                    shutil.copyfileobj(reader, device, _PIECE)
            else:
                tell(f"{output}: {_write(reader, output.resolve()):,} bytes")


@contextmanager
def _told(output: Path) -> Iterator[None]:
    """What keeps a file from being written, as an error of the option."""
    try:
        yield
    except OSError as error:
        text = f"expected a file that can be written: {error.strerror or error}"
        raise ConfigError(f"--output {str(output)!r}: {text}") from None


def _write(reader: io.RawIOBase, path: Path) -> int:
    """Write a file at once: under another name beside it, which it loses when it is whole. Returns its size."""
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as file:
            shutil.copyfileobj(reader, file, _PIECE)
            size = file.tell()
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return size
