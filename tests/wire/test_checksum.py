"""Checksums by AIStore's names: known values, and the same however the data is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl_server.wire.checksum import CHECKSUM_TYPES, ChecksumType, checksum_of, new_checksum

EMPTY = {
    "xxhash2": "ef46db3751d8e999",
    "md5": "d41d8cd98f00b204e9800998ecf8427e",
    "crc32c": "00000000",
    "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "sha512": "cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce"
    "47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e",
}
DIGITS = {
    "xxhash2": "8cb841db40e6ae83",
    "md5": "25f9e794323b453885f5181f1b624d0b",
    "crc32c": "e3069283",
    "sha256": "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225",
    "sha512": "d9e6762dd1c8eaf6d61b3c6192fc408d4d6d5f1176d0c29169bc24e71c3f274a"
    "d27fcd5811b313d681f7e55ec02d73d499c95455b6b5bb503acf574fba8ffe85",
}
"""Of `123456789`, the check value that catalogues of checksums give."""


def test_the_types_are_those_of_the_contract() -> None:
    assert set(CHECKSUM_TYPES) == {"xxhash2", "md5", "crc32c", "sha256", "sha512"}


@pytest.mark.parametrize("name", CHECKSUM_TYPES)
def test_values_are_the_known_ones(name: ChecksumType) -> None:
    assert checksum_of(name, b"") == EMPTY[name]
    assert checksum_of(name, b"123456789") == DIGITS[name]


@given(st.sampled_from(CHECKSUM_TYPES), st.lists(st.binary(max_size=50), max_size=6))
def test_it_is_the_same_however_the_data_is_cut(name: ChecksumType, pieces: list[bytes]) -> None:
    running = new_checksum(name)
    for piece in pieces:
        running.update(piece)
    assert running.hexdigest() == checksum_of(name, b"".join(pieces))


@given(st.sampled_from(CHECKSUM_TYPES), st.binary(min_size=1, max_size=50), st.data())
def test_a_changed_bit_changes_it(name: ChecksumType, content: bytes, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(content) * 8 - 1))
    changed = bytearray(content)
    changed[position // 8] ^= 1 << position % 8
    assert checksum_of(name, bytes(changed)) != checksum_of(name, content)
