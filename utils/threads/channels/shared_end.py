"""One end of something in shared memory: whose it is, waiting at it, and what a death leaves.

An end belongs to the process that uses it first, or that it is handed to. That one's process id
stands in the shared memory, so the other side can find out that it was killed: here no signal, no
exception and no end of file tells.

Who cleans up? A segment outlives its processes until somebody unlinks its name (shm_overview(7)).
That is done here as soon as both sides have it open: from then on it is memory that vanishes with
its last user, however that one ends. (What a killed program leaves before that is unlinked by
`multiprocessing.resource_tracker`, a process that lives on until all others have ended.)
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import weakref
from _thread import allocate_lock
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.shared_memory import SharedMemory
from time import monotonic
from typing import Any, Self

import psutil

from utils.core import trace

LINE = 64  # bytes of a cache line: words that different sides write never share one
LOOK = 0.05  # s of waiting between two looks at whether the other process still lives
SENDER, RECEIVER = 0, LINE // 8  # the words that hold the process ids


class SharedEnd:
    """A sender or receiver: `memory` in words of 8 bytes, and semaphores to wait for."""

    _mine: int  # SENDER or RECEIVER
    _gone: type[Exception]  # raised when the other side was killed
    _closed = True  # until it is open

    def __init__(self, memory: SharedMemory, capacity: int, filled: Any, freed: Any) -> None:
        self._memory, self._capacity = memory, capacity
        self._filled, self._freed = filled, freed
        self._open(attached=False)

    def _open(self, attached: bool) -> None:
        self._words = self._memory.buf[: self._memory.size // 8 * 8].cast("Q")
        self._attached = attached  # we opened the segment by name, so we close it as well
        self._home = os.getpid()
        self._ready = self._closed = self._given = False
        self._theirs = RECEIVER if self._mine == SENDER else SENDER
        self._peer: psutil.Process | None = None
        # busy must be held whenever a message is being written or looked at. An end has one
        # position, so a second thread at it is a mistake, not somebody to wait for.
        self._busy = allocate_lock()

    def __getstate__(self) -> tuple[Any, ...]:
        """For `multiprocessing.Process`, which pickles its arguments: gives the end away."""
        multiprocessing.context.assert_spawning(self)
        self._check_usable()
        if self._words[self._mine]:
            raise ValueError("an end that was used already cannot be given to another process")
        self._given = True
        return self._memory, self._capacity, self._filled, self._freed

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._memory, self._capacity, self._filled, self._freed = state
        self._open(attached=True)
        self._claim()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up: the other side is told, even while it waits. A second call does nothing."""
        if self._closed:
            return
        self._ready, self._closed = False, True
        if self._is_ours():
            self._say_goodbye()
        self._words.release()
        self._filled = self._freed = None  # the last reference to a semaphore removes its name
        if self._attached:
            self._memory.close()

    def __del__(self) -> None:  # who forgets to close hangs up when it ends, as with a pipe
        self.close()

    def _is_ours(self) -> bool:
        """Not so: an end that was given away, or the copy of an end that a fork made."""
        owner, me = self._words[self._mine], os.getpid()
        return owner == me or (owner == 0 and self._home == me and not self._given)

    def _say_goodbye(self) -> None:
        """Tell the other side that nothing will come from here."""
        raise NotImplementedError

    def _check_usable(self) -> None:
        noun = type(self).__name__.lower()
        if self._closed:
            raise ValueError(f"this {noun} is closed")
        if self._given:
            raise ValueError(f"this {noun} was given to another process and is that one's now")

    def _claim(self) -> None:
        """Write down that this end is our process's."""
        self._check_usable()
        owner = self._words[self._mine]
        if owner not in (0, os.getpid()):
            raise ValueError(f"process {owner} uses this end already")
        self._words[self._mine] = os.getpid()
        self._ready = True
        if self._words[self._theirs]:  # both sides have it open: nobody needs the name any more
            unlink(self._memory)

    def _begin(self) -> None:
        """Take `busy` and check that the end is usable; whoever calls this releases `busy`."""
        if not self._busy.acquire(False):
            raise RuntimeError("two threads at one end, which is made for one")
        if not self._ready:
            try:
                self._claim()
            except BaseException:
                self._busy.release()
                raise

    def _wait(self, semaphore: Any, deadline: float | None) -> None:
        """Take one token: now, or asleep until there is one, the peer is dead, or `deadline`."""
        if semaphore.acquire(False):
            return
        with trace.span("queue", f"{type(self).__name__} waits"):
            while True:
                left = LOOK if deadline is None else min(LOOK, deadline - monotonic())
                if semaphore.acquire(True, max(left, 0)):
                    return
                if not self._peer_lives():
                    if semaphore.acquire(False):  # its last act
                        return
                    raise self._gone(f"process {self._words[self._theirs]} ended without closing")
                if deadline is not None and monotonic() >= deadline:
                    raise TimeoutError("nothing came from the other side until the deadline")

    def _peer_lives(self) -> bool:
        pid = self._words[self._theirs]
        if pid in (0, os.getpid()):  # not there yet, or a thread of ours
            return True
        try:
            self._peer = self._peer or psutil.Process(pid)  # knows its age: no later namesake
            return self._peer.is_running() and self._peer.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


@contextmanager
def lent(data: memoryview, offset: int, size: int) -> Iterator[memoryview]:
    """A view of a piece of `data` for one block; BufferError if something still points into it."""
    # A memoryview cannot tell who was made from it. This array lives as long as any of them.
    piece = (ctypes.c_ubyte * size).from_buffer(data, offset)
    alive = weakref.ref(piece)
    view = memoryview(piece).cast("B")
    del piece
    try:
        yield view
    finally:
        view.release()
    if alive():
        raise BufferError("something still points into the ring: copy it, or del it in the block")


def deadline_in(timeout: float | None) -> float | None:
    """The moment `timeout` seconds from now, on the clock of `monotonic`; None is never."""
    if timeout is None:
        return None
    if not timeout >= 0:
        raise ValueError(f"timeout={timeout} is not allowed: give seconds, 0 or more, or None")
    return monotonic() + timeout


def unlink(memory: SharedMemory) -> None:
    """Remove the name of `memory`, if nobody else has."""
    with suppress(FileNotFoundError):
        memory.unlink()
