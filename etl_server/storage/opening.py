"""An object store by its URI."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from ..errors import ConfigError, one_line
from .base import ObjectStore
from .local import LocalObjectStore

if TYPE_CHECKING:
    from .s3_async import AsyncS3Reader

S3_EXTRA = "pip install 'etl-server[s3]'"
_EXPECTED = "s3://bucket/prefix?endpoint_url=…, ais://bucket/prefix?endpoint=…, file:///directory or a directory"


def open_store(uri: str) -> ObjectStore:
    """The store behind a URI (percent-encoded) or the path of a directory. It is not asked whether it is there.

    A path in the URI belongs to the store: the names of its objects are relative to it.

    Raises:
        ConfigError: the URI is of no known kind, or has an option that its kind has not, or one that makes no client,
            or what its kind needs is not installed.
    """
    with options_told(uri):
        return _open(uri)


def _open(uri: str) -> ObjectStore:
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
    if _is_s3(uri):
        try:
            from .s3 import S3ObjectStore
        except ModuleNotFoundError as error:
            raise _missing(uri, error) from None
        return S3ObjectStore(*_place(uri), **_s3_options(uri))
    if scheme == "ais" and parts.netloc and not parts.fragment:
        from .ais import AISObjectStore

        options = _take(uri, options, "endpoint", "provider")
        return AISObjectStore(*_place(uri), **options)  # type: ignore[arg-type]
    raise ConfigError(f"object store {uri!r}: expected {_EXPECTED}")


def open_async_reader(uri: str) -> AsyncS3Reader | None:
    """What reads the objects of a store on an event loop, still to be opened; None where its kind has no such thing.

    Raises:
        ConfigError: the URI has an option that its kind has not, or what its kind needs is not installed. That an
            option makes no client comes out when it is opened: see `options_told`.
    """
    if not _is_s3(uri):
        return None
    try:
        from .s3_async import AsyncS3Reader
    except ModuleNotFoundError as error:
        raise _missing(uri, error) from None
    return AsyncS3Reader(*_place(uri), **_s3_options(uri))


@contextmanager
def options_told(uri: str) -> Iterator[None]:
    """What the library behind a store has to say of an option, as a `ConfigError`."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{uri}: expected options that make a client: {one_line(error)}") from None


def _missing(uri: str, error: ModuleNotFoundError) -> ConfigError:
    return ConfigError(f"{uri}: expected {error.name} to be installed: {S3_EXTRA}")


def _is_s3(uri: str) -> bool:
    parts = urlsplit(uri)
    return uri.startswith("s3://") and bool(parts.netloc) and not parts.fragment


def _place(uri: str) -> tuple[str, str]:
    """The bucket, and the prefix of its objects' names."""
    parts = urlsplit(uri)
    return parts.netloc, unquote(parts.path[1:])


def _s3_options(uri: str) -> dict[str, Any]:
    options = dict(parse_qsl(urlsplit(uri).query, keep_blank_values=True))
    return dict(_take(uri, options, "endpoint_url", "region_name", "profile_name", "addressing_style"))


def _take(uri: str, options: dict[str, str], *known: str) -> dict[str, str]:
    """The options, all of which are known ones."""
    for name in options:
        if name not in known:
            raise ConfigError(f"option {name!r} of {uri!r}: expected {' or '.join(known) or 'none'}")
    return options
