from __future__ import annotations

import pytest

from etl_server.wire.redirects import leaves_https, redirected, shown


@pytest.mark.parametrize(
    ("location", "goal"),
    [
        ("http://other/x?y=1", "http://other/x?y=1"),
        ("HTTPS://other/x", "https://other/x"),
        ("//other/x", "https://other/x"),
        ("/x?y=1", "https://host:1/x?y=1"),
        ("b", "https://host:1/dir/b"),
    ],
)
def test_a_location_is_meant_relative_to_where_it_comes_from(location: str, goal: str) -> None:
    assert redirected("https://host:1/dir/a", location).lower() == goal


@pytest.mark.parametrize("location", ["ftp://other/x", "file:///etc/passwd", "http://:80/x", "javascript:x"])
def test_only_http_urls_are_followed(location: str) -> None:
    with pytest.raises(ValueError, match=r"http\(s\)"):
        redirected("http://host/a", location)


def test_from_https_to_http_is_told_in_any_case() -> None:
    assert leaves_https("HTTPS://host/a", "Http://host/a")
    assert not leaves_https("https://host/a", "HTTPS://other/a")
    assert not leaves_https("http://host/a", "http://other/a")


def test_a_url_is_shown_without_what_may_be_secret() -> None:
    assert shown("https://user:secret@host:1/a?signature=secret#secret") == "https://host:1/a"
