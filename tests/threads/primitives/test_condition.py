"""Ours and the library's Condition behave alike, over every kind of lock."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from utils.core import trace
from utils.core.experiment import gather
from utils.core.workers import crew
from utils.threads.primitives.condition import Condition
from utils.threads.primitives.mutex import Mutex

LOCKS = [None, threading.Lock, threading.RLock, Mutex]


@pytest.fixture(params=[threading.Condition, Condition], ids=["threading", "ours"])
def make(request) -> Callable[..., Any]:
    return request.param


@pytest.fixture(params=LOCKS, ids=["own", "Lock", "RLock", "Mutex"])
def condition(make, request) -> Any:
    return make(request.param and request.param())


def waiting(condition: Any, threads: int) -> None:
    """Return when so many threads wait."""
    deadline = time.monotonic() + 20
    while True:
        with condition:
            if len(condition._waiters) == threads:
                return
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_notify_wakes_n_in_order_of_arrival(condition) -> None:
    woken: list[int] = []

    def sleeper(number: int) -> bool:
        with condition:
            notified = condition.wait(20)
            woken.append(number)
            return notified

    with crew(6) as pool:
        sleepers = []
        for number in range(6):
            sleepers.append(pool.submit(sleeper, number))
            waiting(condition, number + 1)
        for n, expected in [(0, []), (1, [0]), (3, [0, 1, 2, 3]), (100, [0, 1, 2, 3, 4, 5])]:
            with condition:
                before = list(woken)
                condition.notify(n)
                time.sleep(0.01)
                assert woken == before  # nobody goes on before the lock is free
            gather(sleepers[: len(expected)], timeout=20)
            assert sorted(woken) == expected
        assert gather(sleepers, timeout=20) == [True] * 6


def test_notify_all(condition) -> None:
    def sleeper() -> bool:
        with condition:
            return condition.wait(20)

    with crew(4) as pool:
        sleepers = [pool.submit(sleeper) for _ in range(4)]
        waiting(condition, 4)
        with condition:
            condition.notify_all()
        assert gather(sleepers, timeout=20) == [True] * 4


def test_a_notification_without_a_waiter_is_lost(condition) -> None:
    with condition:
        condition.notify()
        condition.notify_all()
        assert condition.wait(0.01) is False


def test_timeouts_leave_nobody_behind(condition) -> None:
    with condition:
        for timeout in (0, -1, 0.01):
            assert condition.wait(timeout) is False
        assert condition.wait_for(lambda: 0, timeout=0.01) == 0
        assert condition.wait_for(lambda: [], timeout=-1) == []
        assert condition.wait_for(lambda: "yes", timeout=-1) == "yes"
        assert len(condition._waiters) == 0
        with pytest.raises(TypeError):
            condition.wait("soon")
        assert len(condition._waiters) == 0
    assert condition.acquire(False)  # and the lock was taken back and released each time
    condition.release()


def test_wait_for_waits_for_the_predicate_not_for_a_notification(condition) -> None:
    state = []

    def sleeper() -> int:
        with condition:
            return condition.wait_for(lambda: len(state) == 3 and len(state), timeout=20)

    with crew(1) as pool:
        asleep = pool.submit(sleeper)
        for number in range(3):
            waiting(condition, 1)
            with condition:
                state.append(number)
                condition.notify()
        assert asleep.result(timeout=20) == 3


def test_wait_for_looks_once_more_when_the_time_is_up(condition) -> None:
    looks = []
    with condition:
        assert condition.wait_for(lambda: looks.append(1), timeout=0) is None
        assert len(looks) == 2
    with pytest.raises(RuntimeError, match="un-acquired lock"):
        condition.wait_for(lambda: False, timeout=0)


def test_an_exception_of_the_predicate_passes_with_the_lock_held(condition) -> None:
    with pytest.raises(ZeroDivisionError), condition:
        condition.wait_for(lambda: 1 / 0, timeout=1)
    assert condition.acquire(False)
    condition.release()


@pytest.mark.parametrize("method", ["wait", "notify", "notify_all"])
def test_without_the_lock_nothing_goes(condition, method: str) -> None:
    with pytest.raises(RuntimeError, match="un-acquired lock"):
        getattr(condition, method)()
    assert len(condition._waiters) == 0


@pytest.mark.parametrize("lock", [None, threading.RLock, Mutex])
def test_a_lock_with_an_owner_tells_whose_it_is(make, lock) -> None:
    condition = make(lock and lock())
    with crew(1) as pool, condition:
        stranger = pool.submit(condition.notify)
        with pytest.raises(RuntimeError, match="un-acquired lock"):
            stranger.result(timeout=20)


def test_a_lock_held_twice_is_released_as_a_whole(make) -> None:
    condition = make(threading.RLock())

    def sleeper() -> bool:
        with condition, condition:
            return condition.wait(20)

    with crew(1) as pool:
        asleep = pool.submit(sleeper)
        waiting(condition, 1)
        with condition:
            condition.notify()
        assert asleep.result(timeout=20) is True
    assert condition.acquire(False)
    condition.release()


@pytest.mark.parametrize("own", LOCKS[1:])
def test_a_bounded_buffer_loses_nothing(make, own) -> None:
    """Two conditions on one lock, three producers, three consumers, room for two."""
    lock, buffer, taken = own(), [], []
    not_empty, not_full = make(lock), make(lock)

    def produce(first: int) -> None:
        for item in range(first, first + 300):
            with not_full:
                assert not_full.wait_for(lambda: len(buffer) < 2, timeout=20)
                buffer.append(item)
                assert len(buffer) <= 2
                not_empty.notify()

    def consume() -> None:
        for _ in range(300):
            with not_empty:
                while not buffer:
                    assert not_empty.wait(20)
                taken.append(buffer.pop(0))
                not_full.notify()

    with crew(6) as pool:
        works = [pool.submit(produce, 300 * number) for number in range(3)]
        gather(works + [pool.submit(consume) for _ in range(3)], timeout=60)
    assert sorted(taken) == list(range(900)) and not buffer


def test_waiters_that_time_out_lose_no_notification(make) -> None:
    """Every notification reaches a waiter that says so, however many give up meanwhile."""
    condition, tokens, woken = make(), 0, []

    def any_left() -> bool:
        return tokens > 0

    def impatient() -> None:
        nonlocal tokens
        for _ in range(60):
            with condition:
                if condition.wait_for(any_left, timeout=0.002):
                    tokens -= 1
                    woken.append(1)

    def generous() -> None:
        nonlocal tokens
        for _ in range(40):
            with condition:
                tokens += 1
                condition.notify()
            time.sleep(0.001)

    with crew(4) as pool:
        gather([*(pool.submit(impatient) for _ in range(3)), pool.submit(generous)], timeout=60)
    assert len(woken) + tokens == 40 and len(condition._waiters) == 0


def test_a_wait_is_recorded_and_so_are_the_two_holds() -> None:
    condition = Condition(Mutex("table"), name="ready")
    with trace.recording() as recorder, condition:
        condition.wait(0.01)
    spans = [(span.category, span.name) for span in recorder.trace().spans]
    assert spans == [("hold", "table"), ("lock", "ready"), ("hold", "table")]
