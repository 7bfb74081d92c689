"""Our primitives beside those of `threading`, in turns, with recording off.

`threading.Lock` and `RLock` are written in C, so a `Mutex` in Python cannot be as fast, and a
`Condition` over one shows that too. Everything else in `threading` is Python like ours. Between two
threads most of the time is the system's, for putting one to sleep and waking the other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from utils.core import bench
from utils.threads.primitives.condition import Condition
from utils.threads.primitives.mutex import Mutex
from utils.threads.primitives.rendezvous import Barrier, Event
from utils.threads.primitives.semaphore import BoundedSemaphore, Semaphore

CALLS, TURNS, REPEATS = 50_000, 5_000, 9
DEADLINE = 60  # seconds


def alone(lock: Any) -> None:
    for _ in range(CALLS):
        with lock:
            pass


def notify(condition: Any) -> None:
    for _ in range(CALLS):
        with condition:
            condition.notify()


def set_and_wait(event: Any) -> None:
    for _ in range(CALLS):
        event.set()
        event.wait()
        event.clear()


def two(ping: Callable[[], None], pong: Callable[[], None]) -> None:
    other = threading.Thread(target=pong)
    other.start()
    ping()
    other.join(DEADLINE)
    if other.is_alive():
        raise TimeoutError(f"the other thread is not done after {DEADLINE} s")


def ping_pong(condition: Any) -> None:
    """Two threads take turns at a number that says whose turn it is."""
    state = {"turn": 0}

    def player(me: int) -> None:
        for _ in range(TURNS):
            with condition:
                while state["turn"] != me:
                    condition.wait()
                state["turn"] = 1 - me
                condition.notify()

    two(lambda: player(0), lambda: player(1))


def hand_over(semaphore: Callable[[int], Any]) -> None:
    """Two semaphores pass one permit to and fro."""
    here, there = semaphore(1), semaphore(1)
    there.acquire()

    def player(take: Any, give: Any) -> None:
        for _ in range(TURNS):
            take.acquire()
            give.release()

    two(lambda: player(here, there), lambda: player(there, here))


def rounds(barrier: Any) -> None:
    def player() -> None:
        for _ in range(TURNS):
            barrier.wait()

    two(player, player)


def signal(event: Callable[[], Any]) -> None:
    """Two events pass the word to and fro."""
    here, there = event(), event()
    here.set()

    def player(mine: Any, theirs: Any) -> None:
        for _ in range(TURNS):
            mine.wait()
            mine.clear()
            theirs.set()

    two(lambda: player(here, there), lambda: player(there, here))


# what: (work, ours, threading's, how many operations)
PAIRS: dict[str, tuple[Callable[[Any], None], Any, Any, int]] = {
    "Mutex, free; Lock is C": (alone, Mutex(), threading.Lock(), CALLS),
    "Condition, notify nobody, own lock: a Mutex, an RLock in C": (
        notify,
        Condition(),
        threading.Condition(),
        CALLS,
    ),
    "Condition, notify nobody, same lock": (
        notify,
        Condition(threading.Lock()),
        threading.Condition(threading.Lock()),
        CALLS,
    ),
    "Condition, ping-pong, own lock: a Mutex, an RLock in C": (
        ping_pong,
        Condition(),
        threading.Condition(),
        2 * TURNS,
    ),
    "Condition, ping-pong, same lock": (
        ping_pong,
        Condition(threading.Lock()),
        threading.Condition(threading.Lock()),
        2 * TURNS,
    ),
    "Semaphore, free": (alone, Semaphore(1), threading.Semaphore(1), CALLS),
    "Semaphore, two threads": (hand_over, Semaphore, threading.Semaphore, 2 * TURNS),
    "BoundedSemaphore, free": (alone, BoundedSemaphore(1), threading.BoundedSemaphore(1), CALLS),
    "BoundedSemaphore, two threads": (
        hand_over,
        BoundedSemaphore,
        threading.BoundedSemaphore,
        2 * TURNS,
    ),
    "Barrier, two threads": (rounds, Barrier(2), threading.Barrier(2), TURNS),
    "Event, set, wait, clear": (set_and_wait, Event(), threading.Event(), CALLS),
    "Event, two threads": (signal, Event, threading.Event, 2 * TURNS),
}


def figures() -> Iterator[str]:
    for what, (work, ours, theirs, operations) in PAIRS.items():
        times = bench.compare(
            {"ours": partial(work, ours), "theirs": partial(work, theirs)}, repeats=REPEATS
        )
        speed = bench.ratio(times["theirs"], times["ours"])
        each = ", ".join(
            f"{name} {bench.seconds(sample.median / operations)}" for name, sample in times.items()
        )
        yield f"{what}: {speed.median:.2f} × the speed of threading's ({each})"
