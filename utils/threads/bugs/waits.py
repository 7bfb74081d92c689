"""Waiting for each other: signals that nobody heard, or that reached the wrong one.

A condition variable remembers nothing and an event remembers one bit. What is true must stand in
variables, be changed under the lock, and be looked at again after every wait.
"""

from __future__ import annotations

import queue
import threading

from utils.threads import schedules
from utils.threads.bugs.pair import Pair, together
from utils.threads.primitives.condition import Condition
from utils.threads.primitives.semaphore import Semaphore


def wakeup_wrong() -> None:
    changed = Condition()

    def wait() -> None:
        with changed:
            changed.wait()

    def signal() -> None:
        with changed:
            changed.notify()

    together(wait, signal)


def wakeup_right() -> None:
    changed = Condition()
    done = False  # changes only under the condition's lock

    def wait() -> None:
        with changed:
            while not done:
                changed.wait()

    def signal() -> None:
        nonlocal done
        with changed:
            done = True
            changed.notify()

    together(wait, signal)


def if_wrong() -> None:
    box: list[str] = []
    changed = threading.Condition()

    def read() -> None:
        with changed:
            if not box:
                changed.wait()
            box.pop()

    def write() -> None:
        with changed:
            box.append("draft")
            changed.notify()
        with changed:
            box.clear()  # taken back
        with changed:
            box.append("letter")
            changed.notify()

    together(read, write)


def if_right() -> None:
    box: list[str] = []
    changed = threading.Condition()

    def read() -> None:
        with changed:
            while not box:
                changed.wait()
            box.pop()

    def write() -> None:
        with changed:
            box.append("draft")
            changed.notify()
        with changed:
            box.clear()  # taken back
        with changed:
            box.append("letter")
            changed.notify()

    together(read, write)


def notify_wrong() -> None:
    stage = 0  # changes only under the condition's lock
    changed = threading.Condition()

    def second() -> None:
        with changed:
            while stage < 2:
                changed.wait()

    def first() -> None:
        nonlocal stage
        with changed:
            while stage < 1:
                changed.wait()
            stage = 2
            changed.notify()

    def start() -> None:
        nonlocal stage
        with changed:
            stage = 1
            changed.notify()  # wakes one of them, perhaps the one whose turn it is not

    together(second, first, start)


def notify_right() -> None:
    stage = 0  # changes only under the condition's lock
    changed = threading.Condition()

    def second() -> None:
        with changed:
            while stage < 2:
                changed.wait()

    def first() -> None:
        nonlocal stage
        with changed:
            while stage < 1:
                changed.wait()
            stage = 2
            changed.notify_all()

    def start() -> None:
        nonlocal stage
        with changed:
            stage = 1
            changed.notify_all()

    together(second, first, start)


def event_wrong() -> None:
    letters: list[str] = []
    read: list[str] = []
    arrived = threading.Event()

    def deliver() -> None:
        for letter in ("a", "b"):
            letters.append(letter)
            arrived.set()

    def collect() -> None:
        while len(read) < 2:
            arrived.wait()
            while letters:
                read.append(letters.pop(0))
            arrived.clear()  # forgets the letter that came since we looked

    together(deliver, collect)


def event_right() -> None:
    letters: list[str] = []
    read: list[str] = []
    arrived = threading.Event()

    def deliver() -> None:
        for letter in ("a", "b"):
            letters.append(letter)
            arrived.set()

    def collect() -> None:
        while len(read) < 2:
            arrived.wait()
            arrived.clear()  # whatever comes from here on sets it again
            while letters:
                read.append(letters.pop(0))

    together(deliver, collect)


def permit_wrong() -> None:
    inside = 0
    room = Semaphore(1)
    schedules.always(lambda: inside <= 1)

    def visit() -> None:
        nonlocal inside
        with room:
            inside += 1
            inside -= 1
            room.release()  # and once more at the end of the block: from now on two fit in

    visit()
    together(visit, visit)


def permit_right() -> None:
    inside = 0
    room = Semaphore(1)
    schedules.always(lambda: inside <= 1)

    def visit() -> None:
        nonlocal inside
        with room:
            inside += 1
            inside -= 1

    visit()
    together(visit, visit)


def phases_wrong() -> None:
    cells = [1, 2]
    everybody = threading.Barrier(2)

    def step(me: int) -> None:
        neighbour = cells[1 - me]
        cells[me] += neighbour
        everybody.wait()

    def left() -> None:
        step(0)

    def right() -> None:
        step(1)

    together(left, right)
    assert cells == [3, 3]


def phases_right() -> None:
    cells = [1, 2]
    everybody = threading.Barrier(2)

    def step(me: int) -> None:
        neighbour = cells[1 - me]
        everybody.wait()  # all have read before anybody writes
        cells[me] += neighbour

    def left() -> None:
        step(0)

    def right() -> None:
        step(1)

    together(left, right)
    assert cells == [3, 3]


def ask_wrong() -> None:
    tasks: queue.Queue[str] = queue.Queue()
    tasks.put("the only one")

    def work() -> None:
        if not tasks.empty():
            tasks.get()  # waits for ever if the other one was quicker

    together(work, work)


def ask_right() -> None:
    tasks: queue.Queue[str] = queue.Queue()
    tasks.put("the only one")

    def work() -> None:
        try:
            tasks.get_nowait()
        except queue.Empty:
            return

    together(work, work)


WAITS = (
    Pair(
        "lost wake-up",
        "deadlock",
        wakeup_wrong,
        wakeup_right,
        "A notification that finds nobody waiting is lost; a flag is not.",
    ),
    Pair(
        "`if` round a wait",
        "exception",
        if_wrong,
        if_right,
        "What you were woken for may be gone when you have the lock again: wait in a loop.",
    ),
    Pair(
        "notify for notify_all",
        "deadlock",
        notify_wrong,
        notify_right,
        "With two kinds of waiters on one condition, notify may wake the wrong one.",
    ),
    Pair(
        "event cleared too late",
        "deadlock",
        event_wrong,
        event_right,
        "Clear the signal before you look, not after.",
    ),
    Pair(
        "semaphore released twice",
        "invariant",
        permit_wrong,
        permit_right,
        "A semaphore has no owner: it believes every release (a BoundedSemaphore would not).",
    ),
    Pair(
        "a phase without its barrier",
        "assertion",
        phases_wrong,
        phases_right,
        "A barrier belongs between reading and writing, not after both.",
    ),
    Pair(
        "empty() asked, then get()",
        "deadlock",
        ask_wrong,
        ask_right,
        "The answer of empty() is old when you have it.",
    ),
)
