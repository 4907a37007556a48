"""What `xargs` runs once an object: `python object_script.py SOURCE SINK NAME`."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """Read, transform, write to another name, rename."""
    source, sink, name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    half = sink / f".{name}.half"
    half.write_bytes(transform((source / name).read_bytes()))
    half.rename(sink / name)


def transform(data: bytes) -> bytes:
    """The object as it came."""
    return data


if __name__ == "__main__":
    main()
