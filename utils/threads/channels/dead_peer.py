"""A sender is killed in the middle of a message: what does the receiver see, and what is left?

SIGKILL cannot be caught (signal(7)): no `finally`, no `atexit`, no `close`. What remains is done by
the kernel, which closes the dead process's descriptors and unmaps its memory, and by the
receiver, which has to notice.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from utils.threads.channels import pipe, ring

WHOLE = 3  # messages that were sent before the one that was not finished
_SIZE = 1000  # bytes of each


@dataclass(frozen=True)
class Death:
    """What arrived whole, with what error the stream ended, and how the sender did."""

    received: tuple[bytes, ...]
    error: str
    exitcode: int | None
    left: bool  # whether shared memory still had a name, before anybody cleaned up


def message(number: int) -> bytes:
    return bytes([number]) * _SIZE


def _send_and_die(sender: pipe.Sender | ring.Sender) -> None:
    for number in range(WHOLE):
        sender.send_bytes(message(number))
    if isinstance(sender, ring.Sender):
        with sender.reserve(_SIZE) as room:
            room[: _SIZE // 2] = bytes(_SIZE // 2)
            _die()
    os.write(sender.fileno(), _SIZE.to_bytes(4, "big") + bytes(_SIZE // 2))
    _die()


def _die() -> None:
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def kill_sender(channel: Literal["pipe", "ring"], timeout: float = 20) -> Death:
    """Spawn a sender that kills itself, and take what comes until an error says it is over."""
    received: list[bytes] = []
    with pipe.Pipe() if channel == "pipe" else ring.Ring() as opened:
        context = multiprocessing.get_context("spawn")
        child = context.Process(target=_send_and_die, args=(opened.sender,))
        child.start()
        opened.sender.close()  # our copy
        try:
            while True:
                received.append(opened.receiver.recv_bytes(timeout))
        except EOFError as end:
            error = f"{type(end).__name__}: {end}"
        child.join(timeout)
        left = isinstance(opened, ring.Ring) and Path("/dev/shm", opened.name).exists()
    return Death(tuple(received), error, child.exitcode, left)
