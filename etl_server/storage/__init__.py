"""Objects wherever they are: files, S3, AIStore."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..errors import ObjectStoreError, ObjectStoreTransientError, RedirectError
    from .ais import AISObjectStore
    from .base import ObjectInfo, ObjectStore, Owner, Unsettled
    from .local import LocalObjectStore
    from .opening import open_store
    from .redirects import follow_redirects
    from .retry import RetryPolicy
    from .routers import Digest, S3Pointer, S3Router, Tags, simple_s3_router
    from .s3 import S3ObjectStore
    from .s3_storage import S3Storage

__all__ = [
    "AISObjectStore",
    "Digest",
    "LocalObjectStore",
    "ObjectInfo",
    "ObjectStore",
    "ObjectStoreError",
    "ObjectStoreTransientError",
    "Owner",
    "RedirectError",
    "RetryPolicy",
    "S3ObjectStore",
    "S3Pointer",
    "S3Router",
    "S3Storage",
    "Tags",
    "Unsettled",
    "follow_redirects",
    "open_store",
    "simple_s3_router",
]

_HOMES = {
    "AISObjectStore": ".ais",
    "Digest": ".routers",
    "LocalObjectStore": ".local",
    "ObjectInfo": ".base",
    "ObjectStore": ".base",
    "Owner": ".base",
    "Unsettled": ".base",
    "ObjectStoreError": "..errors",
    "ObjectStoreTransientError": "..errors",
    "RedirectError": "..errors",
    "follow_redirects": ".redirects",
    "RetryPolicy": ".retry",
    "S3ObjectStore": ".s3",
    "S3Pointer": ".routers",
    "S3Router": ".routers",
    "S3Storage": ".s3_storage",
    "Tags": ".routers",
    "open_store": ".opening",
    "simple_s3_router": ".routers",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: each store has libraries of its own."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home, __name__), name)
    globals()[name] = value
    return value
