"""The door of an engine: a bounded line that many threads join and the workers empty in batches.

Bounded, because a queue that may grow without end answers everybody too late: when it is full,
callers are refused or wait (*back-pressure*). There is no thread in the middle that makes batches:
a free worker takes its own, so a request passes from one thread to another only once each way.
"""

from __future__ import annotations

from _thread import allocate_lock
from queue import Full
from typing import Generic

from utils.core.trace import now
from utils.deep_learning.serving.batching import Batcher, T
from utils.performance.queueing.requests import SECOND
from utils.threads.primitives.condition import Condition


class QueueFull(Full):
    """As many requests wait as are allowed: come back later, or go elsewhere."""


class EngineClosed(RuntimeError):
    """The engine accepts no more requests."""


class Intake(Generic[T]):
    """At most `capacity` requests wait for `policy` to release them."""

    def __init__(self, policy: Batcher[T], capacity: int) -> None:
        if capacity < 1 or capacity != int(capacity):
            raise ValueError(f"capacity={capacity!r} is not allowed: give 1 or more requests")
        self._policy, self._capacity = policy, capacity
        # lock must be held for every call to the policy and whenever _closed changes. While a
        # worker sleeps and requests wait, some worker was told, or sleeps until the batch is due:
        # `arrive` says when one has to be told, and who takes a batch passes it on.
        lock = allocate_lock()
        self._lock = lock
        self._batch = Condition(lock, name="a batch")
        self._room = Condition(lock, name="room")
        self._closed = False

    def __len__(self) -> int:
        return len(self._policy)

    def put(self, request: T, block: bool = False, timeout: float | None = None) -> None:
        """Let a request join the line; its `arrival` is the moment when it does.

        QueueFull if there is no room: now, or if `block`, within `timeout` seconds. EngineClosed.
        """
        with self._lock:
            if block and self._full():
                self._room.wait_for(lambda: self._closed or not self._full(), timeout)
            if self._closed:
                raise EngineClosed("the engine was closed: it accepts no more requests")
            if self._full():
                raise QueueFull(f"{self._capacity} requests wait, and no more may")
            request.arrival = now()
            if self._policy.arrive(request):
                self._batch.notify()  # one for the batch, not one for each request

    def take(self) -> tuple[list[T], list[T], int] | None:
        """Sleep until a batch is due: its requests, those too late, and when it was released (ns).

        None: the door is closed and nobody is left.
        """
        with self._lock:
            while True:
                moment = now()
                batch, late = self._policy.take(moment, flush=self._closed)
                if batch or late:
                    break
                if self._closed:
                    return None
                due = self._policy.due()
                self._batch.wait(None if due is None else max(0, due - moment) / SECOND)
            if self._policy:  # a condition promises no order of waking: leave it to nobody's luck
                self._batch.notify()
            self._room.notify(len(batch) + len(late))
        return batch, late, moment

    def leave(self, request: T) -> bool:
        """Whether the request was still in line; it is not any more, and its place is free."""
        with self._lock:
            if there := self._policy.leave(request):
                self._room.notify()
        return there

    def close(self, drain: bool) -> list[T]:
        """Accept nobody any more. Return who was sent home: nobody, if the line is to `drain`."""
        with self._lock:
            self._closed = True
            sent_home = [] if drain else self._policy.clear()
            self._batch.notify_all()
            self._room.notify_all()
        return sent_home

    def _full(self) -> bool:
        return len(self._policy) >= self._capacity
