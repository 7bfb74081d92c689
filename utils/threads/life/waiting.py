"""What a blocked thread waits for: Python knows the line, Linux the function of its kernel.

`sys._current_frames` gives every thread's Python stack. Like any look from inside, it needs the
GIL, so it catches threads that have given the GIL up: the blocked ones. A debugger that must see
all of them looks from outside (py-spy, and `python -m pdb -p` since 3.14).
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from utils.threads.life import observer

DEADLINE = 10.0  # seconds until each wait gives up
_NAP = 0.4  # seconds: a sleep can't be woken


@dataclass(frozen=True)
class Wait:
    """Where a thread is stuck. `letter` and `kernel` are "" where the system doesn't tell."""

    thread: str
    letter: str
    kernel: str
    line: str


def look(thread: threading.Thread) -> Wait:
    """What `thread` is doing now; ValueError if it is not alive."""
    frame = sys._current_frames().get(thread.ident or 0)
    if frame is None:
        raise ValueError(f"thread={thread.name!r} is not alive: give one that has been started")
    call = traceback.extract_stack(frame)[-1]
    line = f"{Path(call.filename).name}:{call.lineno} {call.line}"
    if not observer.available():
        return Wait(thread.name, "", "", line)
    assert thread.native_id is not None
    letter, kernel = observer.letter(thread.native_id), observer.kernel_function(thread.native_id)
    return Wait(thread.name, letter, kernel, line)


@contextmanager
def waiting_room() -> Iterator[list[threading.Thread]]:
    """Six threads, each blocked by something else; what they wait for comes after the block."""
    lock = threading.Lock()
    messages: queue.Queue[None] = queue.Queue()
    reader, writer = os.pipe()
    here, there = socket.socketpair()
    here.settimeout(DEADLINE)
    waits = {
        "sleep": lambda: time.sleep(_NAP),
        "lock": lambda: lock.acquire(timeout=DEADLINE),
        "queue": lambda: messages.get(timeout=DEADLINE),
        "join": lambda: threads[0].join(DEADLINE),
        "pipe": lambda: os.read(reader, 1),
        "socket": lambda: here.recv(1),
    }
    threads = [threading.Thread(target=wait, name=name) for name, wait in waits.items()]
    lock.acquire()
    try:
        for thread in threads:
            thread.start()
        time.sleep(0.05)  # let them get to their wait
        yield threads
    finally:
        lock.release()
        messages.put(None)
        os.close(writer)  # end of file: wakes the reader, whatever happened
        there.close()
        for thread in threads:
            if thread.ident is not None:
                thread.join(DEADLINE)
        os.close(reader)
        here.close()
