"""The control message that precedes an object on a WebSocket."""

from __future__ import annotations

import json
from typing import NamedTuple

from .names import decode_fqn

_decode = json.JSONDecoder().decode


class InvalidControlMessageError(ValueError):
    """A control message is not what the protocol says: a binary message holding a JSON object of strings."""


class ControlMessage(NamedTuple):
    """What a target says of the object that follows. Everything may be empty."""

    pipeline: str = ""
    """Comma-separated URLs, as in the `ais-node-url` header."""
    etl_args: str = ""
    fqn: str = ""
    """The object's local file, decoded. When it is empty, the object is the next message."""
    path: str = ""
    """The object's name."""


def parse_control_message(message: bytes | str) -> ControlMessage:
    """Decode a control message; fields that are not known here are passed over.

    Raises:
        InvalidControlMessageError: it is a text message, no JSON, no object, or a field is not a string.
    """
    if isinstance(message, str):
        raise InvalidControlMessageError("the control message is text, expected a binary message of JSON")
    try:
        fields = _decode(message.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidControlMessageError(f"the control message is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InvalidControlMessageError(f"the control message is a JSON {type(fields).__name__}, expected an object")
    values: list[str] = []
    for name in ControlMessage._fields:
        value = fields.get(name, "")
        if value is None:
            value = ""
        elif not isinstance(value, str):
            raise InvalidControlMessageError(f"the control message's {name!r} is not a string")
        values.append(value)
    control = ControlMessage(*values)
    return control._replace(fqn=decode_fqn(control.fqn)) if control.fqn.startswith("%") else control
