"""Users' methods and clients that may be asynchronous or not."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def maybe_await(result: Awaitable[T] | T) -> T:
    """What a call gave in the end: `result`, awaited if it is to be.

    Ask this of what a call returned, never `iscoroutinefunction` of what is called: that says no to generated methods,
    those of aiobotocore's clients among them, to partials and to objects that are callable.
    """
    if inspect.isawaitable(result):
        awaited: T = await result
        return awaited
    return result
