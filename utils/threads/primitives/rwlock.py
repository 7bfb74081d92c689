"""A lock for data that is read often and written seldom: many readers, or one writer.

The question is who goes first when both wait (P. Courtois, F. Heymans, D. Parnas, "Concurrent
Control with 'Readers' and 'Writers'", CACM 14(10), 1971). With preference "reader" no reader
waits unless a writer is inside, so readers that keep coming starve the writers. With preference
"writer" nobody enters before a waiting writer, so writers that keep coming starve the readers.
The library of Python has no such lock.
"""

from __future__ import annotations

from _thread import allocate_lock
from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Literal

from utils.core import trace
from utils.threads.primitives.condition import Condition

Preference = Literal["reader", "writer"]


class RWLock:
    """Held by any number of readers or by one writer; not reentrant, and it can't be upgraded.

    `read` and `write` record what was held as `name`; waits are recorded with or without them.
    """

    def __init__(self, preference: Preference = "writer", name: str = "rwlock") -> None:
        if preference not in ("reader", "writer"):
            raise ValueError(f"preference={preference!r}: give 'reader' or 'writer'")
        self.preference, self.name = preference, name
        # mutex must be held whenever anything below changes. One condition for each predicate,
        # so that a wake-up goes to somebody who can use it.
        # Invariant: readers == [] or writer is None.
        self._mutex = allocate_lock()
        self._can_read = Condition(self._mutex, name=f"{name}: to read")
        self._can_write = Condition(self._mutex, name=f"{name}: to write")
        self._readers: list[int] = []  # identifiers of the threads inside
        self._writer: int | None = None
        self._waiting_readers = self._waiting_writers = 0

    @property
    def readers(self) -> int:
        """How many read."""
        return len(self._readers)

    @property
    def writing(self) -> bool:
        return self._writer is not None

    def _may_read(self) -> bool:
        yields = self.preference == "writer" and self._waiting_writers > 0
        return self._writer is None and not yields

    def _may_write(self) -> bool:
        yields = self.preference == "reader" and self._waiting_readers > 0
        return self._writer is None and not self._readers and not yields

    def acquire_read(self, timeout: float | None = None) -> bool:
        """Wait, at most `timeout` seconds, until reading is allowed; return whether it is."""
        with self._mutex:
            if not self._may_read():
                self._refuse_to_wait_for_itself(timeout)
                self._waiting_readers += 1
                allowed = False
                try:
                    allowed = self._can_read.wait_for(self._may_read, timeout)
                finally:
                    self._waiting_readers -= 1
                    if not allowed:
                        self._wake()
                if not allowed:
                    return False
            self._readers.append(get_ident())
            return True

    def acquire_write(self, timeout: float | None = None) -> bool:
        """Wait, at most `timeout` seconds, until writing is allowed; return whether it is."""
        with self._mutex:
            if not self._may_write():
                self._refuse_to_wait_for_itself(timeout)
                self._waiting_writers += 1
                allowed = False
                try:
                    allowed = self._can_write.wait_for(self._may_write, timeout)
                finally:
                    self._waiting_writers -= 1
                    if not allowed:
                        self._wake()
                if not allowed:
                    return False
            self._writer = get_ident()
            return True

    def release_read(self) -> None:
        """Stop reading. RuntimeError if the calling thread does not read."""
        with self._mutex:
            if get_ident() not in self._readers:
                raise RuntimeError(f"cannot release {self.name}: this thread does not read")
            self._readers.remove(get_ident())
            self._wake()

    def release_write(self) -> None:
        """Stop writing. RuntimeError if the calling thread does not write."""
        with self._mutex:
            if self._writer != get_ident():
                raise RuntimeError(f"cannot release {self.name}: this thread does not write")
            self._writer = None
            self._wake()

    def _wake(self) -> None:
        """Somebody left, or gave up waiting: wake whoever may enter now."""
        if self._waiting_readers and self._may_read():
            self._can_read.notify_all()
        if self._waiting_writers and self._may_write():
            self._can_write.notify()

    def _refuse_to_wait_for_itself(self, timeout: float | None) -> None:
        """To write while reading, or read again behind a waiting writer, would wait forever."""
        if timeout is None and get_ident() in (*self._readers, self._writer):
            raise RuntimeError(f"this thread is inside {self.name} and would wait for itself")

    @contextmanager
    def read(self, timeout: float | None = None) -> Iterator[None]:
        """Read in this block; TimeoutError if that was not allowed within `timeout` seconds."""
        if not self.acquire_read(timeout):
            raise TimeoutError(f"{self.name}: could not read within {timeout} s")
        try:
            with trace.span("hold", f"{self.name}: read"):
                yield
        finally:
            self.release_read()

    @contextmanager
    def write(self, timeout: float | None = None) -> Iterator[None]:
        """Write in this block; TimeoutError if that was not allowed within `timeout` seconds."""
        if not self.acquire_write(timeout):
            raise TimeoutError(f"{self.name}: could not write within {timeout} s")
        try:
            with trace.span("hold", f"{self.name}: write"):
                yield
        finally:
            self.release_write()

    def __repr__(self) -> str:
        state = "writing" if self.writing else f"readers={self.readers}"
        return f"<threads.RWLock({self.preference!r}) {self.name!r} at {id(self):#x}: {state}>"
