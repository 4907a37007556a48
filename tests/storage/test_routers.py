"""Where the simple router sends content."""

from __future__ import annotations

import re

import pytest

from etl_server import simple_s3_router
from etl_server.storage import Digest


def digest(content_type: str) -> Digest:
    return {
        "content_hash": "abc123",
        "content_hash_algorithm": "sha256",
        "content_size": 3,
        "content_type": content_type,
        "content_encoding": None,
    }


@pytest.mark.parametrize(
    ("prefix", "content_type", "key"),
    [
        ("", "image/jpeg", "abc123.jpg"),
        ("a/b", "text/plain", "a/b/abc123.txt"),
        ("a/", "Text/HTML; charset=utf-8", "a/abc123.html"),
        ("a", "application/x-not-known", "a/abc123"),
        ("a", "", "a/abc123"),
    ],
)
def test_a_key_is_prefix_hash_and_extension(prefix: str, content_type: str, key: str) -> None:
    route = simple_s3_router("the-bucket", prefix)
    assert route(digest(content_type), {}, temp=False) == {"bucket": "the-bucket", "key": key}


def test_every_temporary_key_is_another_one_under_the_prefix() -> None:
    route = simple_s3_router("the-bucket", "pre")
    made = {route(digest("image/png"), {}, temp=True)["key"] for _ in range(10)}
    assert len(made) == 10
    assert all(re.fullmatch(r"pre/[0-9a-f]{8}-[0-9a-f-]{27}\.png", key) for key in made)
