"""Names in paths and queries: whatever a name is, it comes back."""

from __future__ import annotations

import string
from urllib.parse import quote, quote_plus, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl_server.wire.names import (
    check_etl_name,
    decode_fqn,
    decode_path,
    decode_query,
    encode_object_path,
    encode_uname,
)

from .strategies import names, texts

UNRESERVED = set(string.ascii_letters + string.digits + "-._~")


@given(names)
def test_a_uname_comes_back_from_its_segment(name: str) -> None:
    segment = encode_uname(name)
    assert decode_path("/" + segment) == name
    assert decode_path(segment) == name or name.startswith("/")


@given(names)
def test_a_uname_is_one_segment_with_at_as_the_only_extra_character(name: str) -> None:
    assert set(encode_uname(name)) <= UNRESERVED | {"@", "%"}


@given(names)
def test_an_object_path_keeps_its_slashes_and_comes_back(name: str) -> None:
    path = encode_object_path(name)
    assert path.count("/") == name.count("/")
    assert set(path) <= UNRESERVED | {"@", "%", "/"}
    assert decode_path("/" + path) == name


@given(st.text("abc/%2Ff@#?é", max_size=40))
def test_any_path_can_be_decoded_and_is_asked_for_by_what_it_means(raw: str) -> None:
    name = decode_path("/" + raw)
    assert decode_path("/" + encode_uname(name)) == name


def test_a_path_loses_one_slash_and_is_decoded_once() -> None:
    assert decode_path("/ais%2F@%23%2Fbucket%2Fdir%2Fobj.jpg") == "ais/@#/bucket/dir/obj.jpg"
    assert decode_path("/bucket//leading") == "bucket//leading"
    assert decode_path("//leading") == "/leading"
    assert decode_path("/%2Fleading") == "/leading"
    assert decode_path("/a%252Fb+c") == "a%2Fb+c"
    assert decode_path("/100%") == "100%"
    assert decode_path("/") == ""
    assert decode_path("") == ""


def test_a_uname_is_escaped_as_a_target_does() -> None:
    assert encode_uname("ais/@#/bucket/dir/obj.jpg") == "ais%2F@%23%2Fbucket%2Fdir%2Fobj.jpg"


@given(st.dictionaries(texts, texts, max_size=5))
def test_a_query_comes_back(values: dict[str, str]) -> None:
    assert decode_query(urlencode(values)) == values
    assert decode_query("&".join(f"{quote(key, safe='')}={quote(value)}" for key, value in values.items())) == values


@given(st.text(st.characters(max_codepoint=255), max_size=80))
def test_any_query_can_be_decoded(query: str) -> None:
    decode_query(query)


@given(texts, texts)
def test_of_a_parameter_that_comes_twice_the_first_counts(first: str, second: str) -> None:
    assert decode_query(f"a={quote_plus(first)}&a={quote_plus(second)}") == {"a": first}


@pytest.mark.parametrize(
    ("query", "values"),
    [
        ("", {}),
        ("&&", {}),
        ("a", {"a": ""}),
        ("a=", {"a": ""}),
        ("a=b=c", {"a": "b=c"}),
        ("a=b+c%2Bd", {"a": "b c+d"}),
        ("a=1;b=2", {"a": "1;b=2"}),
        ("%61+=x", {"a ": "x"}),
    ],
)
def test_queries_are_read_as_go_writes_them(query: str, values: dict[str, str]) -> None:
    assert decode_query(query) == values


@given(names)
def test_a_local_path_comes_back_from_being_encoded_twice(path: str) -> None:
    encoded = quote_plus(quote(path, safe="", errors="surrogateescape"))
    assert decode_fqn(decode_query(f"etl_fqn={encoded}")["etl_fqn"]) == path


@pytest.mark.parametrize("name", ["abcdef", "a" * 32, "0-etl-9", "a----b", "123456"])
def test_a_name_that_aistore_takes_for_an_etl_passes(name: str) -> None:
    check_etl_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "abcde",
        "a" * 33,
        "Abcdef",
        "abc_def",
        "abc.def",
        "abc def",
        "-abcdef",
        "abcdef-",
        "abcdéf",
        "abcdef\n",
        "٣" * 6,
    ],
)
def test_a_name_that_aistore_refuses_for_an_etl_is_told_with_what_was_expected(name: str) -> None:
    with pytest.raises(ValueError, match="expected 6 to 32 characters") as raised:
        check_etl_name(name)
    assert repr(name) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_uname_of_ascii_is_escaped_as_any_other() -> None:
    every = "".join(map(chr, range(128)))
    assert encode_uname(every) == quote(every, safe="@") == encode_uname(every + "é").removesuffix("%C3%A9")
