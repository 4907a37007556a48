"""When an object store tries again: one policy for all of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from tenacity import (
    AsyncRetrying,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
    wait_exponential,
    wait_random,
)

from ..errors import ObjectStoreTransientError

T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long a request is repeated that failed with `ObjectStoreTransientError`, and no other."""

    tries: int = 6
    """Requests in all."""
    seconds: float = 120.0
    """Seconds after which no further one is begun."""
    first_wait: float = 0.2
    """Seconds before the second; twice as many before every further one, and up to `first_wait` at random."""
    longest_wait: float = 10.0
    """Seconds up to which that doubles."""

    def __post_init__(self) -> None:
        if self.tries < 1:
            raise ValueError(f"tries={self.tries}: expected at least 1")
        for name in ("seconds", "first_wait", "longest_wait"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected no negative number")

    def call(self, function: Callable[[], T]) -> T:
        """What `function` returns, at last. It must be able to begin from the beginning.

        Raises:
            ObjectStoreTransientError: that of the last time.
        """
        return Retrying(**self._rules())(function)

    async def call_async(self, function: Callable[[], Awaitable[T]]) -> T:
        """The same of an asynchronous function."""

        async def call() -> T:  # tenacity awaits nothing else
            return await function()

        return await AsyncRetrying(**self._rules())(call)

    def _rules(self) -> dict[str, Any]:
        return {
            "retry": retry_if_exception_type(ObjectStoreTransientError),
            "wait": wait_exponential(self.first_wait, self.longest_wait) + wait_random(0, self.first_wait),
            "stop": stop_after_attempt(self.tries) | stop_after_delay(self.seconds),
            "reraise": True,
        }
