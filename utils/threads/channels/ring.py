"""A ring of messages in shared memory: one process writes, one reads, nobody copies twice.

Shared memory moves bytes but tells nobody that they are there. So the ring has three parts, like
the ring between a network card and its driver: the bytes, a table with the place and size of each
message, and two semaphores. `filled` counts the messages the receiver may take, `freed` those
it has given back. A message is one contiguous piece, so the other side can use it in place.

Why it needs no lock: each word and byte has one writer at a time, and *order* comes from the
semaphores. A message must be visible before the news of it. On x86 stores are seen in program
order; on ARM they need not be, and Python has no fence to force it. But sem_post and sem_wait
synchronise memory (POSIX.1-2017, XBD 4.12). A plain counter would be right on x86 at best.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.shared_memory import SharedMemory
from operator import index
from typing import TYPE_CHECKING, Self

from utils.threads.channels.shared_end import (
    LINE,
    RECEIVER,
    SENDER,
    SharedEnd,
    deadline_in,
    lent,
    unlink,
)

if TYPE_CHECKING:
    from collections.abc import Buffer  # Python 3.12

SLOTS = 1024  # messages under way at most
# Words of the header. The process ids come first; each of these is on a line of its own, too.
_SENT, _HUNG_UP = (line * LINE // 8 for line in (2, 3))
_TABLE = 4 * LINE // 8  # first word of the table: (offset, size) of each slot
_BYTES = 8 * _TABLE + 16 * SLOTS  # first byte of the messages


class Ring:
    """Shared memory for `capacity` bytes of messages, with a `sender` and a `receiver`.

    Hand one of them to a process as an argument of `multiprocessing.Process` (it is then that
    process's), or use both in threads of this one. Keep the ring open until the others have
    ended; `close` removes its name whatever became of them.
    """

    def __init__(self, capacity: int = 2**23) -> None:
        if index(capacity) < 1:
            raise ValueError(f"capacity={capacity} is not allowed: give 1 byte or more")
        self.capacity = _room(capacity)
        context = multiprocessing.get_context("spawn")
        filled, freed = context.Semaphore(0), context.Semaphore(0)
        self._memory = SharedMemory(create=True, size=_BYTES + self.capacity)
        self.name = self._memory.name  # under /dev/shm on Linux, until both sides have it open
        self.sender = Sender(self._memory, self.capacity, filled, freed)
        self.receiver = Receiver(self._memory, self.capacity, filled, freed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the ends that are still ours, remove the name, give the memory back."""
        unlink(self._memory)
        self.sender.close()
        self.receiver.close()
        self._memory.close()


class Sender(SharedEnd):
    """The writing end. `send_bytes` copies a message in, `reserve` lets you write it in place."""

    _mine, _gone = SENDER, BrokenPipeError

    def _open(self, attached: bool) -> None:
        super()._open(attached)
        self._sent = 0  # messages so far
        self._tail = 0  # where the next message goes, if there is room
        self._under_way: deque[tuple[int, int]] = deque()  # (offset, room), the oldest first

    def send_bytes(self, data: Buffer, timeout: float | None = None) -> None:
        """Send one message. ValueError: larger than the ring; TimeoutError: no room in time;
        BrokenPipeError: the receiver has hung up or died."""
        message = memoryview(data)
        if size := message.nbytes:
            message = message.cast("B")
        self._begin()
        try:
            start = self._place(size, timeout)
            if size:
                self._memory.buf[start : start + size] = message
            self._commit(start, size)
        finally:
            self._busy.release()

    @contextmanager
    def reserve(self, size: int, timeout: float | None = None) -> Iterator[memoryview]:
        """Room for a message of `size` bytes, sent when the block ends, dropped if it raises.

        Raises what `send_bytes` does. Nothing may point into the room afterwards (BufferError, and
        the message is dropped): it is the receiver's then.
        """
        if size < 0:
            raise ValueError(f"size={size} is not allowed: give 0 bytes or more")
        self._begin()
        try:
            start = self._place(size, timeout)
            with lent(self._memory.buf, start, size) as room:
                yield room
            self._commit(start, size)
        finally:
            self._busy.release()

    def _place(self, size: int, timeout: float | None) -> int:
        """Wait until `size` bytes are free in one piece; return where in the memory."""
        if size > self._capacity:
            raise ValueError(f"a message of {size} bytes in a ring of {self._capacity}")
        deadline, room = deadline_in(timeout), _room(size)
        while True:
            if self._words[_HUNG_UP]:
                raise BrokenPipeError("the receiver has closed the ring")
            if (offset := self._free_piece(room)) is not None:
                return _BYTES + offset
            self._wait(self._freed, deadline)
            if not self._words[_HUNG_UP]:  # otherwise the token was a goodbye
                self._under_way.popleft()

    def _free_piece(self, room: int) -> int | None:
        if not self._under_way:
            return 0
        if len(self._under_way) == SLOTS:
            return None
        oldest, tail = self._under_way[0][0], self._tail
        if tail <= oldest:  # taken: from oldest to the end, and from 0 to tail
            return tail if room <= oldest - tail else None
        if room <= self._capacity - tail:  # taken: from oldest to tail
            return tail
        return 0 if room <= oldest else None

    def _commit(self, start: int, size: int) -> None:
        slot = _TABLE + 2 * (self._sent % SLOTS)
        self._words[slot], self._words[slot + 1] = start, size
        self._sent += 1
        offset, room = start - _BYTES, _room(size)
        self._under_way.append((offset, room))
        self._tail = offset + room
        self._filled.release()  # whoever takes this token sees all of the above

    def _say_goodbye(self) -> None:
        self._words[_SENT] = self._sent + 1  # 0 means: not closed
        self._filled.release()


class Receiver(SharedEnd):
    """The reading end. `recv_bytes` copies a message out, `receive` lets you use it in place."""

    _mine, _gone = RECEIVER, EOFError

    def _open(self, attached: bool) -> None:
        super()._open(attached)
        self._taken = 0  # messages so far

    def recv_bytes(self, timeout: float | None = None) -> bytes:
        """The next message. EOFError: all was taken and the sender has closed or died;
        TimeoutError: nothing came in time."""
        self._begin()
        try:
            start, size = self._take(timeout)
            message = bytes(self._memory.buf[start : start + size])
            self._give_back()
            return message
        finally:
            self._busy.release()

    @contextmanager
    def receive(self, timeout: float | None = None) -> Iterator[memoryview]:
        """The next message where it lies, until the block ends; raises what `recv_bytes` does.

        Nothing may point into it afterwards (BufferError): the sender will write there again. For
        a tensor take `torch.from_numpy(np.frombuffer(message, ...))`; `torch.frombuffer` keeps no
        hold that could be noticed.
        """
        self._begin()
        try:
            start, size = self._take(timeout)
            try:
                with lent(self._memory.buf, start, size) as message:
                    yield message
            finally:
                self._give_back()
        finally:
            self._busy.release()

    def _take(self, timeout: float | None) -> tuple[int, int]:
        """Wait for the next message; return where in the memory it is, and its size."""
        self._wait(self._filled, deadline_in(timeout))
        if self._words[_SENT] == self._taken + 1:
            self._filled.release()  # the goodbye stays, for the next call
            raise EOFError("the sender has closed the ring")
        slot = _TABLE + 2 * (self._taken % SLOTS)
        return self._words[slot], self._words[slot + 1]

    def _give_back(self) -> None:
        self._taken += 1
        self._freed.release()

    def _say_goodbye(self) -> None:
        self._words[_HUNG_UP] = 1
        self._freed.release()


def _room(size: int) -> int:
    """Whole cache lines; one for an empty message, so that tail == oldest always means full."""
    return max(1, -(-size // LINE)) * LINE
