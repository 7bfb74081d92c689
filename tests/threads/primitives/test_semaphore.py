"""Ours and the library's semaphores behave alike; the number of permits is right at all times."""

import threading
import time
from concurrent.futures import Future

import pytest

from utils.core import trace
from utils.core.experiment import gather
from utils.core.workers import crew
from utils.threads.primitives.semaphore import BoundedSemaphore, Semaphore

semaphores = pytest.mark.parametrize(
    "make", [threading.Semaphore, threading.BoundedSemaphore, Semaphore, BoundedSemaphore]
)


@semaphores
def test_at_most_n_inside(make) -> None:
    semaphore, inside, most = make(3), 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(200):
            with semaphore:
                with lock:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0)
                with lock:
                    inside -= 1

    with crew(6) as pool:
        gather([pool.submit(work) for _ in range(6)], timeout=60)
    assert 1 <= most <= 3 and semaphore._value == 3


@semaphores
def test_the_arguments_of_acquire(make) -> None:
    semaphore = make()
    assert semaphore.acquire() is True
    assert semaphore.acquire(False) is False
    assert semaphore.acquire(blocking=False) is False
    for timeout in (0, -1, 0.01):
        assert semaphore.acquire(timeout=timeout) is False
        assert semaphore.acquire(True, timeout) is False
    semaphore.release()
    assert semaphore.acquire(timeout=0) is True
    semaphore.release()
    with semaphore as entered:
        assert entered is True
    with pytest.raises(ValueError, match="timeout for non-blocking"):
        semaphore.acquire(False, 1)
    for n in (0, -1):
        with pytest.raises(ValueError, match="n must be one or more"):
            semaphore.release(n)
    with pytest.raises(ValueError, match="initial value must be >= 0"):
        make(-1)
    assert make(0).acquire(False) is False


@semaphores
def test_n_permits_wake_n_waiters(make) -> None:
    semaphore = make(5)
    for _ in range(5):
        semaphore.acquire()
    with crew(4) as pool:
        waiters: list[Future] = [pool.submit(semaphore.acquire, timeout=20) for _ in range(4)]
        condition = getattr(semaphore, "_positive", None) or semaphore._cond
        deadline = time.monotonic() + 20
        while len(condition._waiters) < 4:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        semaphore.release(3)
        while sum(waiter.done() for waiter in waiters) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert not semaphore.acquire(False)
        semaphore.release()
        assert gather(waiters, timeout=20) == [True] * 4
    assert semaphore._value == 0


@semaphores
def test_an_exception_inside_gives_the_permit_back(make) -> None:
    semaphore = make(1)
    with pytest.raises(KeyError), semaphore:
        raise KeyError
    assert semaphore.acquire(False)


@pytest.mark.parametrize("make", [threading.BoundedSemaphore, BoundedSemaphore])
def test_a_permit_too_many_is_refused(make) -> None:
    semaphore = make(2)
    with pytest.raises(ValueError, match="released too many times"):
        semaphore.release()
    semaphore.acquire()
    with pytest.raises(ValueError, match="released too many times"):
        semaphore.release(2)
    semaphore.release()
    assert semaphore._value == 2


@pytest.mark.parametrize("make", [threading.Semaphore, Semaphore])
def test_without_a_bound_anybody_may_give(make) -> None:
    semaphore = make(0)
    with crew(1) as pool:  # who gives need not be who takes: a semaphore has no owner
        pool.submit(semaphore.release, 2).result(timeout=20)
    assert [semaphore.acquire(False) for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize("make", [threading.Semaphore, Semaphore])
def test_permits_are_conserved_when_waiters_give_up(make) -> None:
    semaphore, taken = make(0), []

    def impatient() -> None:
        taken.extend(semaphore.acquire(timeout=0.002) for _ in range(60))

    def generous() -> None:
        for _ in range(40):
            semaphore.release()
            time.sleep(0.001)

    with crew(4) as pool:
        gather([*(pool.submit(impatient) for _ in range(3)), pool.submit(generous)], timeout=60)
    assert sum(taken) + semaphore._value == 40


@pytest.mark.parametrize("make", [threading.Semaphore, Semaphore])
def test_producer_and_consumer_with_p_and_v(make) -> None:
    room, work, buffer, taken = make(3), make(0), [], []

    def produce() -> None:
        for item in range(500):
            assert room.acquire(timeout=20)
            buffer.append(item)
            assert len(buffer) <= 3
            work.release()

    def consume() -> None:
        for _ in range(500):
            assert work.acquire(timeout=20)
            taken.append(buffer.pop(0))
            room.release()

    with crew(2) as pool:
        gather([pool.submit(produce), pool.submit(consume)], timeout=60)
    assert taken == list(range(500)) and room._value == 3 and work._value == 0


def test_a_wait_is_recorded_and_a_free_permit_is_not() -> None:
    semaphore = Semaphore(1, name="room")
    with trace.recording() as recorder:
        semaphore.acquire()
        semaphore.acquire(timeout=0.01)
    (span,) = recorder.trace().spans
    assert (span.category, span.name) == ("lock", "room")
