"""An object store by its URI."""

from __future__ import annotations

from urllib.parse import parse_qsl, unquote, urlsplit

from ..errors import ConfigError
from .base import ObjectStore
from .local import LocalObjectStore

_EXPECTED = "s3://bucket/prefix?endpoint_url=…, ais://bucket/prefix?endpoint=…, file:///directory or a directory"


def open_store(uri: str) -> ObjectStore:
    """The store behind a URI (percent-encoded) or the path of a directory. It is not asked whether it is there.

    A path in the URI belongs to the store: the names of its objects are relative to it.

    Raises:
        ConfigError: the URI is of no known kind, or has an option that its kind has not.
    """
    scheme, separator, _ = uri.partition("://")
    if not separator:
        if not uri:
            raise ConfigError(f"object store '': expected {_EXPECTED}")
        return LocalObjectStore(uri)
    parts = urlsplit(uri)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if scheme == "file" and parts.netloc in ("", "localhost") and not parts.fragment:
        _take(uri, options)
        return LocalObjectStore(unquote(parts.path, errors="surrogateescape") or "/")
    if scheme == "s3" and parts.netloc and not parts.fragment:
        from .s3 import S3ObjectStore

        options = _take(uri, options, "endpoint_url", "region_name", "profile_name", "addressing_style")
        return S3ObjectStore(parts.netloc, unquote(parts.path[1:]), **options)  # type: ignore[arg-type]
    if scheme == "ais" and parts.netloc and not parts.fragment:
        from .ais import AISObjectStore

        options = _take(uri, options, "endpoint", "provider")
        return AISObjectStore(parts.netloc, unquote(parts.path[1:]), **options)  # type: ignore[arg-type]
    raise ConfigError(f"object store {uri!r}: expected {_EXPECTED}")


def _take(uri: str, options: dict[str, str], *known: str) -> dict[str, str]:
    """The options, all of which are known ones."""
    for name in options:
        if name not in known:
            raise ConfigError(f"option {name!r} of {uri!r}: expected {' or '.join(known) or 'none'}")
    return options
