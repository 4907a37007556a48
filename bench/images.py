"""`python -m bench.images DIRECTORY COUNT`: so many different JPEGs, cut out of the photographs in `examples/data`."""

from __future__ import annotations

import random
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image

PHOTOGRAPHS = Path(__file__).parent.parent / "examples" / "data" / "images"
SMALLEST = 0.35
"""Of a photograph's sides, the least that a cut has."""


def make(folder: Path, count: int) -> None:
    """Fill a folder with `count` images; those that are there already stay. The same ones every time."""
    photographs = []
    for file in sorted(PHOTOGRAPHS.glob("*.jpg")):
        with Image.open(file) as image:
            photographs.append(image.convert("RGB"))
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        file = folder / f"{number:05}.jpg"
        if not file.exists():
            half = file.with_suffix(".half")
            half.write_bytes(_cut(photographs[number % len(photographs)], random.Random(number)))
            half.rename(file)


def _cut(photograph: Image.Image, chance: random.Random) -> bytes:
    width, height = (int(side * chance.uniform(SMALLEST, 1)) for side in photograph.size)
    left, top = (chance.randint(0, side - cut) for side, cut in zip(photograph.size, (width, height), strict=True))
    out = BytesIO()
    photograph.crop((left, top, left + width, top + height)).save(out, "JPEG", quality=chance.randint(70, 92))
    return out.getvalue()


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]))
