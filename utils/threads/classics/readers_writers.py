"""Readers and writers: many may read together, a writer must be alone.

The first reader shuts the writers out, the last one lets them in. Counting the readers and acting
on the count must be one step: else the second reader walks in while the first still waits at the
door.

Who goes first when both wait is another question. On real threads, with `RWLock`, the answer shows:
readers that keep coming can starve a writer, and with writers first the readers pay.

Source: P. J. Courtois, F. Heymans, D. L. Parnas, "Concurrent Control with 'Readers' and
'Writers'", CACM 14(10), 1971; this is their first problem, in which readers go first; in the second
writers do.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from dataclasses import dataclass
from typing import Annotated

from utils.core import plots
from utils.core.experiment import Range, experiment, gather
from utils.core.trace import Recorder, Trace
from utils.core.workers import crew, lanes
from utils.threads.bugs.pair import Pair, together
from utils.threads.primitives.rwlock import Preference, RWLock

READS, WRITES = 20, 5  # each
READ, WRITE = 0.007, 0.004  # seconds
READERS_REST, WRITERS_REST = 0.002, 0.02  # seconds on average between two visits
DEADLINE = 20.0  # seconds for anything that blocks


def wrong() -> None:
    readers, writing = 0, False
    mutex = threading.Lock()  # held whenever readers changes
    room = threading.Lock()  # held by a writer, or by the first of the readers for all

    def read() -> None:
        nonlocal readers
        with mutex:
            readers += 1
            first = readers == 1
        if first:
            room.acquire()
        assert not writing
        with mutex:
            readers -= 1
            last = readers == 0
        if last:
            room.release()

    def write() -> None:
        nonlocal writing
        with room:
            writing = True
            writing = False

    together(write, read, read)


def right() -> None:
    readers, writing = 0, False
    mutex = threading.Lock()  # held whenever readers changes, and until the room is ours
    room = threading.Lock()  # held by a writer, or by the first of the readers for all

    def read() -> None:
        nonlocal readers
        with mutex:
            readers += 1
            if readers == 1:
                room.acquire()
        assert not writing
        with mutex:
            readers -= 1
            if readers == 0:
                room.release()

    def write() -> None:
        nonlocal writing
        with room:
            writing = True
            writing = False

    together(write, read, read)


PAIR = Pair(
    "readers and writers",
    "assertion",
    wrong,
    right,
    "The mutex must be held until the decision that hangs on the count has been carried out.",
)


@dataclass(frozen=True)
class Library:
    """A lane a reader and one for the writer: "lock" a wait, "decode" a read, "compute" a write."""

    readers: int
    first: Preference
    trace: Trace

    def mean_wait(self, lane: str) -> float:
        """Mean seconds at the door, for a reader's lane or "writer"."""
        return statistics.mean(
            s.seconds for s in self.trace.select(lane=lane, category="lock").spans
        )

    @property
    def mean_reader_wait(self) -> float:
        return statistics.mean(map(self.mean_wait, lanes(self.readers, "reader")))


@experiment
def visit(
    readers: Annotated[int, Range(1, 6)] = 4,
    first: Preference = "reader",
) -> Library:
    """Let readers and one writer come again and again; `first` goes first when both wait."""
    room, recorder = RWLock(first), Recorder()

    def read() -> None:
        lane = threading.current_thread().name
        for _ in range(READS):
            with recorder.span("idle", lane=lane):
                time.sleep(random.uniform(0, 2 * READERS_REST))
            with recorder.span("lock", lane=lane):
                if not room.acquire_read(DEADLINE):
                    raise TimeoutError(f"no reading within {DEADLINE:g} s")
            with recorder.span("decode", lane=lane):
                time.sleep(READ)
            room.release_read()

    def write() -> None:
        for _ in range(WRITES):
            with recorder.span("idle", lane="writer"):
                time.sleep(WRITERS_REST)
            with recorder.span("lock", lane="writer"):
                if not room.acquire_write(DEADLINE):
                    raise TimeoutError(f"no writing within {DEADLINE:g} s")
            with recorder.span("compute", lane="writer"):
                time.sleep(WRITE)
            room.release_write()

    with crew(readers, "reader") as people, crew(1, "writer") as author:
        futures = [people.submit(read) for _ in range(readers)] + [author.submit(write)]
        gather(futures, timeout=DEADLINE, note=f"{first}s first")
    return Library(readers, first, recorder.trace())


def plot(result: Library) -> plots.Picture:
    """Who reads, writes and waits; the writer at the top."""
    rows = ["writer", *lanes(result.readers, "reader")]
    fig, ax = plots.figure(9, 1.7 + 0.3 * len(rows))
    title = (
        f"{result.first}s first: the writer waits {1e3 * result.mean_wait('writer'):.0f} ms, "
        f"a reader {1e3 * result.mean_reader_wait:.1f} ms on average"
    )
    plots.timeline(ax, result.trace, lanes=rows, title=title)
    names = {"idle": "elsewhere", "lock": "waits", "decode": "reads", "compute": "writes"}
    plots.legend(fig, list(names), names)
    return fig
