"""What a CPU-bound transform costs with no server around it: `python plain_loop.py FILE SECONDS` prints objects/s."""

from __future__ import annotations

import sys
import time
import zlib
from pathlib import Path


def main() -> None:
    """Compress the file over and over."""
    data = Path(sys.argv[1]).read_bytes()
    seconds = float(sys.argv[2])
    objects, elapsed, started = 0, 0.0, time.perf_counter()
    while elapsed < seconds:
        zlib.compress(data, 6)
        objects += 1
        elapsed = time.perf_counter() - started
    print(objects / elapsed)


if __name__ == "__main__":
    main()
