"""Read, change, write: an operation that was meant to be one step and is several."""

from __future__ import annotations

import threading

from utils.threads import schedules
from utils.threads.bugs.pair import Pair, together


def variable_wrong() -> None:
    count = 0

    def add() -> None:
        nonlocal count
        count += 1

    together(add, add)
    assert count == 2


def variable_right() -> None:
    count = 0
    lock = threading.Lock()  # held whenever count changes

    def add() -> None:
        nonlocal count
        with lock:
            count += 1

    together(add, add)
    assert count == 2


class Account:
    def __init__(self) -> None:
        self.balance = 0
        self.lock = threading.Lock()  # held whenever balance changes


def attribute_wrong() -> None:
    account = Account()

    def deposit() -> None:
        with threading.Lock():  # a new lock for everyone who comes: it keeps nobody out
            account.balance += 1

    together(deposit, deposit)
    assert account.balance == 2


def attribute_right() -> None:
    account = Account()

    def deposit() -> None:
        with account.lock:
            account.balance += 1

    together(deposit, deposit)
    assert account.balance == 2


def item_wrong() -> None:
    words = {"the": 0}

    def count() -> None:
        words["the"] += 1

    together(count, count)
    assert words == {"the": 2}


def item_right() -> None:
    found: list[dict[str, int]] = []

    def count() -> None:
        found.append({"the": 1})  # each thread counts its own words: nothing is shared but a list

    together(count, count)
    assert sum(words["the"] for words in found) == 2


def transfer_wrong() -> None:
    mine, yours = 50, 50
    lock = threading.Lock()  # held whenever a balance changes
    schedules.always(lambda: lock.locked() or mine + yours == 100)

    def transfer() -> None:
        nonlocal mine, yours
        with lock:
            mine -= 10
        with lock:
            yours += 10

    together(transfer, transfer)


def transfer_right() -> None:
    mine, yours = 50, 50
    lock = threading.Lock()  # held whenever the sum is not 100
    schedules.always(lambda: lock.locked() or mine + yours == 100)

    def transfer() -> None:
        nonlocal mine, yours
        with lock:
            mine -= 10
            yours += 10

    together(transfer, transfer)


def swap_wrong() -> None:
    count = 0

    def compare_and_swap(old: int, new: int) -> bool:
        nonlocal count
        if count == old:
            count = new  # the processor does both in one instruction, Python does not
            return True
        return False

    def add() -> None:
        while not compare_and_swap(old := count, old + 1):
            pass

    together(add, add)
    assert count == 2


def swap_right() -> None:
    count = 0
    lock = threading.Lock()  # held from comparing count to writing it

    def compare_and_swap(old: int, new: int) -> bool:
        nonlocal count
        with lock:
            if count == old:
                count = new
                return True
            return False

    def add() -> None:
        while not compare_and_swap(old := count, old + 1):
            pass

    together(add, add)
    assert count == 2


def aba_wrong() -> None:
    below = {"A": "B", "B": None}  # a stack of free blocks: A lies on B
    top: str | None = "A"
    lock = threading.Lock()  # held from comparing top to writing it
    used: list[str | None] = []

    def pop() -> str | None:
        nonlocal top
        old = top
        new = below[old] if old else None
        with lock:  # compare and swap, in one step
            if top == old:
                top = new
                return old
        return None

    def take_one() -> None:
        used.append(pop())

    def take_two_and_give_one_back() -> None:
        nonlocal top
        first, second = pop(), pop()
        used.append(second)
        if first:
            with lock:
                below[first], top = top, first

    together(take_one, take_two_and_give_one_back)
    assert top is None or top not in used


def aba_right() -> None:
    below = {"A": "B", "B": None}  # a stack of free blocks: A lies on B
    top: tuple[str | None, int] = ("A", 0)  # with the number of times it has changed
    lock = threading.Lock()  # held from comparing top to writing it
    used: list[str | None] = []

    def pop() -> str | None:
        nonlocal top
        old = top
        block, changes = old
        new = below[block] if block else None
        with lock:
            if top == old:
                top = new, changes + 1
                return block
        return None

    def take_one() -> None:
        used.append(pop())

    def take_two_and_give_one_back() -> None:
        nonlocal top
        first, second = pop(), pop()
        used.append(second)
        if first:
            with lock:
                below[first], top = top[0], (first, top[1] + 1)

    together(take_one, take_two_and_give_one_back)
    assert top[0] is None or top[0] not in used


UPDATES = (
    Pair(
        "lost update of a variable",
        "assertion",
        variable_wrong,
        variable_right,
        "`count += 1` reads, adds and writes: three steps.",
    ),
    Pair(
        "a lock of one's own",
        "assertion",
        attribute_wrong,
        attribute_right,
        "A lock protects only among those who take the same one.",
    ),
    Pair(
        "lost update of a dict item",
        "assertion",
        item_wrong,
        item_right,
        "Sharing less beats locking more: count apart, add up at the end.",
    ),
    Pair(
        "money in nobody's account",
        "invariant",
        transfer_wrong,
        transfer_right,
        "A lock is released only where the invariant holds again.",
    ),
    Pair(
        "compare-and-swap by hand",
        "assertion",
        swap_wrong,
        swap_right,
        "Compare-and-swap helps only if it is one step.",
    ),
    Pair(
        "A, B and A again",
        "assertion",
        aba_wrong,
        aba_right,
        "The same value need not mean that nothing has happened: count the changes.",
    ),
)
