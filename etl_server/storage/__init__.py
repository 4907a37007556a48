"""Objects wherever they are: files, S3, AIStore."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..errors import ObjectStoreError, ObjectStoreTransientError, RedirectError
    from .ais import AISObjectStore
    from .base import ObjectInfo, ObjectStore
    from .local import LocalObjectStore
    from .opening import open_store
    from .redirects import follow_redirects
    from .retry import RetryPolicy
    from .s3 import S3ObjectStore

__all__ = [
    "AISObjectStore",
    "LocalObjectStore",
    "ObjectInfo",
    "ObjectStore",
    "ObjectStoreError",
    "ObjectStoreTransientError",
    "RedirectError",
    "RetryPolicy",
    "S3ObjectStore",
    "follow_redirects",
    "open_store",
]

_HOMES = {
    "AISObjectStore": ".ais",
    "LocalObjectStore": ".local",
    "ObjectInfo": ".base",
    "ObjectStore": ".base",
    "ObjectStoreError": "..errors",
    "ObjectStoreTransientError": "..errors",
    "RedirectError": "..errors",
    "follow_redirects": ".redirects",
    "RetryPolicy": ".retry",
    "S3ObjectStore": ".s3",
    "open_store": ".opening",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: each store has libraries of its own."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home, __name__), name)
    globals()[name] = value
    return value
