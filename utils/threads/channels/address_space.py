"""Whose memory is it? Threads have one address space in common; a process has its own.

A thread, a child process and shared memory each count to one. The child is spawned, so it has
imported this module anew; a forked child has a copy of its parent's memory instead (fork(2)). In
both cases it counts in memory that is its own.
"""

from __future__ import annotations

import multiprocessing
import threading
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory

from utils.threads.channels.pipe import Pipe, Sender

counter = 0  # a variable of this module: each process has its own


@dataclass(frozen=True)
class Seen:
    """What the parent sees in `counter` after a thread and after a child counted, and the rest."""

    after_thread: int
    after_child: int
    child_saw: int
    in_shared_memory: int


def count_up() -> None:
    global counter
    counter += 1


def _child(segment: str, answer: Sender) -> None:
    count_up()
    memory = SharedMemory(segment)
    memory.buf[0] += 1  # safe here: the parent looks only when we have ended
    memory.close()
    answer.send(counter)


def who_sees_it(timeout: float = 20) -> Seen:
    """Let a thread count, then a spawned child: in `counter`, and in a byte of shared memory."""
    global counter
    counter = 0
    thread = threading.Thread(target=count_up)
    thread.start()
    thread.join()
    after_thread, counter = counter, 0
    memory = SharedMemory(create=True, size=1)
    try:
        with Pipe() as pipe:
            context = multiprocessing.get_context("spawn")
            child = context.Process(target=_child, args=(memory.name, pipe.sender))
            child.start()
            pipe.sender.close()
            child_saw = pipe.receiver.recv(timeout)
            child.join(timeout)
        return Seen(after_thread, counter, child_saw, memory.buf[0])
    finally:
        memory.close()
        memory.unlink()
