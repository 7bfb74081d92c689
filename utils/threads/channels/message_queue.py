"""A message queue: threads hand objects to each other, in order, and nobody gets too far ahead.

`MessageQueue` has the interface of `queue.Queue`, so that either can be used. Three things are
added. `priority` delivers the most urgent message first (the smallest number, as
`queue.PriorityQueue` does; POSIX queues take the largest, mq_overview(7)), equals in order of
arrival. `close` says that nothing more will come: what is there is still delivered, then `get`
raises `Closed` and a `for` loop over the queue ends. (Python 3.13 calls that `shutdown` and
`queue.ShutDown`.) And every wait is recorded.

`maxsize` bounds the queue: a producer that is faster than its consumer waits in `put`. That is
*back-pressure*. Without a bound the queue grows until the memory is gone.

One condition a predicate on one lock, as in CPython's queue.py. The idea: C. Hoare, "Monitors: An
Operating System Structuring Concept", CACM 17(10), 1974, where the bounded buffer is an example.
"""

from __future__ import annotations

from _thread import allocate_lock
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from heapq import heappop, heappush
from itertools import count
from operator import index
from queue import Empty, Full
from time import monotonic
from typing import Any, Generic, TypeVar

from utils.core import trace
from utils.threads.primitives.condition import Condition

T = TypeVar("T")


class Closed(Exception):
    """The queue was closed: nothing more can be put, or nothing is left to get."""


class MessageQueue(Generic[T]):
    """At most `maxsize` messages (0: no bound) between any number of threads.

    They come out in order of arrival; or, with `priority`, a function from a message to a whole
    number, smallest number first and equals in order of arrival.
    """

    def __init__(self, maxsize: int = 0, *, priority: Callable[[T], int] | None = None) -> None:
        self.maxsize = index(maxsize)
        if maxsize < 0:
            raise ValueError(f"maxsize={maxsize} is not allowed: give 0 (no bound) or more")
        # mutex must be held whenever anything below changes. The three conditions share it: who
        # waits for one of them gives it up meanwhile.
        self._mutex = allocate_lock()
        self._not_empty = Condition(self._mutex, name="not empty")  # notified by put and close
        self._not_full = Condition(self._mutex, name="not full")  # notified by get and close
        self._all_done = Condition(self._mutex, name="all done")  # notified by task_done
        self._messages: Any  # a deque of messages or a heap of (priority, number, message)
        if priority is None:
            self._messages = deque()
            self._push, self._pop = self._messages.append, self._messages.popleft
        else:
            self._messages = []
            self._push = partial(heappush, self._messages)
            self._pop = partial(heappop, self._messages)
        self._priority = priority
        self._numbers = count()  # no two are equal, so that messages are never compared
        self._unfinished = 0
        self._closed = False

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """Add a message; while the queue is full, wait, for at most `timeout` seconds.

        Full: no room in time, or none now if not `block`. Closed: closed before there was room.
        """
        entry: Any = item
        if self._priority is not None:  # before the lock is taken: it may fail or take its time
            entry = index(self._priority(item)), next(self._numbers), item
        if block and timeout is not None and self.maxsize:
            self._check(timeout)
        with self._mutex:
            if 0 < self.maxsize <= len(self._messages):
                self._wait(self._not_full, self._is_full, block, timeout, Full)
            if self._closed:
                raise Closed("put in a closed queue")
            self._push(entry)
            self._unfinished += 1
            self._not_empty.notify()

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Take the next message; while there is none, wait, for at most `timeout` seconds.

        Empty: none in time, or none now if not `block`. Closed: closed, and all were taken.
        """
        if block and timeout is not None:
            self._check(timeout)
        with self._mutex:
            if not self._messages:
                self._wait(self._not_empty, self._is_empty, block, timeout, Empty)
                if not self._messages:
                    raise Closed("get from a closed queue, and all messages are taken")
            entry = self._pop()
            self._not_full.notify()
        return entry if self._priority is None else entry[-1]

    def _wait(
        self,
        condition: Condition,
        blocked: Callable[[], bool],
        block: bool,
        timeout: float | None,
        failure: type[Exception],
    ) -> None:
        """Wait until not `blocked()` or closed; `failure` if that takes too long."""
        deadline = None if timeout is None else monotonic() + timeout
        with trace.span("queue", f"until {condition.name}"):
            try:
                while blocked() and not self._closed:
                    left = None if deadline is None else deadline - monotonic()
                    if not block or (left is not None and left <= 0):
                        raise failure
                    condition.wait(left)
            except BaseException:
                condition.notify()  # we may have been woken for a message we don't take: pass it on
                raise

    @staticmethod
    def _check(timeout: float) -> None:
        if not timeout >= 0:  # nan too
            raise ValueError(f"timeout={timeout} is not allowed: give seconds, 0 or more, or None")

    def _is_full(self) -> bool:
        return 0 < self.maxsize <= len(self._messages)

    def _is_empty(self) -> bool:
        return not self._messages

    def put_nowait(self, item: T) -> None:
        """`put` without waiting."""
        self.put(item, block=False)

    def get_nowait(self) -> T:
        """`get` without waiting."""
        return self.get(block=False)

    def close(self) -> None:
        """Nothing more will be put. Whoever waits is woken; what is there can still be taken."""
        with self._mutex:
            self._closed = True
            self._not_empty.notify_all()
            self._not_full.notify_all()

    def __iter__(self) -> Iterator[T]:
        """Take messages until the queue is closed and empty."""
        while True:
            try:
                item = self.get()
            except Closed:
                return
            yield item

    def task_done(self) -> None:
        """One message that was taken is dealt with. ValueError: more often than it was put."""
        with self._mutex:
            if not self._unfinished:
                raise ValueError("task_done() called too many times")
            self._unfinished -= 1
            if not self._unfinished:
                self._all_done.notify_all()

    def join(self) -> None:
        """Wait until every message that was put is dealt with (see `task_done`)."""
        with self._mutex:
            while self._unfinished:
                self._all_done.wait()

    def qsize(self) -> int:
        """How many messages there were a moment ago."""
        with self._mutex:
            return len(self._messages)

    def empty(self) -> bool:
        """Whether it was empty a moment ago."""
        return not self.qsize()

    def full(self) -> bool:
        """Whether it was full a moment ago."""
        return 0 < self.maxsize <= self.qsize()
