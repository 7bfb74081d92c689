"""The channels that are compared, ours and the standard library's, as `send` and `take`."""

from __future__ import annotations

import multiprocessing
import queue
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from utils.threads.channels.far_end import Between, Channel, Late
from utils.threads.channels.message_queue import MessageQueue
from utils.threads.channels.pipe import NamedPipe, Pipe
from utils.threads.channels.ring import Ring

_SPAWN = multiprocessing.get_context("spawn")


@contextmanager
def _in_process(channel: Any) -> Iterator[Channel]:
    yield Channel(channel.put, channel.get)
    channel.put(b"")  # for a far end that still waits


@contextmanager
def _pipe() -> Iterator[Channel]:
    with Pipe() as pipe:
        yield Channel(pipe.sender.send_bytes, pipe.receiver.recv_bytes, pipe.receiver.close)


@contextmanager
def _named_pipe() -> Iterator[Channel]:
    with NamedPipe() as fifo:
        sender = Late(fifo.path)
        try:
            yield Channel(sender.send, Late(fifo.path).take)
        finally:
            sender.close()


@contextmanager
def _ring() -> Iterator[Channel]:
    with Ring() as ring:
        yield Channel(ring.sender.send_bytes, ring.receiver.recv_bytes)


@contextmanager
def _library_pipe() -> Iterator[Channel]:
    receiver, sender = _SPAWN.Pipe(duplex=False)
    with receiver, sender:
        yield Channel(sender.send_bytes, receiver.recv_bytes, receiver.close)


@contextmanager
def _library_queue() -> Iterator[Channel]:
    channel = _SPAWN.Queue()
    try:
        yield Channel(channel.put, channel.get)
    finally:
        channel.cancel_join_thread()  # what was not taken by now, nobody will take
        channel.close()


CHANNELS: Mapping[Between, Mapping[str, Callable[[], AbstractContextManager[Channel]]]] = {
    "threads": {
        "queue.SimpleQueue": lambda: _in_process(queue.SimpleQueue()),
        "queue.Queue": lambda: _in_process(queue.Queue()),
        "MessageQueue": lambda: _in_process(MessageQueue()),
        "Pipe": _pipe,
    },
    "processes": {
        "multiprocessing.Queue": _library_queue,
        "multiprocessing.Pipe": _library_pipe,
        "Pipe": _pipe,
        "NamedPipe": _named_pipe,
        "Ring": _ring,
    },
}
