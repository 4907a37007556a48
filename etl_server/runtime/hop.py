"""Objects that wait for one answer of another server, and for nothing else: they go their way without a coroutine.

Most objects that are pulled or delivered do. `Worker` begins a hop where it can. What is not as usual (an error, an
object that is large or slow, a client that goes away) goes on from there as everything else does, in `Worker.serve`.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from .admission import Lease
from .counts import Way
from .deliver import acknowledged
from .exchange import OK, Answer, Exchange
from .outbound import PendingRequest, Response

if TYPE_CHECKING:
    from .worker import Handler, ObjectRequest, Worker

Begun = Response | BaseException | None
"""How a request that was begun went on; None: it is to be made again."""


class Traveller(Exchange, Protocol):
    """Whose object it is."""

    def go_on(self, hop: Hop, now: Answer | Handler) -> None:
        """The hop is over: here is the answer, or what is left to be done for it."""


class Hop:
    """A request to another server, under way. It stands in for the task of its object."""

    __slots__ = ("_pending", "_traveller", "way", "worker")

    def __init__(self, worker: Worker, traveller: Traveller, way: Way) -> None:
        self.worker = worker
        self.way = way
        self._traveller = traveller
        self._pending: PendingRequest | None = None

    def send(self) -> PendingRequest | None:
        """Begin the request, if a connection is at hand."""
        raise NotImplementedError

    def came(self, response: Response) -> Answer | Handler:
        """The response is here: the answer, or what is left to be done with it."""
        raise NotImplementedError

    def resume(self, begun: Begun) -> Handler:
        """What is left to be done, if not all is as usual."""
        raise NotImplementedError

    def begin(self) -> bool:
        """Whether it is under way; else nothing has been done."""
        self._pending = self.send()
        return self._pending is not None

    def taker(self, outcome: Response | BaseException) -> None:
        """What the request tells how it went."""
        if isinstance(outcome, Response):
            self._pending = None
            self._traveller.go_on(self, self.came(outcome))
        else:
            # Not from here: the connection is still at work on it.
            asyncio.get_running_loop().call_soon(self._failed, outcome)

    def cancel(self, msg: Any | None = None) -> bool:
        """As of a task: the object will end by a `CancelledError`."""
        pending, self._pending = self._pending, None
        if pending is None:
            return False
        pending.give_up()
        asyncio.get_running_loop().call_soon(self._cancelled, asyncio.CancelledError(msg))
        return True

    def _cancelled(self, error: asyncio.CancelledError) -> None:
        with suppress(asyncio.CancelledError):
            self._traveller.go_on(self, self.resume(error))

    def _failed(self, error: BaseException) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.give_up()
            self._traveller.go_on(self, self.resume(None if pending.went_stale else error))


class Pull(Hop):
    """The object was asked for from the target."""

    __slots__ = ("_name",)

    def __init__(self, worker: Worker, traveller: Traveller, name: str) -> None:
        super().__init__(worker, traveller, worker.counts.pull)
        self._name = name

    def send(self) -> PendingRequest | None:
        worker = self.worker
        return worker.outbound.request_now("GET", worker.target_url(self._name), worker.target_headers, b"", self.taker)

    def came(self, response: Response) -> Answer | Handler:
        body = response.body
        if response.status != OK or not body.ended or not self.worker.executor.is_quick(body.size):
            return self.resume(response)
        data = body.take_whole()
        response.close()
        return self.worker.answer_now(self._name, data, self.way, self._traveller)

    def resume(self, begun: Begun) -> Handler:
        return self.worker.pull_later(self._name, begun)


class Delivery(Hop):
    """The object was sent to its next stage."""

    __slots__ = ("_content", "_lease", "_request")

    def __init__(self, worker: Worker, traveller: Traveller, request: ObjectRequest, content: bytes) -> None:
        super().__init__(worker, traveller, request.way)
        self._request = request
        self._content = content
        self._lease = Lease(worker.admission.memory)

    def send(self) -> PendingRequest | None:
        request = self._request
        pending = self.worker.deliverer.put_now(
            request.stage, request.rest, request.name, request.etl_args, self._content, self.taker
        )
        if pending is not None:
            self._lease.add(len(self._content))
        return pending

    def came(self, response: Response) -> Answer | Handler:
        answer = acknowledged(response)
        if answer is None:
            return self.resume(response)
        self._lease.release()
        self.worker.counts.direct_puts["delivered"] += 1
        return answer

    def resume(self, begun: Begun) -> Handler:
        self._lease.release()
        return self.worker.deliver_later(self._request, self._content, begun)
