"""Redirects: which answers are one, where they lead, and when they are not to be followed."""

from __future__ import annotations

from urllib.parse import urljoin, urlsplit, urlunsplit

REDIRECTS = (301, 302, 307, 308)
"""The statuses of an answer that sends a request on as it is."""
MAX_REDIRECTS = 3
"""Redirects that one request may take: a gateway's to a target, the target's to its ETL, and one more."""


def redirected(url: str, location: str) -> str:
    """The URL that a `Location` means in an answer from `url`.

    Raises:
        ValueError: it is not one of http or https.
    """
    goal = urljoin(url, location)
    if _scheme(goal) not in ("http", "https") or not urlsplit(goal).hostname:
        raise ValueError("expected a redirect to an http(s) URL")
    return goal


def leaves_https(url: str, goal: str) -> bool:
    """Whether what was a secret on the way to `url` is none on the way to `goal`."""
    return _scheme(url) == "https" and _scheme(goal) != "https"


def shown(url: str) -> str:
    """A URL without user, query and fragment, which may hold secrets."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _scheme(url: str) -> str:
    return urlsplit(url).scheme  # in lower case, whatever the URL has
