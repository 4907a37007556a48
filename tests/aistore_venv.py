"""AIStore's own Python package, in an environment of its own: what ours is compared with."""

from __future__ import annotations

from pathlib import Path

from .environments import needs_installation, python_with

REQUIREMENT = "aistore[etl]==2.0.0"

needs_aistore = needs_installation
"""Marks the tests that call `aistore_python()`."""


def aistore_python() -> Path:
    """The interpreter of an environment that has `aistore[etl]` of one fixed version, and nothing of ours."""
    return python_with("aistore", REQUIREMENT)
