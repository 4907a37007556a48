"""What names, arguments and URLs may be."""

from __future__ import annotations

from urllib.parse import quote

from hypothesis import strategies as st

names = st.one_of(
    st.binary(max_size=60).map(lambda raw: raw.decode("utf-8", "surrogateescape")),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=60),
    st.text("/%#?&+@:=;,. \\\r\n\tab%2fé日", max_size=30),
)
"""Any bytes; text; and what is full of the characters that mean something in a URL."""

texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=60),
    st.text('{}[]":,&=+%#?; /é', max_size=30),
)

hosts = st.sampled_from(["host", "t1.example.org", "10.0.0.1", "[::1]", "[2001:db8::7]", "a-b_c"])
ports = st.one_of(st.just(""), st.integers(1, 65535).map(":{}".format))
netlocs = st.builds("{}{}".format, hosts, ports)
schemes = st.sampled_from(["http", "https"])

escaped = st.text("abcXYZ019-._~!$&'()*+;=:@/%", max_size=40).map(lambda text: text.replace("%", "%2F"))
"""What may stand in a path, once a comma is escaped, as it has to be in a header that is separated by commas."""

paths = st.one_of(
    names.map(lambda name: "/" + quote(name, safe="@", errors="surrogateescape")), escaped.map("/x{}".format)
)
queries = st.one_of(
    st.just(""),
    st.lists(st.tuples(texts, texts), max_size=4).map(
        lambda pairs: "?" + "&".join(f"{quote(key)}={quote(value)}" for key, value in pairs)
    ),
)

servers = st.builds("{}://{}".format, schemes, netlocs)
"""URLs of other ETL servers."""
destinations = st.builds("{}://{}{}{}".format, schemes, netlocs, paths.filter(lambda path: path != "/"), queries)
"""URLs of targets."""
stages = st.one_of(servers, servers.map("{}/".format), destinations)
