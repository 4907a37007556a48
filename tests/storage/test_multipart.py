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
    growing_size_at,
    growing_sizes,
    is_made_of,
    page_after,
    part_size_of,
    sent_part,
)


@given(st.integers(1, LARGEST_PART))
def test_10_000_parts_of_a_stream_hold_5_tib_whatever_the_first_one_is(first: int) -> None:
    sizes = list(growing_sizes(first))
    assert len(sizes) == MOST_PARTS
    assert sizes[0] == first
    assert sizes == sorted(sizes)
    assert sizes[-1] <= LARGEST_PART
    assert sum(sizes) >= LARGEST_OBJECT


@given(st.integers(1, LARGEST_PART), st.data())
def test_the_size_of_the_part_at_a_byte_is_that_of_the_growing_parts(first: int, data: st.DataObject) -> None:
    sizes = list(growing_sizes(first))
    number = data.draw(st.integers(0, MOST_PARTS - 1))
    start = sum(sizes[:number])
    for position in (start, start + sizes[number] - 1):
        assert growing_size_at(position, first) == sizes[number]


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


def test_an_object_is_made_of_parts_only_where_size_and_etag_say_so() -> None:
    part = sent_part("s3://bucket/key", 1, {"ETag": '"0cc175b9c0f1b6a831c399e269772661"'})
    opaque = sent_part("s3://bucket/key", 1, {"ETag": "opaque"})
    etag = etag_of_parts([part.etag])
    assert is_made_of([part], 1, f'"{etag}"')
    assert not is_made_of([part], 2, etag)
    assert not is_made_of([part], 1, part.etag)
    assert not is_made_of([opaque], 1, None)


def test_a_list_of_uploads_that_does_not_go_on_is_an_error() -> None:
    page = {"IsTruncated": True, "NextKeyMarker": "a", "NextUploadIdMarker": "1"}
    following = page_after(page)
    assert following == {"KeyMarker": "a", "UploadIdMarker": "1"}
    with pytest.raises(ObjectStoreError, match="does not go on"):
        page_after({**page, **following})
    with pytest.raises(ObjectStoreError, match="does not go on"):
        page_after({"IsTruncated": True})
    assert page_after({**page, "IsTruncated": False}) == {}
