"""Object names that are easily lost on their way through URLs and file systems."""

from __future__ import annotations

from etl_server.storage.object_paths import INCOMING

NOT_UTF8 = b"caf\xe9/\xff\xfe".decode("utf-8", "surrogateescape")

ODD_NAMES = [
    "plain.txt",
    "dir/sub/obj.jpg",
    "/leading",
    "//two",
    "trailing/",
    "a//b",
    ".",
    "..",
    "../up",
    "dir/../../up",
    "./here",
    "with space",
    "a#b",
    "a?b=c&d",
    "100%",
    "%",
    "%%",
    "%2e%2e/x",
    "%2F",
    "a%2Fb",
    "%..",
    "a+b",
    "a&b;c,d",
    "at@sign:1",
    "tilde~'\"<>|\\^`{}[]",
    "line\nbreak\ttab\r",
    "naïve/日本語/😀",
    "e\u0301",
    NOT_UTF8,
    INCOMING,
    f"dir/{INCOMING}-1/x",
    ".hidden",
    "-dash",
]
