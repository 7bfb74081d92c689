"""A condition variable: sleep until another thread says that something changed.

A lock protects the state, and a condition belongs to that lock. `wait` releases the lock and
sleeps *in one step*, as far as any other thread that uses the lock can tell, so no notification
falls in between. When it returns, it holds the lock again; but other threads may have been there
first, so look at the state again: `while not ready: cond.wait()`, or `cond.wait_for(ready)`.

How it can be made from locks alone: each waiter makes a lock, locks it, and locks it once more,
which blocks. To notify is to unlock the oldest waiter's lock. One lock a waiter, not one for all,
so that `notify(n)` wakes n, in order of arrival, and nobody by accident. This is the scheme of
CPython's threading.py. The idea: C. Hoare, "Monitors", CACM 17(10), 1974; that a woken waiter must
look again: B. Lampson, D. Redell, "Experience with Processes and Monitors in Mesa", CACM 23(2),
1980.
"""

from __future__ import annotations

from _thread import allocate_lock
from collections import deque
from collections.abc import Callable
from threading import current_thread
from time import monotonic
from typing import Any, TypeVar

from utils.core import trace
from utils.core.trace import now
from utils.threads.primitives.mutex import Mutex

T = TypeVar("T")


class Condition:
    """`threading.Condition`, except that its own lock, if you give none, is a `Mutex`.

    `lock` is a Mutex, a `threading` Lock or RLock, or whatever has their methods. Waits are
    recorded as `name`.
    """

    __slots__ = ("__dict__", "__enter__", "__exit__", "__weakref__")

    def __init__(self, lock: Any = None, *, name: str = "condition") -> None:
        self._lock = lock = Mutex() if lock is None else lock
        self.name = name
        # To hold the condition is to hold its lock: these are the lock's own methods. `with` looks
        # for its two in the class; there slots stand for them, which saves a call each time.
        self.acquire = lock.acquire
        self.release = lock.release
        self.__enter__ = lock.__enter__
        self.__exit__ = lock.__exit__
        # An RLock, held several times over, is released and taken back as a whole. Of a lock
        # without an owner all that can be known is whether somebody holds it.
        self._release_save = getattr(lock, "_release_save", lock.release)
        self._acquire_restore = getattr(lock, "_acquire_restore", lambda saved: lock.acquire())
        self._is_owned = getattr(lock, "_is_owned", None) or lock.locked
        # The lock must be held whenever _waiters changes. (A waiter that gives up and finds a
        # deadlock on its way back removes itself without it.)
        self._waiters: deque[Any] = deque()

    def wait(self, timeout: float | None = None) -> bool:
        """Release the lock, sleep until notified or for `timeout` seconds, take the lock again.

        Returns False if the time was up. RuntimeError if the lock is not held.
        """
        if not self._is_owned():
            raise RuntimeError("cannot wait on un-acquired lock")
        waiter = allocate_lock()
        waiter.acquire()
        self._waiters.append(waiter)
        notified, recorder, start = False, trace._active, now()
        saved = self._release_save()
        try:
            if timeout is None:
                notified = waiter.acquire()
            elif timeout > 0:
                notified = waiter.acquire(True, timeout)
            else:
                notified = waiter.acquire(False)
            return notified
        finally:  # whatever happened, Ctrl-C included
            if recorder is not None:
                recorder.add(current_thread().name, "lock", self.name, start, now())
            try:
                self._acquire_restore(saved)
            finally:
                if not notified:
                    self._forget(waiter)

    def wait_for(self, predicate: Callable[[], T], timeout: float | None = None) -> T:
        """Wait until `predicate()` holds, for at most `timeout` seconds; return its last value."""
        deadline = None if timeout is None else monotonic() + timeout
        result = predicate()
        while not result:
            self.wait(timeout)
            result = predicate()
            if deadline is not None and (timeout := deadline - monotonic()) <= 0:
                break
        return result

    def notify(self, n: int = 1) -> None:
        """Wake at most `n` waiters, the oldest first. RuntimeError if the lock is not held.

        They run when they get the lock, so not before the caller releases it. Without a
        waiter nothing happens, and nothing is remembered.
        """
        if not self._is_owned():
            raise RuntimeError("cannot notify on un-acquired lock")
        waiters = self._waiters
        while waiters and n > 0:
            waiter = waiters[0]
            try:
                waiter.release()
                n -= 1
            except RuntimeError:  # woken already, by a notify that Ctrl-C kept from the next line
                pass
            self._forget(waiter)

    def notify_all(self) -> None:
        """Wake everybody who waits. RuntimeError if the lock is not held."""
        self.notify(len(self._waiters))

    def _forget(self, waiter: Any) -> None:
        try:  # noqa: SIM105 - contextlib.suppress would take longer than all the rest
            self._waiters.remove(waiter)
        except ValueError:  # whoever woke it has removed it already
            pass

    def __repr__(self) -> str:
        return f"<threads.Condition({self._lock}, {len(self._waiters)})>"
