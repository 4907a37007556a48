"""A class as text, together with what is to be known of it on the other side."""

from __future__ import annotations

import base64
from typing import NamedTuple

from ..server import ETLServer
from .dump import dump
from .meta import Meta


class PackedClass(NamedTuple):
    """A class, ready to be shipped."""

    text: str
    """The value of `ETL_CLASS_PAYLOAD`."""
    meta: Meta
    """Its `text()` is the value of `ETL_CLASS_META`."""
    modules: tuple[str, ...]
    """Names of the local modules that are in it by value, sorted."""


def pack_class(cls: type[ETLServer], key: str = "") -> PackedClass:
    """Serialize a class, and sign it if `key` is not empty.

    Raises:
        TypeError: `cls` is no subclass of `ETLServer` that has a transform.
        PayloadError: something that the class uses cannot be pickled; the text names it.
    """
    dumped = dump(cls)
    meta = Meta.of(cls.__name__, dumped.data, dumped.installed, key)
    return PackedClass(base64.b64encode(dumped.data).decode("ascii"), meta, tuple(sorted(dumped.modules)))
