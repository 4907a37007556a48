"""Write a transform as one Python class; serve it next to the data."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import Settings
    from .errors import ETLError, ObjectStoreError, ObjectStoreTransientError, RedirectError
    from .payload import deserialize_class, serialize_class
    from .runtime.clients import ResponseRawReader
    from .runtime.flow import AsyncReader
    from .server import ETLServer
    from .storage.base import ObjectStore
    from .storage.redirects import follow_redirects
    from .storage.routers import S3Pointer, S3Router, simple_s3_router
    from .storage.s3 import S3ObjectStore
    from .storage.s3_storage import S3Storage
    from .wire.pipeline import InvalidPipelineError, compose_etl_direct_put_url, parse_etl_pipeline

__version__ = "0.1.0"

__all__ = [
    "AsyncReader",
    "ETLError",
    "ETLServer",
    "InvalidPipelineError",
    "ObjectStore",
    "ObjectStoreError",
    "ObjectStoreTransientError",
    "RedirectError",
    "ResponseRawReader",
    "S3ObjectStore",
    "S3Pointer",
    "S3Router",
    "S3Storage",
    "Settings",
    "__version__",
    "compose_etl_direct_put_url",
    "deserialize_class",
    "follow_redirects",
    "parse_etl_pipeline",
    "serialize_class",
    "simple_s3_router",
]

_HOMES = {
    "AsyncReader": "runtime.flow",
    "ETLError": "errors",
    "ETLServer": "server",
    "InvalidPipelineError": "wire.pipeline",
    "ObjectStore": "storage.base",
    "ObjectStoreError": "errors",
    "ObjectStoreTransientError": "errors",
    "RedirectError": "errors",
    "ResponseRawReader": "runtime.clients",
    "S3ObjectStore": "storage.s3",
    "S3Pointer": "storage.routers",
    "S3Router": "storage.routers",
    "S3Storage": "storage.s3_storage",
    "Settings": "config",
    "compose_etl_direct_put_url": "wire.pipeline",
    "deserialize_class": "payload",
    "follow_redirects": "storage.redirects",
    "parse_etl_pipeline": "wire.pipeline",
    "serialize_class": "payload",
    "simple_s3_router": "storage.routers",
}
_S3_EXTRA = ("aiobotocore", "boto3", "botocore")


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: importing the package alone costs next to nothing."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f".{home}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name not in _S3_EXTRA:
            raise
        hint = f"{name} needs {error.name}: pip install 'etl-server[s3]'"
        raise ModuleNotFoundError(hint, name=error.name) from None
    globals()[name] = value
    return value
