"""A future: the result of a call that somebody else makes, now or later.

PENDING -> RUNNING -> FINISHED, or PENDING -> CANCELLED. Whoever wants the result sleeps until the
future is done; whoever has it leaves it there once, wakes the sleepers and runs the callbacks. The
word: H. Baker, C. Hewitt, "The Incremental Garbage Collection of Processes", SIGPLAN Notices 12(8),
1977. The interface: PEP 3148.

A tiny task should stay cheap, so a future is born with one bare lock. The condition variable, which
costs more than all the rest, is made when somebody has to wait; most futures are done by then.
"""

from __future__ import annotations

import concurrent.futures
from _thread import allocate_lock
from collections.abc import Callable
from concurrent.futures import CancelledError, InvalidStateError
from concurrent.futures._base import (
    CANCELLED,
    CANCELLED_AND_NOTIFIED,
    FINISHED,
    LOGGER,
    PENDING,
    RUNNING,
)
from typing import Any

from utils.threads.primitives.condition import Condition


class Future(concurrent.futures.Future):
    """`concurrent.futures.Future`, of which it inherits only `repr`.

    It is a subclass because asyncio asks for one. `wait` and `as_completed` of the library lock
    `_condition`, read `_state` and enter themselves in `_waiters`, so these have their names here.
    """

    def __init__(self) -> None:
        # _condition (a lock is enough to be locked) must be held whenever anything below changes.
        # _state is set last, so that whoever finds it FINISHED may read the rest without the lock.
        self._condition = allocate_lock()
        self._state = PENDING
        self._result: Any = None
        self._exception: BaseException | None = None
        self._done_callbacks: list[Callable[[Future], object]] = []
        self._waiters: list[Any] = []  # those of the library
        self._sleepers: Condition | None = None

    def cancel(self) -> bool:
        """Cancel the call if it has not begun; return whether it is cancelled."""
        with self._condition:
            if self._state != PENDING:
                return self.cancelled()
            self._state = CANCELLED
            self._wake()
        self._run_callbacks()
        return True

    def cancelled(self) -> bool:
        """Whether the call was cancelled."""
        return self._state in (CANCELLED, CANCELLED_AND_NOTIFIED)

    def running(self) -> bool:
        """Whether the call is being made."""
        return self._state == RUNNING

    def done(self) -> bool:
        """Whether the call was cancelled or has ended."""
        return self._state not in (PENDING, RUNNING)

    def result(self, timeout: float | None = None) -> Any:
        """What the call returned, or raise what it raised; wait for at most `timeout` seconds.

        CancelledError if it was cancelled, TimeoutError if it has not ended in time.
        """
        if self._state == FINISHED and self._exception is None:
            return self._result
        error = self.exception(timeout)
        try:
            if error is not None:
                raise error
            return self._result
        finally:  # error -> its traceback -> this frame -> error would live until the next gc
            del error, self

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the call raised, or None; waits and raises as `result` does."""
        if not self.done():
            self._wait(timeout)
        if self.cancelled():
            raise CancelledError
        return self._exception

    def _wait(self, timeout: float | None) -> None:
        """Sleep until the future is done, or raise TimeoutError."""
        with self._condition:
            if self._sleepers is None:
                self._sleepers = Condition(self._condition, name="a result")
            if not self._sleepers.wait_for(self.done, timeout):
                raise TimeoutError

    def add_done_callback(self, fn: Callable[[Future], object]) -> None:
        """Call `fn(self)` once the future is done, at once if it is.

        Callbacks run in the order given, in the thread that ends or cancels the call. An exception
        of one is logged and keeps nobody from the others.
        """
        with self._condition:
            if not self.done():
                self._done_callbacks.append(fn)
                return
        self._call(fn)

    def set_running_or_notify_cancel(self) -> bool:
        """For executors: begin the call, unless it was cancelled; return whether to make it."""
        with self._condition:
            if self._state == PENDING:
                self._state = RUNNING
                return True
            if self._state == CANCELLED:
                self._state = CANCELLED_AND_NOTIFIED
                for waiter in self._waiters:
                    waiter.add_cancelled(self)
                return False
        raise RuntimeError(f"a future is begun once: {self!r}")

    def set_result(self, result: Any) -> None:
        """For executors: the call returned. InvalidStateError if the future is done."""
        self._finish(result, None)

    def set_exception(self, exception: BaseException) -> None:
        """For executors: the call raised. InvalidStateError if the future is done."""
        self._finish(None, exception)

    def _finish(self, result: Any, exception: BaseException | None) -> None:
        with self._condition:
            if over := self.done():
                state = self._state
            else:
                self._result, self._exception = result, exception
                self._state = FINISHED
                for waiter in self._waiters:
                    (waiter.add_result if exception is None else waiter.add_exception)(self)
                self._wake()
        if over:
            raise InvalidStateError(f"{state}: {self!r}")
        self._run_callbacks()

    def _wake(self) -> None:
        if self._sleepers is not None:
            self._sleepers.notify_all()

    def _run_callbacks(self) -> None:
        for fn in self._done_callbacks:
            self._call(fn)

    def _call(self, fn: Callable[[Future], object]) -> None:
        try:
            fn(self)
        except Exception:
            LOGGER.exception("exception calling callback for %r", self)
