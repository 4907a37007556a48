"""`python -m bench.images DIRECTORY COUNT [--photographs]`: so many different JPEGs, the same ones every time.

Small ones, of about 35 KiB, are cut out of the pictures in `examples/data`. Photographs, of 2 to 12 megapixels as
cameras make them, are cut out of those that a package of Debian's has; where apt is not there, out of the same small
pictures, made larger.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from PIL import Image

PICTURES = Path(__file__).parent.parent / "examples" / "data" / "images"
PACKAGE = "mate-backgrounds"
SMALLEST = 0.35
"""Of a picture's sides, the least that a cut has."""
SMALLEST_PHOTOGRAPH = 0.7
LARGEST_PHOTOGRAPH = (4000, 3000)
"""Pixels: 12 megapixels, as of a phone."""
PIXELS = 4_000_000
"""What a photograph has at least."""
_PATIENCE = 300


def make(folder: Path, count: int, *, photographs: bool = False) -> None:
    """Fill a folder with `count` images; those that are there already stay."""
    if all((folder / f"{number:05}.jpg").exists() for number in range(count)):
        return
    originals = list(_photographs()) if photographs else list(_pictures())
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        file = folder / f"{number:05}.jpg"
        if not file.exists():
            half = file.with_suffix(".half")
            chance = random.Random(number)
            half.write_bytes(_cut(originals[number % len(originals)], chance, photographs=photographs))
            half.rename(file)


def _pictures() -> Iterator[Image.Image]:
    for file in sorted(PICTURES.glob("*.jpg")):
        with Image.open(file) as image:
            yield image.convert("RGB")


def _photographs() -> Iterator[Image.Image]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            _run("apt-get", "download", PACKAGE, folder=folder)
            _run("dpkg", "-x", str(next(folder.glob("*.deb"))), "content", folder=folder)
        except (OSError, subprocess.SubprocessError, StopIteration) as error:
            print(f"{PACKAGE} cannot be had ({error}): the pictures of the examples are enlarged instead")
            for image in _pictures():
                yield image.resize(LARGEST_PHOTOGRAPH, Image.Resampling.BICUBIC)
            return
        for file in sorted(folder.rglob("*.jpg")):
            with Image.open(file) as image:
                if image.width * image.height >= PIXELS:
                    yield image.convert("RGB")


def _run(*command: str, folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=_PATIENCE)


def _cut(original: Image.Image, chance: random.Random, *, photographs: bool) -> bytes:
    least = SMALLEST_PHOTOGRAPH if photographs else SMALLEST
    sides = (int(side * chance.uniform(least, 1)) for side in original.size)
    width, height = map(min, sides, LARGEST_PHOTOGRAPH)
    left, top = (chance.randint(0, side - cut) for side, cut in zip(original.size, (width, height), strict=True))
    quality = chance.randint(88, 95) if photographs else chance.randint(70, 92)
    out = BytesIO()
    original.crop((left, top, left + width, top + height)).save(out, "JPEG", quality=quality)
    return out.getvalue()


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("count", type=int)
    parser.add_argument("--photographs", action="store_true")
    given = parser.parse_args()
    make(given.directory, given.count, photographs=given.photographs)


if __name__ == "__main__":
    _main()
