"""The pipeline header, and the URLs that it makes."""

from __future__ import annotations

from urllib.parse import parse_qsl, quote, urlsplit

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from etl_server import InvalidPipelineError, compose_etl_direct_put_url, parse_etl_pipeline
from etl_server.wire.names import decode_path
from etl_server.wire.pipeline import check_etl_pipeline, ends_at_target, has_path

from .strategies import destinations, names, netlocs, schemes, servers, stages, texts

blanks = st.text(" \t", max_size=3)
ETL_PATH = "/v1/etl/_object/name/s3cr3t"


# Splitting


@given(st.lists(st.tuples(blanks, stages, blanks), min_size=1, max_size=6))
def test_a_pipeline_gives_its_stages_one_by_one(parts: list[tuple[str, str, str]]) -> None:
    header = ",".join("".join(part) for part in parts)
    check_etl_pipeline(header)
    taken = []
    while header:
        first, header = parse_etl_pipeline(header)
        taken.append(first)
    assert taken == [stage for _, stage, _ in parts]


@given(blanks)
def test_a_blank_header_is_no_pipeline(header: str) -> None:
    assert parse_etl_pipeline(header) == ("", "")
    check_etl_pipeline(header)


@given(st.lists(st.one_of(stages, blanks), min_size=2, max_size=5))
def test_an_empty_entry_is_malformed(entries: list[str]) -> None:
    assume(not all(entry.strip() for entry in entries))
    assume(",".join(entries).strip())
    with pytest.raises(InvalidPipelineError):
        parse_etl_pipeline(",".join(entries))


@given(st.one_of(st.text(max_size=60), st.text("htps:/.,@[]#?%\\ :0x\t", max_size=40), stages))
@example("http://[")
@example("http://[::1]x/")
@example("http://a:0x50/")
@example("http://a:٣/")
@example("http://a\u2100b/")
@example("http://[v1.x]/")
def test_any_header_is_either_good_or_malformed(header: str) -> None:
    try:
        check_etl_pipeline(header)
    except InvalidPipelineError:
        return
    while header:
        first, header = parse_etl_pipeline(header)
        if first:
            url = urlsplit(compose_etl_direct_put_url(first, f"http://target{ETL_PATH}", "a", "b"))
            assert url.scheme in ("http", "https")
            assert url.hostname


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "host:8000",
        "//host/path",
        "ftp://host/",
        "http://",
        "http:///path",
        "http://:80/",
        "http://host:port/",
        "http://host:65536/",
        "http://[::1/",
        "http://ho st/",
        "http://host/a b",
        "http://host/a\nb",
        "http://host/a\x7fb",
        "http://host/\N{LATIN SMALL LETTER E WITH ACUTE}",
        "http://host/a#b",
        "http://user@/",
    ],
)
def test_what_is_no_url_is_malformed(url: str) -> None:
    for check in (check_etl_pipeline, has_path, lambda url: compose_etl_direct_put_url(url, "http://t/x", "a")):
        with pytest.raises(InvalidPipelineError):
            check(url)
    with pytest.raises(InvalidPipelineError):
        check_etl_pipeline(f"http://good,{url}")


@given(st.lists(stages, max_size=3), servers, destinations)
def test_the_last_url_tells_where_a_pipeline_ends(before: list[str], server: str, destination: str) -> None:
    assert ends_at_target(",".join([*before, destination]))
    assert not ends_at_target(",".join([*before, server]))
    assert not ends_at_target("")


# Composing


@given(servers, st.sampled_from(["", "/"]), names, texts)
def test_another_server_gets_the_path_appended_and_escaped(server: str, slash: str, name: str, etl_args: str) -> None:
    url = compose_etl_direct_put_url(server + slash, f"https://target{ETL_PATH}", name, etl_args)
    assert url.isascii()
    assert url.startswith(server + "/")
    path, _, query = url.removeprefix(server).partition("?")
    assert decode_path(path) == name
    assert parse_qsl(query, keep_blank_values=True) == ([("etl_args", etl_args)] if etl_args else [])


@given(destinations, schemes, netlocs)
def test_a_destination_keeps_all_that_is_its_own(destination: str, scheme: str, netloc: str) -> None:
    _, _, own = destination.partition("://")
    own_netloc, slash, own_tail = own.partition("/")
    for base in (ETL_PATH, ETL_PATH + "/", "", "/"):
        url = compose_etl_direct_put_url(destination, f"{scheme}://{netloc}{base}", "not/this", "")
        assert url == f"{scheme}://{own_netloc}{base.rstrip('/')}{slash}{own_tail}".removesuffix("?")


def test_without_a_target_a_destination_stands_for_itself() -> None:
    assert compose_etl_direct_put_url("https://t:1/a%2Fb?c", "", "x") == "https://t:1/a%2Fb?c"


@given(
    st.one_of(servers, destinations.map(lambda url: url.partition("?")[0])),
    st.lists(st.tuples(st.one_of(texts, st.just("etl_args")), texts), max_size=5),
    texts.filter(bool),
)
def test_arguments_replace_those_that_are_there_and_nothing_else(
    stage: str, pairs: list[tuple[str, str]], etl_args: str
) -> None:
    query = "&".join(f"{quote(key)}={quote(value)}" for key, value in pairs)
    url = compose_etl_direct_put_url(f"{stage}?{query}", f"http://target{ETL_PATH}", "name", etl_args)
    kept = [f"{quote(key)}={quote(value)}" for key, value in pairs if key != "etl_args"]
    _, _, composed = url.partition("?")
    *others, last = composed.split("&")
    assert others == kept
    assert parse_qsl(last) == [("etl_args", etl_args)]


@given(st.one_of(servers, destinations), names, texts)
def test_what_is_composed_can_be_composed_again(stage: str, name: str, etl_args: str) -> None:
    """As it is by a server behind a server, with the same arguments."""
    target = f"http://target{ETL_PATH}"
    url = compose_etl_direct_put_url(stage, "", name, etl_args)
    assume(has_path(url))
    again = compose_etl_direct_put_url(url, target, name, etl_args)
    assert urlsplit(again).path == ETL_PATH + urlsplit(url).path
    assert urlsplit(again).query == urlsplit(url).query


def test_the_example_of_the_contract() -> None:
    assert (
        compose_etl_direct_put_url(
            "http://t2:51081/ais%2F@%23%2Fdst%2Fobj?uuid=x&owt=5", "https://t1:51080/v1/etl/_object/e/s", "n", "a b"
        )
        == "https://t2:51081/v1/etl/_object/e/s/ais%2F@%23%2Fdst%2Fobj?uuid=x&owt=5&etl_args=a+b"
    )
