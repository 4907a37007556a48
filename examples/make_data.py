"""Makes the objects in `examples/data`, the same ones every time: `python examples/make_data.py [DIRECTORY]`.

Needs Pillow and NumPy. Photographs are computed: skies are gradients, mountains and clouds are noise of many sizes.
"""

from __future__ import annotations

import io
import json
import math
import struct
import sys
import tarfile
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageDraw, ImageFilter, ImageOps

Array = NDArray[np.float64]
Color = tuple[float, float, float]

MADE = 1_700_000_000
"""When the members of the shard were made, in Unix seconds."""


def main() -> None:
    home = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "data"
    for make in (make_images, make_text, make_audio, make_shards):
        make(home)


# Images


def make_images(home: Path) -> None:
    images = directory(home / "images")
    landscape(2000, 1500, seed=1, sky=((70, 110, 180), (235, 205, 180))).save(
        images / "mountains.jpg", quality=80, exif=camera(1)
    )
    # Held upright, a camera saves the picture as it lies on the sensor, and says how to turn it.
    upright = landscape(600, 900, seed=2, sky=((40, 30, 80), (250, 140, 70)))
    upright.transpose(Image.Transpose.ROTATE_90).save(images / "sunset-upright.jpg", quality=85, exif=camera(6))
    landscape(800, 600, seed=3, sky=((150, 150, 150), (235, 235, 235))).convert("L").save(
        images / "fog.jpg", quality=85
    )
    night_street(960, 640).save(images / "street at night.jpg", quality=85)
    leaf(400).save(images / "leaf.png", optimize=True)
    landscape(960, 720, seed=5, sky=((90, 150, 210), (220, 230, 240))).quantize(16).save(
        images / "poster.png", optimize=True
    )


def noise(width: int, height: int, seed: int, detail: int = 8) -> Array:
    """Noise from 0 to 1 as nature makes it: large shapes that carry smaller ones, `detail` times over."""
    random = np.random.default_rng(seed)
    total = np.zeros((height, width))
    for octave in range(detail):
        grid = random.random((2**octave + 2, 2**octave + 2)).astype(np.float32)
        smooth = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(smooth, dtype=np.float64) / 1.8**octave
    low, high = total.min(), total.max()
    stretched: Array = (total - low) / (high - low)
    return stretched


def blend(low: Color | Array, high: Color | Array, amount: Array) -> Array:
    """Colours from `low` to `high`, as far as `amount` (0 to 1) says for each pixel."""
    part = np.clip(amount, 0, 1)[..., None]
    return np.asarray(low) * (1 - part) + np.asarray(high) * part


def photograph(pixels: Array, seed: int) -> Image.Image:
    """An image of `pixels`, with a little of the grain that every sensor has."""
    grain = np.random.default_rng(seed).random(pixels.shape[:2])[..., None] * 6 - 3
    return Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))


def landscape(width: int, height: int, seed: int, sky: tuple[Color, Color]) -> Image.Image:
    """Ranges of mountains under clouds, each range darker than the one behind it."""
    y = np.linspace(0, 1, height)[:, None] * np.ones(width)
    x = np.ones((height, 1)) * np.linspace(0, 1, width)
    pixels = blend(sky[0], sky[1], y / 0.7)
    glow = np.exp(-((x - 0.7) ** 2 + (y - 0.45) ** 2) / 0.02)
    pixels = blend(pixels, (255, 240, 210), glow)
    pixels = blend(pixels, (250, 245, 240), (noise(width, height, seed) - 0.55) * 2.5 * (1 - y))
    for distance in range(4):
        ridge = 0.45 + 0.13 * distance - 0.3 * (noise(width, 1, seed * 10 + distance) - 0.3)
        depth = y - ridge
        rock = 40 * noise(width, height, seed * 20 + distance) - 20
        haze = 0.75 - 0.24 * distance
        color = blend((32, 48, 40), sky[1], np.full((height, width), haze)) + rock[..., None] * (1 - haze)
        pixels = np.where((depth > 0)[..., None], blend(color, sky[1], 0.25 - depth * 2), pixels)
    return photograph(pixels, seed)


def night_street(width: int, height: int) -> Image.Image:
    """Lit windows along a street, and their reflections on the wet ground."""
    random = np.random.default_rng(4)
    street = Image.new("RGB", (width, height), (10, 12, 26))
    draw = ImageDraw.Draw(street)
    ground = int(height * 0.68)
    for left in range(0, width, 80):
        top = int(height * (0.1 + 0.35 * random.random()))
        shade = int(18 + 22 * random.random())
        draw.rectangle((left, top, left + 76, ground), fill=(shade, shade, shade + 12))
        for row in range(top + 10, ground - 20, 26):
            for column in range(left + 8, left + 70, 20):
                if random.random() < 0.45:
                    warm = int(150 + 100 * random.random())
                    draw.rectangle((column, row, column + 11, row + 15), fill=(warm, int(warm * 0.8), int(warm * 0.45)))
    mirrored = ImageOps.flip(street.crop((0, 2 * ground - height, width, ground)))
    street.paste(mirrored.filter(ImageFilter.GaussianBlur(7)), (0, ground))
    glow = np.asarray(street.filter(ImageFilter.GaussianBlur(12)), dtype=np.float64)
    return photograph(np.asarray(street, dtype=np.float64) + 0.6 * glow, seed=4)


def leaf(size: int) -> Image.Image:
    """A leaf on transparent ground; its edge is soft."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    edge = 0.5 * np.cos(np.clip(x * 1.05, -1, 1) * math.pi / 2) ** 1.5
    alpha = np.clip((edge - np.abs(y)) * 40, 0, 1)
    veins = np.exp(-((np.mod(x * 6 - np.abs(y) * 5, 1) - 0.5) ** 2) / 0.004) + np.exp(-(y**2) / 0.0002)
    green = blend((40, 110, 40), (130, 180, 60), noise(size, size, seed=6, detail=5))
    pixels = np.dstack([blend(green, (190, 215, 130), veins * 0.7), alpha * 255])
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def camera(orientation: int) -> Image.Exif:
    """What a camera writes into a photograph."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Example"
    exif[ExifTags.Base.Orientation] = orientation
    return exif


# Text


def make_text(home: Path) -> None:
    text = directory(home / "text")
    (text / "empty.txt").write_bytes(b"")
    (text / "fable.txt").write_bytes(FABLE.encode())
    (text / "languages.txt").write_bytes(LANGUAGES.encode())
    (text / "access.log").write_bytes("".join(map(access, range(2000))).encode())


def access(line: int) -> str:
    """A line in the log of a web server."""
    seconds = line * 7
    time = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    status = 404 if line % 17 == 0 else 200
    address = f"192.0.2.{line * 37 % 250 + 1}"
    request = f"GET /images/{line:06}.jpg HTTP/1.1"
    return f'{address} - - [01/Mar/2026:{time} +0000] "{request}" {status} {line * 7919 % 90000}\n'


FABLE = """\
The fox and the grapes

A fox came by a wall where ripe grapes hung. He jumped for them, and jumped again, and did not reach them.
"They are surely sour," he said, and walked away with his nose in the air.

It is easy to despise what you cannot get.
"""

LANGUAGES = """\
deutsch: Größe, Straße, Übermut
français: où est le café, là-bas
español: ¿qué tal, señor?
ελληνικά: καλημέρα κόσμε
русский: доброе утро
日本語: おはようございます
emoji: 🦊 🍇 👩‍🚀
"""


# Audio


def make_audio(home: Path) -> None:
    audio = directory(home / "audio")
    write_wav(audio / "chirp-stereo.wav", rate=44100, seconds=1.5, channels=[chirp, lambda t: 0.5 * chirp(1.5 - t)])
    write_wav(audio / "chord.wav", rate=22050, seconds=2.0, channels=[chord])


def chirp(t: float) -> float:
    """A tone that rises from 200 Hz by 1600 Hz a second."""
    return 0.7 * math.sin(2 * math.pi * (200 + 800 * t) * t)


def chord(t: float) -> float:
    """A minor, dying away."""
    return 0.25 * math.exp(-t) * sum(math.sin(2 * math.pi * pitch * t) for pitch in (220.0, 261.63, 329.63))


def write_wav(path: Path, rate: int, seconds: float, channels: list[Callable[[float], float]]) -> None:
    """16-bit samples of functions of the time in seconds, with values from -1 to 1."""
    samples = [round(channel(n / rate) * 32767) for n in range(int(rate * seconds)) for channel in channels]
    with wave.open(str(path), "wb") as out:
        out.setnchannels(len(channels))
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(struct.pack(f"<{len(samples)}h", *samples))


# Shards


def make_shards(home: Path) -> None:
    """A shard of twelve samples, each an image, what is known of it, and its class."""
    with tarfile.open(directory(home / "shards") / "landscapes-000000.tar", "w") as shard:
        for number in range(12):
            width, height = [(480, 320), (400, 400), (320, 480)][number % 3]
            sky: tuple[Color, Color] = ((60 + 10 * number, 120, 200 - 10 * number), (240, 220 - 5 * number, 190))
            jpeg = io.BytesIO()
            landscape(width, height, seed=100 + number, sky=sky).save(jpeg, "JPEG", quality=80)
            about = {"width": width, "height": height, "caption": f"mountains, view {number}"}
            add(shard, f"{number:06}.jpg", jpeg.getvalue())
            add(shard, f"{number:06}.json", json.dumps(about).encode())
            add(shard, f"{number:06}.cls", str(number % 3).encode())


def add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mtime = MADE + len(shard.getmembers())
    shard.addfile(member, io.BytesIO(content))


def directory(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


if __name__ == "__main__":
    main()
