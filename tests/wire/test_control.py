"""The control message of a WebSocket: good, or refused with one kind of error."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from etl_server.wire.control import ControlMessage, InvalidControlMessageError, parse_control_message

from .strategies import names, texts

FIELDS = ["pipeline", "etl_args", "fqn", "path"]

plain = texts.filter(lambda text: not text.startswith("%"))
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(FIELDS), plain))
def test_fields_come_as_they_are_and_may_be_missing(fields: dict[str, str]) -> None:
    control = parse_control_message(json.dumps(fields).encode())
    assert control == ControlMessage(**fields)


@given(
    st.sampled_from(FIELDS), st.dictionaries(st.text().filter(lambda name: name not in FIELDS), json_values, max_size=3)
)
def test_null_and_unknown_fields_are_passed_over(null: str, unknown: dict[str, Any]) -> None:
    assert parse_control_message(json.dumps({**unknown, null: None}).encode()) == ControlMessage()


@given(names.map("/{}".format))
def test_a_local_path_may_come_escaped(path: str) -> None:
    fields = {"fqn": quote(path, safe="", errors="surrogateescape")}
    assert parse_control_message(json.dumps(fields).encode()).fqn == path


def test_a_local_path_may_come_plain() -> None:
    fields = {"fqn": "/mp/@ais/bck/%ob/100%25"}
    assert parse_control_message(json.dumps(fields).encode()).fqn == "/mp/@ais/bck/%ob/100%25"


@given(st.one_of(st.binary(max_size=80), st.text('{}[]":,\\u0d8patheql_rgs1', max_size=40).map(str.encode)))
@example(b"")
@example(b"\xff\xfe{\x00}\x00")
@example(b'{"path": "\\ud800"}')
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
@example(b"9" * 10_000)
def test_any_message_is_either_good_or_refused(message: bytes) -> None:
    try:
        control = parse_control_message(message)
    except InvalidControlMessageError:
        return
    assert isinstance(control, ControlMessage)
    assert all(isinstance(value, str) for value in control)


@given(json_values.filter(lambda value: not isinstance(value, dict)))
def test_what_is_no_object_is_refused(value: Any) -> None:
    with pytest.raises(InvalidControlMessageError):
        parse_control_message(json.dumps(value).encode())


@given(st.sampled_from(FIELDS), json_values.filter(lambda value: value is not None and not isinstance(value, str)))
def test_a_field_that_is_no_string_is_refused_by_its_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidControlMessageError, match=name):
        parse_control_message(json.dumps({name: value}).encode())


@given(st.dictionaries(st.sampled_from(FIELDS), plain))
def test_a_text_message_is_refused_whatever_it_says(fields: dict[str, str]) -> None:
    with pytest.raises(InvalidControlMessageError, match="text"):
        parse_control_message(json.dumps(fields))
