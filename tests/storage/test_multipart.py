"""Parts: never more than 10,000, and no byte of a stream lost between them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl_server.errors import ObjectStoreError
from etl_server.storage.multipart import (
    LARGEST_OBJECT,
    LARGEST_PART,
    MOST_PARTS,
    PART_SIZE,
    PartCutter,
    cut,
    etag_of_parts,
    growing_sizes,
    part_size_of,
)


@given(st.integers(1, LARGEST_PART))
def test_10_000_parts_of_a_stream_hold_5_tib_whatever_the_first_one_is(first: int) -> None:
    sizes = list(growing_sizes(first))
    assert len(sizes) == MOST_PARTS
    assert sizes[0] == first
    assert sizes == sorted(sizes)
    assert sizes[-1] <= LARGEST_PART
    assert sum(sizes) >= LARGEST_OBJECT


def test_the_parts_of_a_gigabyte_are_still_small() -> None:
    assert list(growing_sizes(PART_SIZE))[75] <= 2 * PART_SIZE + (1 << 20)


@given(st.integers(0, LARGEST_OBJECT), st.integers(1, LARGEST_PART))
def test_a_known_size_never_needs_more_than_10_000_parts(size: int, least: int) -> None:
    part_size = part_size_of(size, least)
    assert least <= part_size <= LARGEST_PART
    assert -(-size // part_size) <= MOST_PARTS


@given(st.lists(st.binary(max_size=20)), st.integers(1, 12))
def test_parts_are_the_stream_whatever_its_pieces_are(pieces: list[bytes], first: int) -> None:
    parts = list(cut(pieces, first))
    assert b"".join(parts) == b"".join(pieces)
    assert all(parts)
    assert all(len(part) == size for part, size in zip(parts[:-1], growing_sizes(first), strict=False))


def test_a_stream_beyond_all_parts_is_refused() -> None:
    cutter = PartCutter(2, largest=1)
    assert sum(map(len, cutter.feed(bytes(2 * MOST_PARTS)))) == 2 * MOST_PARTS
    assert list(cutter.feed(b"")) == []
    with pytest.raises(ObjectStoreError, match="10000 parts"):
        list(cutter.feed(b"x"))


def test_the_etag_of_parts_is_that_of_s3() -> None:
    """As `md5sum` makes it of the parts `a` and `b`."""
    etags = ['"0cc175b9c0f1b6a831c399e269772661"', "92eb5ffee6ae2fec3ad71c777531578f"]
    assert etag_of_parts(etags) == "96e024ba2074fe77e8e965ba43a704be-2"


@pytest.mark.parametrize("etag", ["opaque", "0cc175b9c0f1b6a831c399e269772661-2", "0cc1", ""])
def test_parts_whose_etags_are_no_md5s_make_none(etag: str) -> None:
    assert etag_of_parts(["92eb5ffee6ae2fec3ad71c777531578f", etag]) is None
