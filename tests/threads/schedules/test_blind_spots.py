"""Ordinary code that an explorer may overlook: none of it may be "proved"."""

import collections
import copy
import functools
import heapq
import threading
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.thread import _threads_queues
from threading import Lock, Thread

import pytest

from utils.threads import schedules
from utils.threads.bugs import together


def pop_from_a_heap() -> None:
    heap = [1]

    def take() -> None:
        if heap:
            heapq.heappop(heap)

    together(take, take)


def torn_read(read) -> None:
    """A writer appends twice; whoever looks in between sees what never should be seen."""
    items: list = []
    seen: list = []

    def write() -> None:
        items.append(1)
        items.append(2)

    together(write, lambda: seen.append(read(items)))
    assert seen[0] not in (1, [1], "[1]", (1,)), seen


def summed() -> None:
    torn_read(lambda items: sum(items, 0))


def largest() -> None:
    torn_read(lambda items: max(items, default=0))


def joined() -> None:
    torn_read(lambda items: items + [])


def formatted() -> None:
    torn_read(lambda items: f"{items}")


def unpacked() -> None:
    torn_read(lambda items: (lambda *a: len(a))(*items))


def unpacked_for_a_known_function() -> None:
    def count(*items) -> int:
        return len(items)

    torn_read(lambda items: count(*items))


def seen_through_a_view() -> None:
    scores: dict = {}
    values, seen = scores.values(), []

    def write() -> None:
        scores["a"] = 1
        scores["b"] = -1

    together(write, lambda: seen.append(sum(values)))
    assert seen == [0]


def copied() -> None:
    torn_read(lambda items: copy.copy(items))


def enumerated() -> None:
    torn_read(lambda items: [item for _, item in enumerate(items)])


def nested_length() -> None:
    table: dict = {"jobs": []}
    seen: list = []

    def write() -> None:
        table["jobs"].append(1)
        table["jobs"].append(2)

    together(write, lambda: seen.append(len(table["jobs"])))
    assert seen != [1]


def iterated_while_changed() -> None:
    prices = {"a": 1, "b": 2}

    def total() -> None:
        amount = 0
        for _, price in prices.items():
            amount += price

    together(total, lambda: prices.update(c=3))


WORKS = [lambda box: box.append(len(box)), lambda box: box.append(len(box))]


def lambdas_in_a_list() -> None:
    box: list = []
    together(*(lambda work=work: work(box) for work in WORKS))
    assert box == [0, 1]


def twice(function):
    def wrapper(*args) -> None:
        function(*args)

    return wrapper


class Outer:
    class Inner:
        def __init__(self) -> None:
            self.count = 0

        @twice
        def add(self) -> None:
            self.count += 1


def a_nested_class_and_a_bare_decorator() -> None:
    inner = Outer.Inner()
    together(inner.add, inner.add)
    assert inner.count == 2


class Box:
    def __init__(self) -> None:
        self._items: list = []

    @property
    def items(self) -> list:
        return self._items


def a_property() -> None:
    box, seen = Box(), []

    def write() -> None:
        box.items.append(1)
        box.items.append(2)

    together(write, lambda: seen.append(len(box.items)))
    assert seen != [1]


class Config:
    mode = level = 0

    def same(self) -> bool:
        return self.mode == self.level


def a_class_attribute_seen_through_an_instance() -> None:
    Config.mode = Config.level = 0
    config, seen = Config(), []

    def change() -> None:
        Config.mode = 1
        Config.level = 1

    together(change, lambda: seen.append(config.same()))
    assert seen == [True]


def library_code() -> None:
    jobs = collections.UserList([1])

    def take() -> None:
        if jobs:
            jobs.pop()

    together(take, take)


handler = len


def a_global_function_taken_away() -> None:
    global handler
    handler = len

    def remove() -> None:
        global handler
        handler = None

    def use() -> None:
        if handler is not None:
            handler(())

    together(remove, use)


def an_invariant_in_a_helper() -> None:
    accounts = [10, 0]
    schedules.always(functools.partial(lambda: sum(accounts) == 10))

    def move() -> None:
        mine = accounts
        mine[0] -= 5
        mine[1] += 5

    together(move)


def alive_after_its_work() -> None:
    done = False

    def work() -> None:
        nonlocal done
        done = True

    thread = Thread(target=work)
    thread.start()
    assert not (done and thread.is_alive())
    thread.join()


def a_sleep_that_ends_early() -> None:
    ready = False

    def prepare() -> None:
        nonlocal ready
        ready = True

    thread = Thread(target=prepare)
    thread.start()
    threading.Event().wait(0.1)
    assert ready
    thread.join()


def two_of_one_name() -> None:
    count = 0

    def add() -> None:
        nonlocal count
        count += 1

    threads = [Thread(target=add, name="worker") for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count == 2


WRONG = [
    pop_from_a_heap,
    summed,
    largest,
    joined,
    formatted,
    unpacked,
    unpacked_for_a_known_function,
    seen_through_a_view,
    copied,
    enumerated,
    nested_length,
    iterated_while_changed,
    lambdas_in_a_list,
    a_nested_class_and_a_bare_decorator,
    a_property,
    a_class_attribute_seen_through_an_instance,
    library_code,
    a_global_function_taken_away,
    an_invariant_in_a_helper,
    alive_after_its_work,
    a_sleep_that_ends_early,
    two_of_one_name,
]


@pytest.mark.parametrize("program", WRONG)
def test_it_is_not_overlooked(program) -> None:
    report = schedules.check(program, random=0)
    assert report.verdict == "failed", report
    again = schedules.replay(program, report.failure.schedule)
    assert again is not None and again.kind == report.failure.kind


def a_reader_changes_nothing() -> None:
    """Watching a thread must not write back what it had seen before (bpo-30744)."""
    x, seen = 0, []

    def write() -> None:
        nonlocal x
        x = 1

    together(lambda: seen.append(x), write)
    assert x == 1


def test_an_explored_pool_leaves_nothing_for_the_interpreters_end() -> None:
    def program() -> None:
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(int).result() == 0

    schedules.check(program, preemptions=0, random=0, seconds=2)
    names = {thread.name for thread in _threads_queues}
    assert not any(name.startswith("ThreadPoolExecutor") for name in names)


def thread_local_data_is_fresh() -> None:
    local = threading.local()

    def use() -> None:
        assert not hasattr(local, "x")
        local.x = 1

    for _ in range(3):
        together(use)


def a_range_is_nobody_elses() -> None:
    lock, done = Lock(), []

    def work() -> None:
        for number in range(2):
            with lock:
                done.append(number)

    together(work, work)
    assert sorted(done) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "program", [a_reader_changes_nothing, thread_local_data_is_fresh, a_range_is_nobody_elses]
)
def test_there_is_no_false_alarm(program) -> None:
    report = schedules.check(program, random=20)
    assert report.verdict == "proved", report
