"""Where content goes in S3: routers say it by the content's digest."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from mimetypes import MimeTypes
from typing import Protocol, TypedDict

Tags = Mapping[str, str]
"""What a user says of content beside its type; kept as the tags of the object. S3 takes up to ten."""


class Digest(TypedDict):
    """What there is to know of content."""

    content_hash: str
    """The hash as lower-case hexadecimal digits; empty for a temporary key, when the content is yet to come."""
    content_hash_algorithm: str
    """`sha256`."""
    content_size: int
    """Bytes; 0 for a temporary key."""
    content_type: str
    """The MIME type."""
    content_encoding: str | None
    """How the content is compressed, as in HTTP's `Content-Encoding`; None if it is not."""


class S3Pointer(TypedDict):
    """Where an object is in S3."""

    bucket: str
    key: str


class S3Router(Protocol):
    """A function that says where content is to go."""

    def __call__(self, digest: Digest, tags: Tags, *, temp: bool) -> S3Pointer:
        """The place for some content.

        Args:
            digest: the content.
            tags: its tags.
            temp: whether this is where a stream goes until its hash is known: another place at every call, where
                nothing ever is, since what is there is removed in the end.
        """


def simple_s3_router(bucket: str, prefix: str = "") -> S3Router:
    """A router to `{prefix}/{content_hash}{ext}`, by way of `{prefix}/{uuid}{ext}`.

    Args:
        bucket: the bucket.
        prefix: what the keys begin with, before a slash; empty: the keys have no such beginning.

    `ext` comes from the content type, as in `.jpg`, and is empty for an unknown one.
    """
    beginning = f"{prefix.rstrip('/')}/" if prefix else ""

    def route(digest: Digest, tags: Tags, *, temp: bool) -> S3Pointer:
        name = str(uuid.uuid4()) if temp else digest["content_hash"]
        return {"bucket": bucket, "key": f"{beginning}{name}{_extension(digest['content_type'])}"}

    return route


def _extension(content_type: str) -> str:
    # The module's own function looks at files of the machine too; one content is to have one key on all of them.
    return MimeTypes().guess_extension(content_type.partition(";")[0].strip().lower()) or ""
