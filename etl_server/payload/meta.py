"""What is known of a payload beside itself: what it was made with, and whether it is the one that was made."""

from __future__ import annotations

import hashlib
import hmac
import json
import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, distributions, packages_distributions, version
from typing import Any

import cloudpickle  # type: ignore[import-untyped]

from .. import __version__
from ..errors import PayloadError, one_line


@dataclass(frozen=True)
class Meta:
    """The content of `ETL_CLASS_META`, a JSON object with these keys."""

    name: str
    """The class's name."""
    python: str
    """The version of Python that the payload was made with, as `3.12.1`."""
    sha256: str
    """SHA-256 of the pickle, which is the payload before it became base64; in hexadecimal digits."""
    cloudpickle: str = "?"
    """The version of cloudpickle that it was made with."""
    etl_server: str = "?"
    """The version of this package that it was made with."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """By the name of a top-level module that the class uses: the requirement that brings it, as `numpy==2.1.0`."""
    hmac: str = ""
    """HMAC-SHA256 of the pickle by `ETL_PAYLOAD_KEY`, in hexadecimal digits; empty: it is not signed."""

    @classmethod
    def of(cls, name: str, data: bytes, modules: Iterable[str] = (), key: str = "") -> Meta:
        """Of the class `name`, which was pickled as `data` just now and uses these installed top-level `modules`."""
        return cls(
            name=name,
            python=platform.python_version(),
            sha256=hashlib.sha256(data).hexdigest(),
            cloudpickle=cloudpickle.__version__,
            etl_server=__version__,
            packages=_requirements(modules),
            hmac=_sign(data, key) if key else "",
        )

    @classmethod
    def parse(cls, text: str) -> Meta:
        """Of the text of `ETL_CLASS_META`.

        Raises:
            PayloadError: it is no such JSON object.
        """
        try:
            values: Any = json.loads(text)
            known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
            meta = cls(**known)
            strings = [value for name, value in known.items() if name != "packages"]
            valid = all(isinstance(value, str) for value in (*strings, *meta.packages.values()))
        except (ValueError, TypeError, AttributeError) as error:
            raise PayloadError(
                f"ETL_CLASS_META: expected the JSON that etl-server ship writes: {one_line(error)}"
            ) from None
        if not valid:
            raise PayloadError("ETL_CLASS_META: expected the JSON that etl-server ship writes, which has strings only")
        return meta

    def text(self) -> str:
        """As JSON on one line."""
        return json.dumps(asdict(self), separators=(",", ":"))

    def check(self, data: bytes) -> None:
        """Check that `data` is the pickle that this was written of, and can be loaded by this Python.

        Raises:
            PayloadError: it is not, or cannot; one line says why and what to do.
        """
        found = hashlib.sha256(data).hexdigest()
        if not hmac.compare_digest(found.encode(), self.sha256.encode()):
            raise PayloadError(
                f"the payload's SHA-256 is {found}, and its ETL_CLASS_META says {self.sha256}: it was cut or changed "
                "on its way, or they do not belong together; ship the class again"
            )
        here, there = (".".join(text.split(".")[:2]) for text in (platform.python_version(), self.python))
        if here != there:
            raise PayloadError(
                f"{self.built_with()}, and here is Python {platform.python_version()}: ship it again with Python "
                f"{here}, or run it in an image with Python {there}"
            )

    def built_with(self) -> str:
        """What it was made with, as the beginning of a sentence."""
        return (
            f"class {self.name} was built with Python {self.python}, cloudpickle {self.cloudpickle}, "
            f"etl_server {self.etl_server}"
        )


def check_signature(data: bytes, meta: Meta | None, key: str) -> None:
    """Check that whoever made the payload has the key.

    Args:
        data: the pickle.
        meta: what came beside it, if anything.
        key: the value of `ETL_PAYLOAD_KEY`.

    Raises:
        PayloadError: the signature is missing or wrong.
    """
    if meta is None or not meta.hmac:
        raise PayloadError(
            "the payload is not signed, and ETL_PAYLOAD_KEY is set, so it is not loaded: ship the class with that key, "
            "and pass its ETL_CLASS_META on"
        )
    if not hmac.compare_digest(_sign(data, key).encode(), meta.hmac.encode()):
        raise PayloadError(
            "the payload's HMAC is not the one that ETL_PAYLOAD_KEY gives, so it is not loaded: ship the class with "
            "the key that is set here"
        )


def _sign(data: bytes, key: str) -> str:
    return hmac.new(key.encode(), data, hashlib.sha256).hexdigest()


def _requirements(modules: Iterable[str]) -> dict[str, str]:
    """The requirements that bring these top-level modules here; of one that several distributions share, the first."""
    known = _distributions()
    found = {}
    for module in sorted(set(modules) & known.keys()):
        try:
            found[module] = f"{known[module][0]}=={version(known[module][0])}"
        except PackageNotFoundError:
            continue
    found.pop(__name__.partition(".")[0], None)
    return found


def _distributions() -> Mapping[str, list[str]]:
    """The names of the distributions that bring each top-level module here."""
    found = dict(packages_distributions())
    if sys.version_info < (3, 11):  # which knows only those that have a top_level.txt
        for distribution in distributions():
            files = [file for file in distribution.files or () if file.suffix == ".py"]
            for module in {file.parts[0].removesuffix(".py") for file in files} - found.keys():
                found[module] = [distribution.metadata["Name"]]
    return found
