"""A loop in one process over the files of a folder: `python object_loop.py SOURCE SINK [--sync]`.

Each is read, transformed, written to another name and renamed; with `--sync` it is on disk before it is renamed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main() -> None:
    """The loop."""
    source, sink, sync = Path(sys.argv[1]), Path(sys.argv[2]), "--sync" in sys.argv
    for path in source.iterdir():
        result = transform(path.read_bytes())
        half = sink / f".{path.name}.half"
        with half.open("wb") as file:
            file.write(result)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        half.rename(sink / path.name)


def transform(data: bytes) -> bytes:
    """The object as it came."""
    return data


if __name__ == "__main__":
    main()
