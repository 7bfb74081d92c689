"""A pipe with messages: the operating system's byte stream, cut into frames.

A pipe is a one-way stream of bytes of finite capacity, kept by the kernel (pipe(7)). It knows no
messages: one read may return half of what one write put in, or three times as much. So each
message goes as a *frame*: its length in 4 bytes, then its bytes.

The ends have the methods of `multiprocessing.Pipe`'s and can be handed to a spawned process in
its arguments. Close your own copy then, as in every program with pipes: a receiver sees the end
of the stream only when *all* copies of the sending end are closed, or their processes are dead.

A named pipe (FIFO) is the same, except that processes find it by its path (fifo(7)).

Linux and macOS; Windows can neither wait for a pipe with a time-out nor make a FIFO file.
"""

from __future__ import annotations

import errno
import os
import pickle
import select
import struct
import tempfile
import time
from _thread import allocate_lock
from contextlib import suppress
from multiprocessing import reduction
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Buffer  # Python 3.12

_LENGTH = struct.Struct("!I")  # network byte order, as in multiprocessing.connection
MOST = 2**32 - 1  # bytes of a message
CHUNK = 2**16  # bytes a read: as much as fits into a pipe on Linux


class Pipe:
    """An unnamed pipe: `sender` and `receiver`, for two threads, or one of them for a process."""

    def __init__(self) -> None:
        reading, writing = os.pipe()
        self.receiver, self.sender = Receiver(reading), Sender(writing)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close both ends, as far as they are this process's."""
        self.sender.close()
        self.receiver.close()


class _End:
    """A descriptor that is closed when nobody uses it: its number may be another file's next."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._closed = False
        # turn must be held from the first byte of a frame to its last, and whenever fd is closed.
        self._turn = allocate_lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), reduction.DupFd(self.fileno()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """The descriptor. ValueError: closed."""
        if self._closed:
            raise ValueError(f"this {type(self).__name__.lower()} of a pipe is closed")
        return self._fd

    def close(self) -> None:
        """Close this end, in this process; a thread that is using it may finish its message."""
        self._closed = True
        self._shut()

    __del__ = close

    def _shut(self) -> None:
        if self._turn.acquire(False):  # otherwise who holds it does this after us
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
            self._turn.release()

    def _begin(self, deadline: float | None) -> None:
        """Take the turn for one frame; whoever calls this calls `_end` after it."""
        left = -1 if deadline is None else max(0, deadline - monotonic())
        if not self._turn.acquire(timeout=left):
            raise TimeoutError("another thread used this end until the deadline")
        if self._closed:
            self._end()
            self.fileno()

    def _end(self) -> None:
        self._turn.release()
        if self._closed:
            self._shut()

    def _wait(self, event: int, deadline: float | None) -> None:
        """Sleep until the descriptor is ready, or its other end closed. TimeoutError: in vain."""
        poll = select.poll()
        poll.register(self._fd, event)
        left = None if deadline is None else 1000 * max(0, deadline - monotonic())
        if not poll.poll(left):
            raise TimeoutError("nothing happened in the pipe until the deadline")


class Sender(_End):
    """The writing end."""

    def send_bytes(self, data: Buffer, timeout: float | None = None) -> None:
        """Send one message, waiting for room for at most `timeout` seconds.

        BrokenPipeError: all receiving ends are closed. TimeoutError: no room in time; if a part
        was written, the frame is torn and this end gets closed, which the receiver will notice.
        """
        message = memoryview(data)
        size = message.nbytes
        if size > MOST:
            raise ValueError(f"a message of {size} bytes; a frame holds at most {MOST}")
        body = message.cast("B") if size else memoryview(b"")
        # The length goes in one write with what it announces: each write may wake the receiver.
        first = _LENGTH.pack(size) + body[:CHUNK]
        sent, whole, deadline = 0, _LENGTH.size + size, _deadline(timeout)
        self._begin(deadline)
        try:
            for part in (memoryview(first), body[CHUNK:]):
                while part.nbytes:
                    written = self._write(part, deadline)
                    sent, part = sent + written, part[written:]
        except BaseException as error:
            if 0 < sent < whole:
                self._closed = True
                error.add_note(f"{sent} of {whole} bytes were written: this end is closed now")
            raise
        finally:
            self._end()

    def _write(self, data: memoryview, deadline: float | None) -> int:
        if deadline is not None:
            self._wait(select.POLLOUT, deadline)
            data = data[: select.PIPE_BUF]  # so much does not block when poll says "ready"
        return os.write(self._fd, data)

    def send(self, obj: object, timeout: float | None = None) -> None:
        """Send any object that can be pickled."""
        self.send_bytes(pickle.dumps(obj, pickle.HIGHEST_PROTOCOL), timeout)


class Receiver(_End):
    """The reading end."""

    def __init__(self, fd: int, *, met: bool = True) -> None:
        super().__init__(fd)
        self._met = met  # whether there was a sender yet
        # Of the frame that is coming in, so that a time-out loses nothing:
        self._size: int | None = None  # bytes of the message, as soon as that is known
        self._parts: list[bytes] = []  # what came of its length or, after that, of itself

    def recv_bytes(self, timeout: float | None = None) -> bytes:
        """The next message, waiting for at most `timeout` seconds.

        EOFError: all sending ends are closed, and everything was read, or the last frame is torn.
        TimeoutError: no whole message in time; what came of it is kept for the next call.
        """
        deadline = _deadline(timeout)
        self._begin(deadline)
        try:
            if not self._met:  # reading would not block: no sender looks like no sender any more
                self._wait(select.POLLIN, deadline)
                self._met = True
            if self._size is None:
                (self._size,) = _LENGTH.unpack(self._read(_LENGTH.size, deadline))
            message = self._read(self._size, deadline)
            self._size = None
            return message
        finally:
            self._end()

    def _read(self, size: int, deadline: float | None) -> bytes:
        """`size` bytes, of which some may have come earlier."""
        missing = size - sum(map(len, self._parts))
        while missing:
            if deadline is not None:
                self._wait(select.POLLIN, deadline)
            data = os.read(self._fd, min(missing, CHUNK))
            if not data:
                if self._parts or self._size is not None:
                    raise EOFError(f"torn frame: the stream ended {missing} bytes too early")
                raise EOFError("all sending ends of the pipe are closed")
            self._parts.append(data)
            missing -= len(data)
        whole = b"".join(self._parts)  # costs nothing if there is only one
        self._parts.clear()
        return whole

    def recv(self, timeout: float | None = None) -> Any:
        """The next object, unpickled, which can run any code: only from a sender you trust."""
        return pickle.loads(self.recv_bytes(timeout))


class NamedPipe:
    """A FIFO file in a temporary directory; both are removed on leaving."""

    def __init__(self) -> None:
        if not hasattr(os, "mkfifo"):
            raise NotImplementedError(
                "this system has no FIFO files. Windows has named pipes of its own, outside the "
                "file system: see multiprocessing.connection.Listener"
            )
        self._folder = tempfile.TemporaryDirectory(prefix="fifo-")
        self.path = os.path.join(self._folder.name, "fifo")
        os.mkfifo(self.path, 0o600)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


def open_receiver(path: str) -> Receiver:
    """The reading end of the FIFO at `path`; senders may come later."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # would wait for a sender otherwise
    os.set_blocking(fd, True)
    return Receiver(fd, met=False)


def open_sender(path: str, timeout: float | None = None) -> Sender:
    """The writing end of the FIFO at `path`. TimeoutError: nobody reads there in time."""
    deadline = _deadline(timeout)
    while True:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            os.set_blocking(fd, True)
            return Sender(fd)
        except OSError as error:
            if error.errno != errno.ENXIO:  # fifo(7): nobody has it open for reading
                raise
        if deadline is not None and monotonic() >= deadline:
            raise TimeoutError(f"nobody has opened {path} for reading")
        time.sleep(0.005)


def capacity() -> int:
    """Bytes that fit into a pipe which nobody reads, found by filling one."""
    reading, writing = os.pipe()
    try:
        os.set_blocking(writing, False)
        fitted = 0
        with suppress(BlockingIOError):
            while True:
                fitted += os.write(writing, bytes(512))
        return fitted
    finally:
        os.close(reading)
        os.close(writing)


def _rebuild(kind: type[_End], descriptor: Any) -> _End:
    return kind(descriptor.detach())


def _deadline(timeout: float | None) -> float | None:
    if timeout is None:
        return None
    if not timeout >= 0:
        raise ValueError(f"timeout={timeout} is not allowed: give seconds, 0 or more, or None")
    return monotonic() + timeout
