"""The `ais-node-url` header: the stages that an object still has to go through."""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import SplitResult, quote_plus, unquote_plus, urlsplit

from .names import ETL_ARGS, encode_object_path

_TO_BE_ESCAPED = re.compile(r"[^!-~]")


class InvalidPipelineError(ValueError):
    """A pipeline header is malformed: it has an empty entry, or one that is no http(s) URL."""


def parse_etl_pipeline(header: str) -> tuple[str, str]:
    """Split a pipeline header into its first URL and the rest, which goes on in the same header.

    Returns `("", "")` where the header is empty or blank, and `(url, "")` where it has one entry.

    Raises:
        InvalidPipelineError: an entry is empty.
    """
    if not header or header.isspace():
        return "", ""
    if "," not in header:
        return header.strip(), ""
    stages = [stage.strip() for stage in header.split(",")]
    if not all(stages):
        raise InvalidPipelineError("Pipeline header contains an empty entry")
    return stages[0], ",".join(stages[1:])


def check_etl_pipeline(header: str) -> tuple[str, str]:
    """As `parse_etl_pipeline`, and every URL is checked, so that a malformed one stops an object before any work.

    Raises:
        InvalidPipelineError: an entry is empty, or is no absolute http(s) URL.
    """
    first, rest = parse_etl_pipeline(header)
    if first:
        _split_stage(first)
    if rest:
        for stage in rest.split(","):
            _split_stage(stage)
    return first, rest


def ends_at_target(header: str) -> bool:
    """Whether the pipeline's last URL has a path, which makes it a target: what it stores is acknowledged."""
    last = header.rpartition(",")[2].strip()
    return bool(last) and has_path(last)


def has_path(stage: str) -> bool:
    """Whether a stage's URL has a path: then it is a destination target, otherwise another ETL server."""
    return _split_stage(stage).path not in ("", "/")


def compose_etl_direct_put_url(direct_put_url: str, host_target: str, obj_path: str, etl_args: str = "") -> str:
    """The URL to PUT an object's transformed content to.

    Args:
        direct_put_url: a pipeline's first URL. Without a path it is another ETL server, and `obj_path` is appended,
            percent-encoded. With a path it is the destination target: its network location, escaped path and query
            stay byte for byte, scheme and base path are those of `host_target`.
        host_target: `AIS_TARGET_URL`.
        obj_path: the object's name, decoded.
        etl_args: carried along in the query, in place of one that is there; empty: the query stays as it is.

    Raises:
        InvalidPipelineError: `direct_put_url` is no absolute http(s) URL.
    """
    stage = _split_stage(direct_put_url)
    if stage.path in ("", "/"):
        scheme, path = stage.scheme, "/" + encode_object_path(obj_path)
    else:
        target = urlsplit(host_target)
        scheme, path = target.scheme or stage.scheme, target.path.rstrip("/") + stage.path
    query = _replace_etl_args(stage.query, etl_args) if etl_args else stage.query
    return f"{scheme}://{stage.netloc}{path}" + (f"?{query}" if query else "")


def _replace_etl_args(query: str, etl_args: str) -> str:
    others = [pair for pair in query.split("&") if pair and unquote_plus(pair.partition("=")[0]) != ETL_ARGS]
    return "&".join([*others, f"{ETL_ARGS}={quote_plus(etl_args, errors='surrogateescape')}"])


def check_url(url: str) -> SplitResult:
    """The parts of an absolute http(s) URL.

    Raises:
        ValueError: it is none; the text says why.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError("expected an absolute http(s) URL")
    _check_netloc(parts.netloc)
    return parts


@lru_cache(maxsize=256)
def _check_netloc(netloc: str) -> None:
    parts = urlsplit(f"//{netloc}")
    _ = parts.port
    labels = (parts.hostname or "").removesuffix(".").split(".")
    if not all(0 < len(label) < 64 for label in labels):
        raise ValueError(f"{netloc!r} is no host")


@lru_cache(maxsize=256)
def _split_stage(url: str) -> SplitResult:
    if _TO_BE_ESCAPED.search(url):
        raise InvalidPipelineError(f"{url!r} is not a URL: it has a character that a URL must escape")
    try:
        stage = check_url(url)
    except ValueError as error:
        raise InvalidPipelineError(f"{url!r} is not a URL: {error}") from None
    if stage.fragment:
        raise InvalidPipelineError(f"{url!r} has a fragment: '#' in a path must be escaped")
    return stage
