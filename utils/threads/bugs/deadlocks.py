"""Deadlock and livelock: everybody waits for somebody who waits too, or is busy being polite.

A deadlock needs four things at once: exclusive use, holding one thing while waiting for the next,
no taking away, and a circle of waiting. Each right twin removes one of them.
Source: E. Coffman, M. Elphick, A. Shoshani, "System Deadlocks", Computing Surveys 3(2), 1971.
"""

from __future__ import annotations

import threading
import time

from utils.threads.bugs.pair import Pair, together


def order_wrong() -> None:
    ada, bob = threading.Lock(), threading.Lock()

    def pay_bob() -> None:
        with ada, bob:
            pass

    def pay_ada() -> None:
        with bob, ada:
            pass

    together(pay_bob, pay_ada)


def order_right() -> None:
    ada, bob = threading.Lock(), threading.Lock()  # always taken in this order

    def pay_bob() -> None:
        with ada, bob:
            pass

    def pay_ada() -> None:
        with ada, bob:
            pass

    together(pay_bob, pay_ada)


def itself_wrong() -> None:
    stock = 2
    lock = threading.Lock()  # held whenever stock is read or written

    def left() -> int:
        with lock:
            return stock

    def sell() -> None:
        nonlocal stock
        with lock:
            stock -= 1
            if stock == 0:
                left()  # to report it: takes the lock that we hold

    together(sell, sell)


def itself_right() -> None:
    stock = 2
    lock = threading.RLock()  # held whenever stock is read or written

    def left() -> int:
        with lock:
            return stock

    def sell() -> None:
        nonlocal stock
        with lock:
            stock -= 1
            if stock == 0:
                left()

    together(sell, sell)


def error_wrong() -> None:
    total = 0
    lock = threading.Lock()  # held whenever total changes

    def add(text: str) -> None:
        nonlocal total
        lock.acquire()
        try:
            total += int(text)
        except ValueError:
            return  # with the lock in the pocket
        lock.release()

    def good() -> None:
        add("1")

    def bad() -> None:
        add("one")

    together(good, bad)


def error_right() -> None:
    total = 0
    lock = threading.Lock()  # held whenever total changes

    def add(text: str) -> None:
        nonlocal total
        try:
            with lock:
                total += int(text)
        except ValueError:
            return

    def good() -> None:
        add("1")

    def bad() -> None:
        add("one")

    together(good, bad)


def polite_wrong() -> None:
    ada, bob = threading.Lock(), threading.Lock()

    def meet(mine: threading.Lock, other: threading.Lock) -> None:
        while True:
            with mine:
                time.sleep(0)  # anything that lets others run
                if other.acquire(blocking=False):
                    other.release()
                    return

    def walk_left() -> None:
        meet(ada, bob)

    def walk_right() -> None:
        meet(bob, ada)

    together(walk_left, walk_right)


def polite_right() -> None:
    ada, bob = threading.Lock(), threading.Lock()  # always taken in this order

    def meet() -> None:
        with ada, bob:
            pass

    def walk_left() -> None:
        meet()

    def walk_right() -> None:
        meet()

    together(walk_left, walk_right)


DEADLOCKS = (
    Pair(
        "locks in opposite order",
        "deadlock",
        order_wrong,
        order_right,
        "One order for all locks, and there is no circle.",
    ),
    Pair(
        "waiting for itself",
        "deadlock",
        itself_wrong,
        itself_right,
        "A method that locks may not call another that takes the same lock, unless it is an RLock.",
    ),
    Pair(
        "error with the lock held",
        "deadlock",
        error_wrong,
        error_right,
        "`with` releases on every way out.",
    ),
    Pair(
        "after you, no, after you",
        "livelock",
        polite_wrong,
        polite_right,
        "Backing off in step is no progress: break the symmetry.",
    ),
)
