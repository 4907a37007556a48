"""The examples, each on the objects that it is shown with."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import runpy
import shutil
import statistics
import subprocess
import sys
import tarfile
import tracemalloc
import warnings
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from PIL import Image, ImageChops, ImageOps, ImageStat

EXAMPLES = Path(__file__).parent.parent / "examples"
DATA = EXAMPLES / "data"
IMAGES = sorted((DATA / "images").iterdir())
TEXTS = sorted((DATA / "text").iterdir())
WAVS = sorted((DATA / "audio").iterdir())
SHARD = DATA / "shards" / "landscapes-000000.tar"

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


@pytest.fixture(autouse=True)
def _restored_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        yield


def example(file: str, name: str) -> Any:
    """An instance of class `name` of an example, set up as a worker process does it."""
    spec = importlib.util.spec_from_file_location(f"examples_{file}", EXAMPLES / f"{file}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    server = getattr(module, name)()
    server.setup()
    return server


class Trickle(io.RawIOBase):
    """A raw reader that never gives more than `most` bytes at once, and counts them."""

    def __init__(self, content: bytes, most: int = 1) -> None:
        super().__init__()
        self._content = io.BytesIO(content)
        self._most = most
        self.given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        piece = self._content.read(min(self._most, len(buffer)))
        buffer[: len(piece)] = piece
        self.given += len(piece)
        return len(piece)


class Endless(io.RawIOBase):
    """A raw reader of pieces that are made when they are asked for."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        super().__init__()
        self._pieces = pieces
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = memoryview(piece)
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


def whole(content: bytes) -> BinaryIO:
    return io.BytesIO(content)


def byte_by_byte(content: bytes) -> BinaryIO:
    return io.BufferedReader(Trickle(content))


readers = pytest.mark.parametrize("reader", [whole, byte_by_byte])
Reader = Callable[[bytes], BinaryIO]


def stream(server: Any, reader: BinaryIO, etl_args: str = "") -> bytes:
    pieces = list(server.transform_stream(reader, "bucket/object", etl_args))
    assert all(pieces), "an empty piece says nothing"
    return b"".join(pieces)


# upper.py


@readers
@pytest.mark.parametrize("file", TEXTS, ids=lambda file: file.name)
def test_upper_changes_ascii_letters_only_wherever_pieces_are_cut(file: Path, reader: Reader) -> None:
    content = file.read_bytes()[:20_000]
    expected = "".join(letter.upper() if letter.isascii() else letter for letter in content.decode())
    assert stream(example("upper", "Upper"), reader(content)) == expected.encode()


def test_upper_leaves_bytes_that_are_no_text_alone() -> None:
    content = bytes(range(256)) * 3
    assert stream(example("upper", "Upper"), byte_by_byte(content)).lower() == content.lower()


def test_upper_answers_before_its_input_has_ended() -> None:
    def pieces() -> Iterator[bytes]:
        yield b"first"
        pytest.fail("the second piece was asked for before the first had left")

    outputs = example("upper", "Upper").transform_stream(io.BufferedReader(Endless(pieces())), "o", "")
    assert next(outputs) == b"FIRST"


# checksum.py


@readers
@pytest.mark.parametrize(
    "file", [DATA / "text" / "empty.txt", DATA / "text" / "fable.txt", DATA / "images" / "fog.jpg"]
)
def test_checksum_is_sha256_in_hexadecimal_by_default(file: Path, reader: Reader) -> None:
    content = file.read_bytes()
    assert stream(example("checksum", "Checksum"), reader(content)).decode() == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("name", ["md5", "sha1", "sha512", "sha3_256", "blake2b"])
def test_checksum_takes_the_hash_of_etl_args(name: str) -> None:
    content = (DATA / "audio" / "chord.wav").read_bytes()
    answer = stream(example("checksum", "Checksum"), whole(content), name).decode()
    assert answer == hashlib.new(name, content).hexdigest()


@pytest.mark.parametrize("name", ["crc", "SHA256", "shake_128", " "])
def test_checksum_refuses_other_names_with_the_list_of_hashes(name: str) -> None:
    with pytest.raises(ValueError, match=f"etl_args='{name}': expected one of .*md5.* sha256") as raised:
        stream(example("checksum", "Checksum"), whole(b"content"), name)
    assert "shake" not in str(raised.value).partition("expected")[2]


def test_checksum_and_upper_say_that_they_answer_with_text() -> None:
    assert example("checksum", "Checksum").get_mime_type() == "text/plain"
    assert example("upper", "Upper").get_mime_type() == "text/plain"


# thumbnail.py


def thumbnail(data: bytes | str, etl_args: str = "") -> Image.Image:
    image = Image.open(io.BytesIO(example("thumbnail", "Thumbnail").transform(data, "bucket/object", etl_args)))
    image.load()
    return image


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def difference(one: Image.Image, other: Image.Image) -> float:
    """How far two images of the same size are apart, seen on grey: the mean over pixels and channels, of 255."""
    seen = [Image.new("RGBA", image.size, "grey") for image in (one, other)]
    for ground, image in zip(seen, (one, other), strict=True):
        ground.alpha_composite(image.convert("RGBA"))
    assert one.size == other.size
    return statistics.fmean(ImageStat.Stat(ImageChops.difference(*seen).convert("RGB")).mean)


@pytest.mark.parametrize("file", IMAGES, ids=lambda file: file.name)
@pytest.mark.parametrize(("etl_args", "box"), [("", (256, 256)), ("128", (128, 128)), ("320x200", (320, 200))])
def test_thumbnail_fits_the_upright_image_into_the_box(file: Path, etl_args: str, box: tuple[int, int]) -> None:
    with Image.open(file) as original:
        upright = ImageOps.exif_transpose(original)
        kind = original.format
    small = thumbnail(file.read_bytes(), etl_args)
    assert small.format == kind
    scale = min(box[0] / upright.width, box[1] / upright.height)
    assert small.size == pytest.approx((upright.width * scale, upright.height * scale), abs=1)
    assert any(side == limit for side, limit in zip(small.size, box, strict=True))
    assert difference(small, upright.convert("RGBA").resize(small.size, Image.Resampling.LANCZOS)) < 6


def test_thumbnail_of_a_path_is_that_of_the_bytes() -> None:
    for file in IMAGES:
        assert thumbnail(str(file), "100").tobytes() == thumbnail(file.read_bytes(), "100").tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_thumbnail_turns_the_image_as_the_camera_says_and_says_so_no_more(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(DATA / "images" / "fog.jpg") as fog:
        turned = encoded(fog, "JPEG", exif=exif)
    small = thumbnail(turned, "96x72")
    with Image.open(io.BytesIO(turned)) as image:
        upright = ImageOps.exif_transpose(image)
    assert 0x0112 not in small.getexif()
    assert difference(small, upright.resize(small.size, Image.Resampling.LANCZOS)) < 6


def test_thumbnail_keeps_transparency() -> None:
    small = thumbnail((DATA / "images" / "leaf.png").read_bytes(), "100")
    assert small.mode == "RGBA"
    assert small.getchannel("A").getpixel((0, 0)) == 0
    assert small.getchannel("A").getpixel((50, 50)) == 255


def test_thumbnail_keeps_the_transparency_of_a_palette() -> None:
    image = Image.new("P", (300, 300), 0)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.paste(1, (100, 100, 200, 200))
    small = thumbnail(encoded(image, "PNG", transparency=0), "30")
    assert small.getpixel((0, 0)) == (0, 0, 0, 0)
    assert small.getpixel((15, 15)) == (200, 100, 50, 255)


@pytest.mark.parametrize(("mode", "kind"), [("L", "JPEG"), ("CMYK", "JPEG"), ("LA", "PNG"), ("I;16", "PNG")])
def test_thumbnail_keeps_the_mode(mode: str, kind: str) -> None:
    assert thumbnail(encoded(Image.new(mode, (1200, 800)), kind), "100").mode == mode


def test_thumbnail_never_enlarges() -> None:
    assert thumbnail((DATA / "images" / "leaf.png").read_bytes(), "9000x8000").size == (400, 400)


def test_thumbnail_keeps_the_colour_profile() -> None:
    with Image.open(DATA / "images" / "fog.jpg") as fog:
        assert thumbnail(encoded(fog, "JPEG", icc_profile=b"profile"), "10").info["icc_profile"] == b"profile"


@pytest.mark.parametrize(
    "etl_args", ["big", "0", "-5", "12.5", "128x", "x128", "10x20x30", "0x10", " 128", "128\n", "9" * 6]
)
def test_thumbnail_refuses_what_is_no_size(etl_args: str) -> None:
    with pytest.raises(ValueError, match="expected a size in pixels, such as 128 or 320x200"):
        thumbnail((DATA / "images" / "leaf.png").read_bytes(), etl_args)


@pytest.mark.parametrize("times", [1.5, 3])
def test_thumbnail_refuses_an_image_of_more_pixels_than_pillow_allows(times: float, monkeypatch: Any) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(400 * 400 / times))
    with pytest.raises((Image.DecompressionBombError, Image.DecompressionBombWarning), match="decompression bomb"):
        thumbnail((DATA / "images" / "leaf.png").read_bytes())


@pytest.mark.parametrize("file", IMAGES, ids=lambda file: file.name)
def test_thumbnail_refuses_half_an_image(file: Path) -> None:
    content = file.read_bytes()
    with pytest.raises(OSError, match="truncated"):
        thumbnail(content[: len(content) // 2])


@pytest.mark.parametrize("content", [b"", b"no image", encoded(Image.new("RGB", (9, 9)), "GIF")])
def test_thumbnail_refuses_what_is_neither_jpeg_nor_png(content: bytes) -> None:
    with pytest.raises(OSError, match="cannot identify image file"):
        thumbnail(content)


# audio.py


def probe(audio: bytes, tmp_path: Path) -> dict[str, Any]:
    """What ffprobe says of the first stream."""
    file = tmp_path / "probed.flac"
    file.write_bytes(audio)
    command = ["ffprobe", "-v", "error", "-show_streams", "-of", "json", str(file)]
    streams: list[dict[str, Any]] = json.loads(subprocess.check_output(command))["streams"]
    return streams[0]


def seconds(file: Path) -> float:
    with wave.open(str(file)) as original:
        frames, rate = original.getnframes(), original.getframerate()
    return float(frames / rate)


@needs_ffmpeg
@pytest.mark.parametrize("file", WAVS, ids=lambda file: file.name)
@pytest.mark.parametrize(("etl_args", "rate"), [("", 16000), ("8000", 8000), ("48000", 48000)])
def test_audio_becomes_mono_flac_at_the_wanted_rate(file: Path, etl_args: str, rate: int, tmp_path: Path) -> None:
    flac = example("audio", "Resample").transform(file.read_bytes(), "bucket/object", etl_args)
    assert flac.startswith(b"fLaC")
    about = probe(flac, tmp_path)
    assert (about["codec_name"], about["channels"], about["sample_rate"]) == ("flac", 1, str(rate))
    # The header holds the length: readers that trust it, such as libsndfile, take no other file.
    assert float(about["duration"]) == pytest.approx(seconds(file), abs=0.01)


@needs_ffmpeg
def test_audio_of_a_path_is_that_of_the_bytes(tmp_path: Path) -> None:
    server = example("audio", "Resample")
    awkward = tmp_path / "-a: %03d é.wav"
    shutil.copy(WAVS[0], awkward)
    assert server.transform(str(awkward), "o", "") == server.transform(WAVS[0].read_bytes(), "o", "")


@needs_ffmpeg
def test_audio_larger_than_any_pipe_passes(tmp_path: Path) -> None:
    long = io.BytesIO()
    with wave.open(long, "wb") as out:
        out.setparams((1, 2, 48000, 0, "NONE", ""))
        out.writeframes(os.urandom(48000 * 2 * 40))
    flac = example("audio", "Resample").transform(long.getvalue(), "o", "48000")
    assert len(flac) > 1 << 20
    assert float(probe(flac, tmp_path)["duration"]) == pytest.approx(40)


@needs_ffmpeg
@pytest.mark.parametrize("cut", [0, 30, -4000], ids=["empty", "half a header", "cut off"])
def test_audio_fails_with_the_last_words_of_ffmpeg(cut: int) -> None:
    content = WAVS[0].read_bytes()[:cut]
    with pytest.raises(RuntimeError, match=r"^ffmpeg: pipe:0: [^\n]+$"):
        example("audio", "Resample").transform(content, "o", "")


@needs_ffmpeg
def test_audio_that_is_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    shutil.copy(WAVS[0], tmp_path / "other.wav")
    playlist = tmp_path / "list.wav"
    playlist.write_text("ffconcat version 1.0\nfile other.wav\n")
    for data in (playlist.read_bytes(), str(playlist)):
        with pytest.raises(RuntimeError, match="ffmpeg: "):
            example("audio", "Resample").transform(data, "o", "")


@needs_ffmpeg
def test_audio_ends_an_ffmpeg_that_takes_too_long(tmp_path: Path) -> None:
    server = example("audio", "Resample")
    server.timeout = 0.2
    silent = tmp_path / "nobody-writes.wav"
    os.mkfifo(silent)
    with pytest.raises(TimeoutError, match=r"^ffmpeg took longer than 0\.2 s$"):
        server.transform(str(silent), "o", "")


@needs_ffmpeg
@pytest.mark.parametrize("etl_args", ["high", "0", "7999", "192001", "16000.0", "-16000", " 16000", "16k", "1" * 5000])
def test_audio_refuses_what_is_no_rate(etl_args: str) -> None:
    with pytest.raises(ValueError, match="expected samples per second, from 8000 to 192000"):
        example("audio", "Resample").transform(WAVS[0].read_bytes(), "o", etl_args)


def test_audio_does_not_start_without_ffmpeg(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="ffmpeg is not on the PATH: install it"):
        example("audio", "Resample")


@needs_ffmpeg
def test_audio_with_an_ffmpeg_that_dies_without_a_word_says_how(monkeypatch: Any, tmp_path: Path) -> None:
    broken = tmp_path / "ffmpeg"
    broken.write_text("#!/bin/sh\ncat >/dev/null\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(RuntimeError, match=r"^ffmpeg: exit status 3$"):
        example("audio", "Resample").transform(b"", "o", "")


# tar_resize.py


def resized(shard: bytes, etl_args: str = "", reader: Reader = whole) -> bytes:
    return stream(example("tar_resize", "TarResize"), reader(shard), etl_args)


def members(shard: bytes) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
    """Header and content of every member, in order."""
    found: dict[str, tuple[tarfile.TarInfo, bytes]] = {}
    with tarfile.open(fileobj=io.BytesIO(shard)) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isreg() else None
            found[member.name] = member, content.read() if content else b""
    return found


def packed(*added: tuple[tarfile.TarInfo, bytes], kind: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as archive:
        for member, content in added:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


@readers
def test_tar_resize_shrinks_the_images_and_keeps_the_rest(reader: Reader) -> None:
    before, after = members(SHARD.read_bytes()), members(resized(SHARD.read_bytes(), "100", reader))
    assert list(after) == list(before)
    assert len(after) == 36
    for name, (old, content) in before.items():
        new, changed = after[name]
        assert (new.mtime, new.mode, new.uid, new.gid) == (old.mtime, old.mode, old.uid, old.gid)
        if name.endswith(".jpg"):
            with Image.open(io.BytesIO(content)) as large, Image.open(io.BytesIO(changed)) as small:
                scale = 100 / max(large.size)
                assert small.size == pytest.approx((large.width * scale, large.height * scale), abs=1)
                assert difference(small, large.resize(small.size, Image.Resampling.LANCZOS)) < 6
        else:
            assert changed == content


def test_tar_resize_leaves_256_pixels_by_default_and_says_that_it_is_a_tar() -> None:
    _, content = members(resized(SHARD.read_bytes()))["000001.jpg"]
    assert Image.open(io.BytesIO(content)).size == (256, 256)
    assert example("tar_resize", "TarResize").get_mime_type() == "application/x-tar"


def test_tar_resize_does_not_touch_images_that_are_small() -> None:
    assert members(resized(SHARD.read_bytes(), "480"))["000000.jpg"][1] == members(SHARD.read_bytes())["000000.jpg"][1]


def test_tar_resize_writes_what_tar_reads(tmp_path: Path) -> None:
    (tmp_path / "small.tar").write_bytes(resized(SHARD.read_bytes()))
    done = subprocess.run(["tar", "tf", tmp_path / "small.tar"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == list(members(SHARD.read_bytes()))
    assert done.stderr == ""


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_tar_resize_keeps_links_directories_odd_names_and_fractions_of_seconds(kind: int) -> None:
    folder, link, hard = tarfile.TarInfo("dir"), tarfile.TarInfo("dir/symbolic.jpg"), tarfile.TarInfo("dir/hard.jpg")
    folder.type, link.type, hard.type = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
    link.linkname = hard.linkname = "dir/photo.JPG"
    long = tarfile.TarInfo("dir/" + "päth " * 60 + ".txt")
    long.mtime = 1_700_000_000.25 if kind == tarfile.PAX_FORMAT else 1_700_000_000
    photo = (DATA / "images" / "fog.jpg").read_bytes()
    shard = packed(
        (folder, b""), (tarfile.TarInfo("dir/photo.JPG"), photo), (link, b""), (hard, b""), (long, b"text"), kind=kind
    )
    after = members(resized(shard, "64"))
    assert list(after) == ["dir", "dir/photo.JPG", link.name, hard.name, long.name]
    assert after["dir"][0].isdir()
    assert Image.open(io.BytesIO(after["dir/photo.JPG"][1])).size == (64, 48)
    assert (after[link.name][0].issym(), after[link.name][0].linkname) == (True, "dir/photo.JPG")
    assert (after[hard.name][0].islnk(), after[hard.name][0].linkname) == (True, "dir/photo.JPG")
    assert (after[long.name][0].mtime, after[long.name][1]) == (long.mtime, b"text")


def test_tar_resize_believes_no_size_of_an_extended_header_of_the_original() -> None:
    photo = (DATA / "images" / "fog.jpg").read_bytes()
    member = tarfile.TarInfo("photo.jpg")
    member.pax_headers = {"size": str(len(photo))}
    after = members(resized(packed((member, photo), (tarfile.TarInfo("next.txt"), b"text")), "64"))
    assert Image.open(io.BytesIO(after["photo.jpg"][1])).size == (64, 48)
    assert after["next.txt"][1] == b"text"


@pytest.mark.parametrize("style", ["gnu", "posix"])
def test_tar_resize_fills_the_holes_of_sparse_members(style: str, tmp_path: Path) -> None:
    with (tmp_path / "sparse.bin").open("wb") as sparse:
        sparse.seek(1 << 20)
        sparse.write(b"after the hole")
        sparse.truncate(2 << 20)
    command = ["tar", "--sparse", "--hole-detection=raw", f"--format={style}", "-cf", "-", "sparse.bin"]
    shard = subprocess.check_output(command, cwd=tmp_path)
    assert len(shard) < 1 << 20
    assert members(resized(shard))["sparse.bin"][1] == (tmp_path / "sparse.bin").read_bytes()


def test_tar_resize_keeps_what_the_camera_says() -> None:
    name = "sunset-upright.jpg"
    shard = packed((tarfile.TarInfo(name), (DATA / "images" / name).read_bytes()))
    small = Image.open(io.BytesIO(members(resized(shard, "90"))[name][1]))
    assert small.size == (90, 60)
    assert small.getexif()[0x0112] == 6
    assert ImageOps.exif_transpose(small).size == (60, 90)


def test_tar_resize_shrinks_images_of_16_bits() -> None:
    depth = encoded(Image.new("I;16", (600, 400), 3000), "PNG")
    small = Image.open(
        io.BytesIO(members(resized(packed((tarfile.TarInfo("depth.png"), depth)), "60"))["depth.png"][1])
    )
    assert (small.mode, small.size, small.getpixel((9, 9))) == ("I;16", (60, 40), 3000)


def cuts() -> list[Any]:
    """Lengths at which the shard ends too early, with a word on where that is."""
    with tarfile.open(SHARD) as shard:
        json_member, last = shard.getmember("000003.json"), shard.getmembers()[-1]
    end = last.offset_data + 512
    return [
        pytest.param(0, id="nothing"),
        pytest.param(300, id="in the first header"),
        pytest.param(json_member.offset, id="between two members"),
        pytest.param(json_member.offset + 100, id="in a header"),
        pytest.param(json_member.offset_data, id="before a content"),
        pytest.param(json_member.offset_data + 5, id="in a content"),
        pytest.param(json_member.offset_data - 2000, id="in an image"),
        pytest.param(end, id="before the end mark"),
        pytest.param(end + 100, id="in the end mark"),
    ]


@pytest.mark.parametrize("length", cuts())
def test_tar_resize_fails_on_a_shard_that_is_cut_off(length: int) -> None:
    with pytest.raises(tarfile.ReadError):
        resized(SHARD.read_bytes()[:length])


def test_tar_resize_fails_on_a_damaged_header() -> None:
    with tarfile.open(SHARD) as shard:
        place = shard.getmember("000003.json").offset
    content = bytearray(SHARD.read_bytes())
    content[place] ^= 0xFF
    with pytest.raises(tarfile.ReadError, match="cut off or damaged"):
        resized(bytes(content))


@pytest.mark.parametrize("content", [b"no tar at all" * 100, b"\x1f\x8b" + bytes(600)])
def test_tar_resize_refuses_what_is_no_tar(content: bytes) -> None:
    with pytest.raises(tarfile.ReadError):
        resized(content)


def test_tar_resize_passes_an_empty_tar() -> None:
    assert members(resized(packed())) == {}


def test_tar_resize_fails_on_an_image_that_is_none() -> None:
    with pytest.raises(OSError, match="cannot identify image file"):
        resized(packed((tarfile.TarInfo("a.jpg"), b"no image")))


def test_tar_resize_refuses_an_image_of_more_pixels_than_pillow_allows(monkeypatch: Any) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    with pytest.raises(Image.DecompressionBombWarning):
        resized(SHARD.read_bytes())


@pytest.mark.parametrize("etl_args", ["big", "0", "-5", "12.5", "128x128", " 128", "1" * 5000])
def test_tar_resize_refuses_what_is_no_length(etl_args: str) -> None:
    with pytest.raises(ValueError, match="expected the longest edge in pixels, such as 256"):
        resized(SHARD.read_bytes(), etl_args)


def test_tar_resize_answers_before_its_input_has_ended() -> None:
    source = Trickle(SHARD.read_bytes(), most=4096)
    outputs = example("tar_resize", "TarResize").transform_stream(io.BufferedReader(source), "o", "")
    assert next(outputs)
    assert source.given < SHARD.stat().st_size / 2
    outputs.close()


def test_tar_resize_runs_on_constant_memory() -> None:
    def shard() -> Iterator[bytes]:
        large = tarfile.TarInfo("large.bin")
        large.size = 32 << 20
        yield large.tobuf()
        for _ in range(512):
            yield bytes(1 << 16)
        for number in range(5000):
            yield tarfile.TarInfo(f"{number:06}.cls").tobuf()
        yield bytes(1024)

    server = example("tar_resize", "TarResize")
    tracemalloc.start()
    try:
        size = sum(map(len, server.transform_stream(io.BufferedReader(Endless(shard())), "o", "")))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size == (32 << 20) + 512 * 5001 + 1024
    assert peak < 1 << 20


# data/


def test_the_data_is_what_its_script_makes(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["make_data.py", str(tmp_path)])
    runpy.run_path(str(EXAMPLES / "make_data.py"), run_name="__main__")
    made = {file.relative_to(tmp_path) for file in tmp_path.rglob("*") if file.is_file()}
    assert made == {file.relative_to(DATA) for file in DATA.rglob("*") if file.is_file()}
    for text in TEXTS:
        assert (tmp_path / "text" / text.name).read_bytes() == text.read_bytes()
    for image in IMAGES:
        with Image.open(image) as old, Image.open(tmp_path / "images" / image.name) as new:
            assert (new.format, new.mode, new.size) == (old.format, old.mode, old.size)
            assert dict(new.getexif()) == dict(old.getexif())
            assert difference(new, old) < 2
    assert list(members((tmp_path / "shards" / SHARD.name).read_bytes())) == list(members(SHARD.read_bytes()))


def test_the_data_is_small() -> None:
    assert sum(file.stat().st_size for file in DATA.rglob("*") if file.is_file()) < 3 << 19
