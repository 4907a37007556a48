from __future__ import annotations

from collections.abc import Callable

import pytest
from tenacity import RetryCallState, Retrying

from etl_server.errors import ObjectStoreError, ObjectStoreTransientError
from etl_server.storage import RetryPolicy


class Failing:
    """Fails, and counts how often."""

    def __init__(self, error: Callable[[str], Exception] = ObjectStoreTransientError) -> None:
        self.error = error
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        raise self.error(f"try {self.calls}")

    async def later(self) -> None:
        self()

    async def under(self, policy: RetryPolicy, natively: bool) -> None:
        """Be called as a policy says."""
        await policy.call_async(self.later) if natively else policy.call(self)


async def test_tries_have_an_end_and_the_last_failure_is_told() -> None:
    policy = RetryPolicy(tries=4, first_wait=0)
    for natively in (True, False):
        failing = Failing()
        with pytest.raises(ObjectStoreTransientError, match="try 4"):
            await failing.under(policy, natively)
        assert failing.calls == 4


async def test_no_try_is_begun_when_the_time_is_over() -> None:
    policy = RetryPolicy(tries=2000, seconds=0.05, first_wait=0.001, longest_wait=0.001)
    for natively in (True, False):
        failing = Failing()
        with pytest.raises(ObjectStoreTransientError):
            await failing.under(policy, natively)
        assert failing.calls < 1000


@pytest.mark.parametrize("error", [ObjectStoreError, PermissionError, FileNotFoundError, ValueError, OSError])
async def test_nothing_else_is_tried_again(error: type[Exception]) -> None:
    failing = Failing(error)
    with pytest.raises(error, match="try 1"):
        RetryPolicy().call(failing)
    with pytest.raises(error, match="try 2"):
        await RetryPolicy().call_async(failing.later)


def test_waits_double_up_to_the_longest_and_differ() -> None:
    retrying = Retrying(**RetryPolicy(first_wait=1, longest_wait=5)._rules())
    state = RetryCallState(retrying, None, (), {})
    for attempt, wait in enumerate((1, 2, 4, 5, 5), 1):
        state.attempt_number = attempt
        waits = {retrying.wait(state) for _ in range(20)}
        assert all(wait <= each <= wait + 1 for each in waits)
        assert len(waits) > 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"tries": 0}, "tries=0: expected at least 1"),
        ({"seconds": -1.0}, "seconds=-1.0"),
        ({"first_wait": -1}, "first"),
    ],
)
def test_bounds_are_checked_at_once(options: dict[str, int], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        RetryPolicy(**options)
