from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from etl_server.storage.object_paths import INCOMING, object_name, object_path
from tests.testing.odd_names import ODD_NAMES

UNFINISHED = f"{INCOMING}-1"
NOT_COMPONENTS = {"", ".", "..", INCOMING, UNFINISHED}
SEGMENTS = st.one_of(
    st.sampled_from(
        ["", ".", "..", "%", "%%", "%.", "%..", "%%..", "...", INCOMING, UNFINISHED, "%" + UNFINISHED, "%2E", "a%b"]
    ),
    st.binary(max_size=8).map(
        lambda raw: raw.replace(b"\0", b"").replace(b"/", b"").decode("utf-8", "surrogateescape")
    ),
)
NAMES = st.lists(SEGMENTS, min_size=1, max_size=5).map("/".join)


@given(NAMES)
@example("")
def test_a_name_comes_back_from_its_path(name: str) -> None:
    assert object_name(object_path(name)) == name


@given(NAMES)
def test_a_path_leads_nowhere_but_down(name: str) -> None:
    components = object_path(name).split("/")
    assert NOT_COMPONENTS.isdisjoint(components)
    assert len(components) == name.count("/") + 1


@given(NAMES.filter(lambda path: NOT_COMPONENTS.isdisjoint(path.split("/"))))
def test_every_file_is_some_object_s(path: str) -> None:
    assert object_path(object_name(path)) == path


@given(st.lists(st.text("ab%.-_ #?+&é", min_size=1).filter(lambda s: s.strip("%") not in NOT_COMPONENTS), min_size=1))
def test_an_ordinary_name_is_its_own_path(segments: list[str]) -> None:
    assert object_path("/".join(segments)) == "/".join(segments)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("", "%"),
        ("/a", "%/a"),
        ("a/", "a/%"),
        ("a//b", "a/%/b"),
        ("../x", "%../x"),
        ("%../x", "%%../x"),
        ("%", "%%"),
        ("100%", "100%"),
        (INCOMING, "%" + INCOMING),
        (f"%{UNFINISHED}", f"%%{UNFINISHED}"),
    ],
)
def test_a_segment_that_can_be_no_file_s_name_is_escaped(name: str, path: str) -> None:
    assert object_path(name) == path
    assert object_name(path) == name


def test_odd_names_have_paths_of_their_own() -> None:
    assert len({object_path(name) for name in ODD_NAMES}) == len(ODD_NAMES)


def test_a_nul_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        object_path("a\0b")


@pytest.mark.parametrize("path", ["", "a//b", "/a", "a/..", ".", INCOMING, f"a/{UNFINISHED}/b"])
def test_a_path_that_is_no_object_s_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="no object's path"):
        object_name(path)
