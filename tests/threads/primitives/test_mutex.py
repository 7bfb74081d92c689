"""A mutex excludes, knows its owner, counts, records, and names a deadlock instead of hanging."""

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from utils.core import plots, trace
from utils.core.experiment import gather
from utils.core.workers import crew
from utils.threads.primitives import deadlock, wait_graph
from utils.threads.primitives.condition import Condition
from utils.threads.primitives.deadlock import Deadlock, LockOrder, lock_order
from utils.threads.primitives.mutex import Mutex

both = pytest.mark.parametrize("make", [threading.Lock, Mutex])


def together(*works: Callable[[], Any]) -> list[Any]:
    """Run each in a thread of its own, "worker 1" and so on; the results, or the first error."""
    with crew(len(works)) as pool:
        return gather([pool.submit(work) for work in works], timeout=30)


@both
def test_one_at_a_time(make) -> None:
    lock, count, inside = make(), 0, 0

    def work() -> None:
        nonlocal count, inside
        for _ in range(500):
            with lock:
                inside += 1
                assert inside == 1
                seen = count
                time.sleep(0)
                count = seen + 1
                inside -= 1

    together(work, work, work, work)
    assert count == 2000 and not lock.locked()


@both
def test_the_arguments_of_acquire(make) -> None:
    lock = make()
    assert lock.acquire() is True and lock.locked()
    assert lock.acquire(False) is False
    assert lock.acquire(blocking=False, timeout=-1) is False
    assert lock.acquire(True, 0) is False
    assert lock.acquire(timeout=0.01) is False
    lock.release()
    assert lock.acquire(timeout=5) is True
    lock.release()
    with lock as entered:
        assert entered is True
    for taken in (False, True):  # refused whether it would have to wait or not
        for error, args in [
            (ValueError, {"blocking": False, "timeout": 1}),
            (ValueError, {"timeout": -2}),
            (ValueError, {"timeout": float("nan")}),
            (OverflowError, {"timeout": threading.TIMEOUT_MAX * 2}),
            (TypeError, {"timeout": "soon"}),
        ]:
            with pytest.raises(error):
                lock.acquire(**args)
        assert lock.locked() is taken
        lock.acquire(blocking=False)


@both
def test_a_timeout_waits_for_the_holder(make) -> None:
    lock = make()
    lock.acquire()
    with crew(1) as pool:
        waiter = pool.submit(lock.acquire, timeout=20)
        time.sleep(0.02)
        lock.release()
        assert waiter.result(timeout=20) is True
    assert lock.locked()


@both
def test_an_exception_inside_releases(make) -> None:
    lock = make()
    with pytest.raises(KeyError), lock:
        raise KeyError
    assert not lock.locked()
    with pytest.raises(RuntimeError):
        lock.release()


def test_only_the_owner_releases() -> None:
    mutex = Mutex("table")
    with pytest.raises(RuntimeError, match="cannot release table: nobody holds it"):
        mutex.release()
    mutex.acquire()
    with pytest.raises(RuntimeError, match="cannot release table: MainThread holds it"):
        together(mutex.release)
    assert mutex.locked()
    mutex.release()
    with pytest.raises(TypeError):
        mutex.release("now")


def test_contention_is_counted() -> None:
    mutex = Mutex()
    for _ in range(3):
        with mutex:
            pass
    assert (mutex.acquired, mutex.contended, mutex.waited) == (3, 0, 0)
    mutex.acquire()
    with crew(1) as pool:
        waiter = pool.submit(mutex.acquire)
        while not deadlock._waiting:
            time.sleep(0.001)
        time.sleep(0.01)
        mutex.release()
        waiter.result(timeout=20)
    assert (mutex.acquired, mutex.contended) == (5, 1) and mutex.waited >= 0.01


def test_waits_and_holds_are_recorded() -> None:
    mutex = Mutex("table")

    def second() -> None:
        with mutex:
            pass

    with mutex:  # not recorded yet
        pass
    with trace.recording() as recorder, crew(1) as pool:
        with mutex:
            waiter = pool.submit(second)
            while not deadlock._waiting:
                time.sleep(0.001)
        waiter.result(timeout=20)
        assert not mutex.acquire(timeout=0) or mutex.release() is None
    recorded = recorder.trace()
    (wait,) = recorded.select(category="lock").spans
    mine, theirs, _ = recorded.select(category="hold").spans
    assert (wait.lane, wait.name) == ("worker 1", "table")
    assert (mine.lane, mine.name) == ("MainThread", "table")
    assert wait.start < mine.end <= theirs.start and wait.end <= theirs.start
    assert theirs.lane == "worker 1"


def test_a_hold_that_outlives_the_recording_is_no_trouble() -> None:
    mutex = Mutex()
    with trace.recording():
        mutex.acquire()
    mutex.release()
    with trace.recording() as recorder:
        mutex.acquire(blocking=False)
        mutex.release()
    assert len(recorder.trace()) == 1


# ------------------------------------------------------------------------------------- deadlocks


def in_a_circle(mutexes: list[Mutex]) -> list[Deadlock | None]:
    """Thread n takes mutex n, waits for the others to have done so, and asks for mutex n + 1."""
    everybody = threading.Barrier(len(mutexes))

    def philosopher(n: int) -> Deadlock | None:
        try:
            with mutexes[n]:
                everybody.wait(10)
                with mutexes[(n + 1) % len(mutexes)]:
                    return None
        except Deadlock as error:
            return error

    return together(*(lambda n=n: philosopher(n) for n in range(len(mutexes))))


@pytest.mark.parametrize("size", [2, 3, 5])
def test_a_circle_of_threads_is_named_and_all_get_away(size: int) -> None:
    mutexes = [Mutex(f"fork {n}") for n in range(size)]
    (error,) = [outcome for outcome in in_a_circle(mutexes) if outcome]
    assert len(error.cycle) == size
    for step, following in zip(error.cycle, error.cycle[1:] + error.cycle[:1], strict=True):
        assert step.holder == following.thread and step.thread != step.holder
    for step in error.cycle:
        text = f"{step.thread} waits for {step.mutex}, held by {step.holder}"
        assert text in str(error)
    assert sorted(step.mutex for step in error.cycle) == [mutex.name for mutex in mutexes]
    assert not any(mutex.locked() for mutex in mutexes) and not deadlock._waiting
    assert plots.png(wait_graph.plot(error)).startswith(b"\x89PNG")


def test_to_wait_for_oneself_is_a_deadlock_unless_it_ends() -> None:
    mutex = Mutex("table")
    with mutex:
        with pytest.raises(Deadlock, match="MainThread waits for table, held by MainThread"):
            mutex.acquire()
        assert mutex.acquire(timeout=0.01) is False
        assert mutex.acquire(blocking=False) is False
    assert not mutex.locked() and not deadlock._waiting


def test_a_long_queue_is_no_deadlock() -> None:
    """Waiters of one mutex whose holder waits for another: a tree, not a circle."""
    first, second = Mutex("first"), Mutex("second")
    second.acquire()

    def chain() -> None:
        with first, second:
            pass

    with crew(3) as pool:
        waiting = [pool.submit(chain) for _ in range(3)]
        while len(deadlock._waiting) < 3:
            time.sleep(0.001)
        second.release()
        gather(waiting, timeout=20)
    assert not deadlock._waiting


def test_a_wait_that_cannot_get_its_mutex_back_names_the_deadlock() -> None:
    outer, inner = Mutex("outer"), Mutex("inner")
    condition = Condition(inner)

    def waiter() -> None:
        with outer, condition:
            condition.wait(20)

    def notifier() -> None:
        while not condition._waiters:
            time.sleep(0.001)
        with condition:
            condition.notify()
            with outer:  # its holder was woken and wants `inner`
                pass

    with pytest.raises(Deadlock, match="outer.*inner|inner.*outer"):
        together(waiter, notifier)
    assert not outer.locked() and not inner.locked() and not deadlock._waiting


def test_random_transfers_deadlock_give_up_and_lose_nothing() -> None:
    accounts = {Mutex(f"account {n}"): [100] for n in range(3)}
    refused = []

    def clerk(seed: int) -> None:
        choose = random.Random(seed)
        done = 0
        while done < 150:
            source, target = choose.sample(list(accounts), 2)
            with source:  # who holds nothing yet is never refused
                accounts[source][0] -= 1
                time.sleep(0)
                try:
                    with target:
                        accounts[target][0] += 1
                        done += 1
                except Deadlock as error:
                    accounts[source][0] += 1  # as it was
                    refused.append(error)

    together(*(lambda seed=seed: clerk(seed) for seed in range(4)))
    assert sum(balance for (balance,) in accounts.values()) == 300
    assert not any(mutex.locked() for mutex in accounts) and not deadlock._waiting
    for error in refused:  # none was invented: each is a circle
        assert error.cycle[-1].holder == error.cycle[0].thread


# ------------------------------------------------------------------------------------ lock order


def recorded(*orders: str, blocking: bool = True) -> LockOrder:
    """One thread takes the mutexes named by each string, nested, and releases them."""
    mutexes = {name: Mutex(name) for order in orders for name in order}
    with trace.recording() as recorder:
        for order in orders:
            for name in order:
                assert mutexes[name].acquire(blocking)
            for name in reversed(order):
                mutexes[name].release()
    return lock_order(recorder.trace())


def test_an_inversion_is_found_though_nothing_hung() -> None:
    order = recorded("AB", "BA")
    assert order.edges == {("A", "B"): ("MainThread",), ("B", "A"): ("MainThread",)}
    assert order.inversions() == [("A", "B")]
    assert plots.png(wait_graph.plot(order)).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("orders", "inversions"),
    [
        (["AB", "AB", "BC", "AC"], []),
        (["AB", "BC", "CA"], [("A", "B", "C")]),
        (["ABC", "CB"], [("B", "C")]),
        (["AB", "BA", "CD", "DC"], [("A", "B"), ("C", "D")]),
        (["A", "B"], []),
    ],
)
def test_the_cycles_of_the_order(orders: list[str], inversions: list[tuple[str, ...]]) -> None:
    assert recorded(*orders).inversions() == inversions


def test_an_attempt_that_would_not_wait_gives_no_order() -> None:
    assert recorded("AB", "BA", blocking=False).edges == {}


def test_two_mutexes_of_one_name_have_no_order() -> None:
    with trace.recording() as recorder, Mutex("account"), Mutex("account"):
        pass
    assert lock_order(recorder.trace()).inversions() == [("account",)]


def test_a_deadlock_that_was_refused_is_in_the_order_too() -> None:
    with trace.recording() as recorder:
        in_a_circle([Mutex("A"), Mutex("B")])
    assert lock_order(recorder.trace()).inversions() == [("A", "B")]
