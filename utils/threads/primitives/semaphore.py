"""Semaphores: a number of permits, P takes one or waits for one, V gives one back.

E. Dijkstra, "Cooperating sequential processes", EWD 123, 1965; P and V are his names for what is
called `acquire` and `release` here. The textbook variant lets the number fall below zero and reads
its size as the length of the queue; here, as in POSIX (sem_overview(7)), it never does. A semaphore
has no owner: who takes a permit and who gives one may be different threads, and that is how a
producer tells a consumer that there is work.
"""

from __future__ import annotations

from _thread import allocate_lock

from utils.threads.primitives.condition import Condition


class Semaphore:
    """`threading.Semaphore`. Waits are recorded as `name`."""

    def __init__(self, value: int = 1, *, name: str = "semaphore") -> None:
        if value < 0:
            raise ValueError(f"semaphore initial value must be >= 0, got {value!r}")
        # mutex must be held whenever value changes. Invariant: value >= 0. A bare lock will do:
        # it never leaves this class, so nobody can release it wrongly.
        self._mutex = allocate_lock()
        self._positive = Condition(self._mutex, name=name)
        self._value = value

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        """P: take a permit; return whether there was one.

        Without `blocking` don't wait for it; with a `timeout` wait at most so many seconds.
        """
        if not blocking and timeout is not None:
            raise ValueError("can't specify timeout for non-blocking acquire")
        with self._mutex:
            if self._value == 0 and not (blocking and self._wait(timeout)):
                return False
            self._value -= 1
            return True

    __enter__ = acquire

    def _wait(self, timeout: float | None) -> bool:
        return self._positive.wait_for(lambda: self._value > 0, timeout)

    def release(self, n: int = 1) -> None:
        """V: give `n` permits and wake as many waiters."""
        if n < 1:
            raise ValueError(f"n must be one or more, got {n!r}")
        with self._mutex:
            self._give(n)

    def _give(self, n: int) -> None:
        self._value += n
        self._positive.notify(n)

    def __exit__(self, *error: object) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<threads.{type(self).__name__} at {id(self):#x}: value={self._state()}>"

    def _state(self) -> str:
        return f"{self._value}"


class BoundedSemaphore(Semaphore):
    """`threading.BoundedSemaphore`: a permit too many is a bug, so it raises ValueError."""

    def __init__(self, value: int = 1, *, name: str = "semaphore") -> None:
        super().__init__(value, name=name)
        self._initial = value

    def _give(self, n: int) -> None:
        if self._value + n > self._initial:
            raise ValueError(
                f"semaphore released too many times: {self._value} + {n} > {self._initial}"
            )
        super()._give(n)

    def _state(self) -> str:
        return f"{self._value}/{self._initial}"
