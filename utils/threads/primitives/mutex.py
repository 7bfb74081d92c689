"""A mutex that knows its owner, counts its contention, and names a deadlock.

It stands, like everything in this section, on one thing only: `_thread.allocate_lock`, the lock
that `threading.Lock` is. That lock has no owner: any thread may release it. A *mutex* in the
sense of POSIX has one (pthread_mutex_lock(3p), type PTHREAD_MUTEX_ERRORCHECK): to release it
without holding it is an error, and so is to wait for oneself.
"""

from __future__ import annotations

import itertools
from _thread import TIMEOUT_MAX, allocate_lock
from threading import current_thread, get_ident

from utils.core import trace
from utils.core.trace import Recorder, now
from utils.threads.primitives.deadlock import Deadlock, begin_wait, end_wait, thread_name

_numbers = itertools.count(1)


class Mutex:
    """`threading.Lock` with an owner; not reentrant.

    While a recording is on (`trace.recording`), waits become spans of category "lock" and holds of
    category "hold"; `deadlock.lock_order` reads them.

    `acquired`, `contended` and `waited` say how often it was acquired, how often not at once, and
    the seconds that those acquisitions waited.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name or f"mutex {next(_numbers)}"
        self._lock = allocate_lock()
        # _lock must be held whenever anything below changes. So only its holder ever writes, and
        # counts are exact. Whether _owner is oneself may be asked without the lock: no other
        # thread makes that true or false.
        self._owner: int | None = None
        self._hold: tuple[Recorder, int, bool] | None = None  # recorder, start in ns, blocking
        self.acquired = 0
        self.contended = 0
        self.waited = 0.0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Wait until the mutex is free and take it; return whether it was taken.

        Without `blocking` don't wait; with a `timeout` wait at most so many seconds. To wait
        without a timeout in a circle of threads that wait for each other raises Deadlock.
        """
        if timeout != -1:
            _check(blocking, timeout)
        if not self._lock.acquire(False) and not (blocking and self._wait(timeout)):
            return False
        self._owner = get_ident()
        self.acquired += 1
        if (recorder := trace._active) is not None:
            self._hold = recorder, now(), blocking
        return True

    __enter__ = acquire

    def _wait(self, timeout: float) -> bool:
        start = now()
        with trace.span("lock", self.name, blocking=True):
            if timeout != -1:
                taken = self._lock.acquire(True, timeout)
            else:
                begin_wait(self)
                try:
                    taken = self._lock.acquire()
                finally:
                    end_wait()
        if taken:
            self.contended += 1
            self.waited += (now() - start) / 1e9
        return taken

    def release(self) -> None:
        """Let the next one in. RuntimeError if the calling thread does not hold the mutex."""
        self.__exit__()

    def __exit__(self, kind: object = None, error: object = None, traceback: object = None) -> None:
        if self._owner != get_ident():
            if kind is Deadlock:  # found by a Condition's wait, which wanted the mutex back
                return
            raise RuntimeError(f"cannot release {self.name}: {self._held_by()}")
        if self._hold is not None:
            recorder, start, blocking = self._hold
            self._hold = None
            lane = current_thread().name
            recorder.add(lane, "hold", self.name, start, now(), blocking=blocking)
        self._owner = None
        self._lock.release()

    _release_save = __exit__  # what a Condition calls; it spares the way through `release`

    def _held_by(self) -> str:
        owner = self._owner
        return "nobody holds it" if owner is None else f"{thread_name(owner)} holds it"

    def locked(self) -> bool:
        """Whether some thread holds it; may be outdated as soon as it is known."""
        return self._lock.locked()

    def _is_owned(self) -> bool:  # what a Condition asks
        return self._owner == get_ident()

    def __repr__(self) -> str:
        state = "locked" if self.locked() else "unlocked"
        return f"<{state} threads.Mutex object {self.name!r} at {id(self):#x}>"


def _check(blocking: bool, timeout: float) -> None:
    """Refuse what `threading.Lock.acquire` refuses."""
    if not blocking:
        raise ValueError(f"timeout={timeout!r} with blocking=False: can't wait without blocking")
    if not timeout >= 0:  # nan too
        raise ValueError(f"timeout={timeout!r}: give 0 or more seconds, or -1 to wait forever")
    if timeout > TIMEOUT_MAX:
        raise OverflowError(f"timeout={timeout!r}: give at most {TIMEOUT_MAX:g} seconds")
