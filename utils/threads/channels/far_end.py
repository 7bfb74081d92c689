"""Somebody at the far end of a channel, in a thread or in a process, who takes what is sent.

A channel is two functions here, `send` for this side and `take` for the other, whatever it is made
of. The far end exists before anything is measured, and tells when it has taken everything. A
spawned one imports this module and nothing that draws, so it is soon there.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Literal

from utils.threads.channels.pipe import open_receiver, open_sender

Between = Literal["threads", "processes"]
DEADLINE = 20.0  # seconds for anything that blocks


@dataclass(frozen=True)
class Channel:
    """`send` is for this side, `take` for the far one."""

    send: Callable[[bytes], object]
    take: Callable[[], bytes]
    close_copy: Callable[[], object] = lambda: None  # of the end that a process was given


class Late:
    """An end of a FIFO that opens when it is first used: each side waits for the other there."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._end: Any = None

    def send(self, message: bytes) -> None:
        self._end = self._end or open_sender(self._path, DEADLINE)
        self._end.send_bytes(message)

    def take(self) -> bytes:
        self._end = self._end or open_receiver(self._path)
        return self._end.recv_bytes()

    def close(self) -> None:
        if self._end is not None:
            self._end.close()


class FarEnd:
    """The way to talk to it: `transfer` sends messages and waits until all were taken."""

    def __init__(self, channels: Mapping[str, Channel], control: Connection) -> None:
        self._channels, self._control = channels, control
        self._answer()  # it is there

    def transfer(self, name: str, messages: Sequence[bytes]) -> None:
        """Send `messages` through the channel `name`; return when all were taken."""
        self._control.send((name, len(messages)))
        send = self._channels[name].send
        for message in messages:
            send(message)
        if (size := self._answer()) != (sent := sum(map(len, messages))):
            raise AssertionError(f"{name}: {size} of {sent} bytes arrived")

    def _answer(self) -> int:
        if not self._control.poll(DEADLINE):
            raise TimeoutError(f"no answer from the far end in {DEADLINE:g} s")
        return self._control.recv()


def take_all(takes: Mapping[str, Callable[[], bytes]], control: Connection) -> None:
    """What the far end does: for each order (name, count), take that many and tell their bytes."""
    with control:
        control.send(0)
        try:
            for name, count in iter(control.recv, None):
                take = takes[name]
                control.send(sum(len(take()) for _ in range(count)))
        except (EOFError, BrokenPipeError, ValueError):
            pass  # whoever ordered is gone, and closed the channels on leaving


@contextmanager
def far_end(
    between: Between, makers: Mapping[str, Callable[[], AbstractContextManager[Channel]]]
) -> Iterator[FarEnd]:
    """Every channel of `makers`, open to one new thread or process that ends with the block."""
    control, other = multiprocessing.Pipe()
    with ExitStack() as opened, control:
        channels = {name: opened.enter_context(make()) for name, make in makers.items()}
        takes = {name: channel.take for name, channel in channels.items()}
        if between == "threads":
            thread = threading.Thread(target=take_all, args=(takes, other), name="far end")
            thread.start()
            ended = partial(thread.join, DEADLINE)
        else:
            ended = _start_process(channels, takes, other)
        try:
            yield FarEnd(channels, control)
            control.send(None)
        finally:
            control.close()
            opened.close()  # hangs up on a far end that still waits for a message
            ended()


def _start_process(
    channels: Mapping[str, Channel], takes: Mapping[str, Any], control: Connection
) -> Callable[[], None]:
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=take_all, args=(takes, control), name="far end")
    process.start()
    control.close()  # our copies of its ends, or it would never see us hang up
    for channel in channels.values():
        channel.close_copy()

    def ended() -> None:
        process.join(2)  # if it still waits in a queue of the library, nothing will end that
        process.kill()
        process.join()

    return ended
