"""Waiting for each other: an event that happens, a latch that opens, a barrier that all reach.

`Event` and `Barrier` are those of `threading`, `Latch` is Java's `java.util.concurrent.
CountDownLatch`. The difference: an event is one fact, said by one thread; a latch opens once, when
it was counted down by anybody; a barrier opens when its parties have all arrived, again and again.
"""

from __future__ import annotations

from _thread import allocate_lock
from collections.abc import Callable
from threading import BrokenBarrierError
from typing import Literal

from utils.threads.primitives.condition import Condition


class Event:
    """`threading.Event`: a flag that threads can wait for."""

    def __init__(self) -> None:
        self._mutex = allocate_lock()  # must be held whenever _flag changes
        self._changed = Condition(self._mutex, name="event")
        self._flag = False

    def is_set(self) -> bool:
        return self._flag

    def set(self) -> None:
        """Raise the flag and wake everybody who waits for it."""
        with self._mutex:
            self._flag = True
            self._changed.notify_all()

    def clear(self) -> None:
        """Lower the flag: from now on `wait` waits."""
        with self._mutex:
            self._flag = False

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the flag, at most `timeout` seconds; return whether it was raised."""
        with self._mutex:
            # Not a loop: who was woken by `set` returns, even if `clear` came right after it.
            return self._flag or self._changed.wait(timeout)

    def __repr__(self) -> str:
        return f"<threads.Event at {id(self):#x}: {'set' if self._flag else 'unset'}>"


class Latch:
    """Opens for good when it has been counted down to zero."""

    def __init__(self, count: int) -> None:
        if count < 0:
            raise ValueError(f"count={count!r}: give 0 or more")
        # mutex must be held whenever _count changes. Invariant: _count never rises.
        self._mutex = allocate_lock()
        self._opened = Condition(self._mutex, name="latch")
        self._count = count

    @property
    def count(self) -> int:
        """How many are missing."""
        return self._count

    def count_down(self, n: int = 1) -> None:
        """`n` fewer are missing; an open latch stays as it is."""
        if n < 1:
            raise ValueError(f"n={n!r}: give 1 or more")
        with self._mutex:
            self._count = max(0, self._count - n)
            if self._count == 0:
                self._opened.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is open, at most `timeout` seconds; return whether it is."""
        with self._mutex:
            return self._opened.wait_for(lambda: self._count == 0, timeout)


class Barrier:
    """`threading.Barrier`: `parties` threads go on together, time after time.

    One round has two halves. While the barrier is "filling", threads come and wait; the last one
    runs `action` and turns it to "draining". While it drains, the woken leave, and who comes for
    the next round already waits outside: else a fast thread could lap the slow ones and be counted
    twice. The last to leave turns it to "filling". "resetting" drains with an error, and "broken"
    stays.
    """

    def __init__(
        self, parties: int, action: Callable[[], object] | None = None, timeout: float | None = None
    ) -> None:
        if parties < 1:
            raise ValueError(f"parties={parties!r}: give 1 or more")
        # mutex must be held whenever state or count changes. Invariant: 0 <= count <= parties,
        # and count is the number of threads inside.
        self._mutex = allocate_lock()
        self._changed = Condition(self._mutex, name="barrier")
        self._state: Literal["filling", "draining", "resetting", "broken"] = "filling"
        self._count = 0
        self._parties = parties
        self._action = action
        self._timeout = timeout

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the others; return 0 to parties - 1, the order of arrival.

        BrokenBarrierError, for all of them, if one waits longer than `timeout` seconds (default:
        the barrier's), if the action raises, or if the barrier is aborted or reset.
        """
        if timeout is None:
            timeout = self._timeout
        with self._mutex:
            while self._state in ("draining", "resetting"):
                self._changed.wait()
            if self._state == "broken":
                raise BrokenBarrierError
            index = self._count
            self._count += 1
            try:
                if index + 1 == self._parties:
                    self._open()
                else:
                    self._wait(timeout)
                return index
            finally:
                self._count -= 1
                if self._count == 0 and self._state in ("draining", "resetting"):
                    self._turn("filling")

    def _open(self) -> None:
        try:
            if self._action is not None:
                self._action()
        except BaseException:
            self._turn("broken")
            raise
        self._turn("draining")

    def _wait(self, timeout: float | None) -> None:
        if not self._changed.wait_for(lambda: self._state != "filling", timeout):
            self._turn("broken")
        if self._state != "draining":
            raise BrokenBarrierError

    def _turn(self, state: Literal["filling", "draining", "resetting", "broken"]) -> None:
        self._state = state
        self._changed.notify_all()

    def reset(self) -> None:
        """Back to the start; threads that wait get BrokenBarrierError."""
        with self._mutex:
            if self._count == 0:
                self._state = "filling"
            elif self._state in ("filling", "broken"):
                self._turn("resetting")

    def abort(self) -> None:
        """Break the barrier until it is reset; threads that wait get BrokenBarrierError."""
        with self._mutex:
            self._turn("broken")

    @property
    def parties(self) -> int:
        """How many threads it takes."""
        return self._parties

    @property
    def n_waiting(self) -> int:
        """How many are waiting to be let through."""
        return self._count if self._state == "filling" else 0

    @property
    def broken(self) -> bool:
        return self._state == "broken"

    def __repr__(self) -> str:
        state = "broken" if self.broken else f"waiters={self.n_waiting}/{self.parties}"
        return f"<threads.Barrier at {id(self):#x}: {state}>"
