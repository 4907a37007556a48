"""Thumbnails of JPEG and PNG images. `etl_args`: the box to fit into, `128` or `320x200` pixels; default `256`."""

from __future__ import annotations

import re
import warnings
from io import BytesIO

from PIL import ExifTags, Image, ImageOps

from etl_server import ETLServer


class Thumbnail(ETLServer):
    """Fits an image into a box: upright, in its own format, with its transparency, never enlarged."""

    def setup(self) -> None:
        # Pillow refuses an image of twice its limit of pixels; let what it only warns of fail as well.
        warnings.simplefilter("error", Image.DecompressionBombWarning)

    def transform(self, data: bytes | str, path: str, etl_args: str) -> bytes:
        width, height = parse_box(etl_args or "256")
        # Under ETL_DIRECT_FQN=true `data` is the path of a local file, which Pillow opens itself.
        with Image.open(data if isinstance(data, str) else BytesIO(data), formats=["JPEG", "PNG"]) as source:
            # The colours of a palette cannot be mixed, those of RGB can.
            palette = source.mode in ("1", "P")
            image = source.convert("RGBA" if source.has_transparency_data else "RGB") if palette else source
            if lies_on_its_side(image):
                width, height = height, width
            # `reducing_gap` decodes a JPEG near the size that is needed (other formats gain nothing, and not all can),
            # so the image is turned when it is small.
            image.thumbnail((width, height), reducing_gap=2.0 if image.format == "JPEG" else None)
            ImageOps.exif_transpose(image, in_place=True)
            out = BytesIO()
            image.save(out, source.format, quality=85, icc_profile=image.info.get("icc_profile"))
        return out.getvalue()


def parse_box(text: str) -> tuple[int, int]:
    """Width and height in pixels of `128` or `320x200`."""
    match = re.fullmatch(r"([1-9][0-9]{0,4})(?:x([1-9][0-9]{0,4}))?", text)
    if match is None:
        raise ValueError(f"etl_args={text!r}: expected a size in pixels, such as 128 or 320x200")
    width = int(match[1])
    return width, int(match[2] or width)


def lies_on_its_side(image: Image.Image) -> bool:
    """Whether the camera says that the image is to be turned by 90 degrees."""
    return image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
