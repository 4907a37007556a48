"""Buckets and objects by AIStore's URIs, and as they stand in the paths and queries of its API."""

from __future__ import annotations

import re
from typing import NamedTuple

from .names import encode_object_path

_PROVIDERS = {"ais": "ais", "aws": "aws", "s3": "aws", "gcp": "gcp", "gs": "gcp", "azure": "azure", "az": "azure"}
_PROVIDERS |= {"oci": "oci", "oc": "oci", "ht": "ht"}
_URI = re.compile(
    r"(?P<scheme>[a-z0-9]+)://(?:(?P<namespace>@[A-Za-z0-9_.-]*#[A-Za-z0-9_.-]*)/)?(?P<bucket>[A-Za-z0-9_.-]+)"
    r"(?:/(?P<name>.*))?",
    re.DOTALL,
)


class Bucket(NamedTuple):
    """A bucket of a cluster."""

    name: str
    provider: str = "ais"
    """`ais`, `aws`, `gcp`, `azure`, `oci` or `ht`."""
    namespace: str = ""
    """`@uuid#name`; empty: the global one."""

    def __str__(self) -> str:
        return f"{self.provider}://" + (f"{self.namespace}/" if self.namespace else "") + self.name

    def query(self) -> dict[str, str]:
        """The query parameters that tell it from others of its name."""
        return {"provider": self.provider} | ({"namespace": self.namespace} if self.namespace else {})

    def uname(self) -> str:
        """The bucket as it stands in a `bck_to` parameter."""
        return f"{self.provider}/{self.namespace or '@#'}/{self.name}/"


def parse_bucket(uri: str) -> Bucket:
    """The bucket that `ais://bucket`, `s3://bucket` or `ais://@uuid#namespace/bucket` names; a slash may follow.

    Raises:
        ValueError: it is no such URI. The text is one line with the value and what was expected.
    """
    bucket, name = _parse(uri)
    if bucket is None or name:
        raise ValueError(f"{uri!r}: expected a bucket, such as ais://bucket")
    return bucket


def parse_object(uri: str) -> tuple[Bucket, str]:
    """The bucket and the name of the object that `ais://bucket/dir/name` names. The name stands as it is, not escaped.

    Raises:
        ValueError: it is no such URI, or its name cannot be asked for by a URL. The text is one line with the value and
            what was expected.
    """
    bucket, name = _parse(uri)
    if bucket is None or not name:
        raise ValueError(f"{uri!r}: expected an object, such as ais://bucket/name")
    if not {".", ".."}.isdisjoint(name.split("/")):
        raise ValueError(f"{uri!r}: expected a name without '.' and '..' between slashes: URLs lose them")
    return bucket, name


def object_url_path(bucket: Bucket, name: str) -> str:
    """The path of an object below `/v1/`, percent-encoded."""
    return f"objects/{bucket.name}/{encode_object_path(name)}"


def _parse(uri: str) -> tuple[Bucket | None, str]:
    match = _URI.fullmatch(uri)
    if match is None or match["scheme"] not in _PROVIDERS:
        return None, ""
    return Bucket(match["bucket"], _PROVIDERS[match["scheme"]], match["namespace"] or ""), match["name"] or ""
