"""Ours and the library's Event and Barrier behave alike; a Latch opens once and stays open."""

import threading
import time
from collections.abc import Callable
from threading import BrokenBarrierError

import pytest

from utils.core import trace
from utils.core.experiment import gather
from utils.core.workers import crew
from utils.threads.primitives.rendezvous import Barrier, Event, Latch

events = pytest.mark.parametrize("make", [threading.Event, Event], ids=["threading", "ours"])
barriers = pytest.mark.parametrize("make", [threading.Barrier, Barrier], ids=["threading", "ours"])


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# ----------------------------------------------------------------------------------------- Event


@events
def test_an_event_wakes_all_and_lets_pass_until_cleared(make) -> None:
    event = make()
    assert not event.is_set() and event.wait(0) is False and event.wait(0.01) is False
    with crew(3) as pool:
        waiters = [pool.submit(event.wait, 20) for _ in range(3)]
        time.sleep(0.01)
        event.set()
        assert gather(waiters, timeout=20) == [True] * 3
    assert event.is_set() and event.wait() is True and event.wait(0) is True
    event.clear()
    assert not event.is_set() and event.wait(-1) is False


@events
def test_who_was_woken_passes_though_the_flag_was_lowered_again(make) -> None:
    event = make()
    with crew(1) as pool:
        waiter = pool.submit(event.wait, 20)
        condition = event._changed if make is Event else event._cond
        until(lambda: condition._waiters)
        event.set()
        event.clear()
        assert waiter.result(timeout=20) is True


# ----------------------------------------------------------------------------------------- Latch


def test_a_latch_opens_at_zero_and_stays_open() -> None:
    latch = Latch(3)
    assert latch.wait(0) is False and latch.wait(0.01) is False
    with crew(2) as pool:
        waiters = [pool.submit(latch.wait, 20) for _ in range(2)]
        latch.count_down()
        assert latch.count == 2 and not any(waiter.done() for waiter in waiters)
        latch.count_down(2)
        assert gather(waiters, timeout=20) == [True] * 2
    latch.count_down(5)
    assert latch.count == 0 and latch.wait() is True
    assert Latch(0).wait() is True


def test_a_latch_counts_every_thread() -> None:
    latch = Latch(400)

    def work() -> None:
        for _ in range(100):
            latch.count_down()

    with crew(5) as pool:
        opened = pool.submit(latch.wait, 20)
        gather([pool.submit(work) for _ in range(4)], timeout=20)
        assert opened.result(timeout=20) is True


def test_a_latch_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="count=-1: give 0 or more"):
        Latch(-1)
    with pytest.raises(ValueError, match="n=0: give 1 or more"):
        Latch(1).count_down(0)


# --------------------------------------------------------------------------------------- Barrier


@barriers
def test_nobody_goes_on_before_all_are_there(make) -> None:
    parties, rounds = 4, 50
    here, actions = [0] * parties, []
    barrier = make(parties, action=lambda: actions.append(list(here)), timeout=20)

    def party(number: int) -> list[int]:
        indices = []
        for round_ in range(1, rounds + 1):
            here[number] = round_
            indices.append(barrier.wait())
            assert min(here) >= round_ and max(here) <= round_ + 1  # nobody laps another
        return indices

    with crew(parties) as pool:
        outcomes = gather([pool.submit(party, number) for number in range(parties)], timeout=60)
    assert actions == [[round_] * parties for round_ in range(1, rounds + 1)]
    for indices in zip(*outcomes, strict=True):
        assert sorted(indices) == list(range(parties))
    assert barrier.n_waiting == 0 and not barrier.broken and barrier.parties == parties


@barriers
def test_a_party_that_does_not_come_breaks_the_barrier_for_all(make) -> None:
    barrier = make(3)
    with crew(2) as pool:
        waiters = [pool.submit(barrier.wait, timeout) for timeout in (0.02, 20)]
        for waiter in waiters:
            with pytest.raises(BrokenBarrierError):
                waiter.result(timeout=20)
    assert barrier.broken and barrier.n_waiting == 0
    with pytest.raises(BrokenBarrierError):
        barrier.wait(0)
    barrier.reset()
    assert not barrier.broken


@barriers
def test_the_default_timeout_is_the_barrier_s(make) -> None:
    with pytest.raises(BrokenBarrierError):
        make(2, timeout=0.01).wait()


@barriers
@pytest.mark.parametrize("method", ["abort", "reset"])
def test_abort_and_reset_free_who_waits(make, method: str) -> None:
    barrier = make(3)
    with crew(2) as pool:
        waiters = [pool.submit(barrier.wait, 20) for _ in range(2)]
        until(lambda: barrier.n_waiting == 2)
        getattr(barrier, method)()
        for waiter in waiters:
            with pytest.raises(BrokenBarrierError):
                waiter.result(timeout=20)
    assert barrier.broken is (method == "abort") and barrier.n_waiting == 0
    barrier.reset()
    with crew(3) as pool:  # and it serves again
        waiters = [pool.submit(barrier.wait, 20) for _ in range(3)]
        assert sorted(gather(waiters, timeout=20)) == [0, 1, 2]


@barriers
def test_an_action_that_fails_breaks_the_barrier(make) -> None:
    def fail() -> None:
        raise KeyError

    barrier = make(2, action=fail)
    with crew(2) as pool:
        waiters = [pool.submit(barrier.wait, 20) for _ in range(2)]
        errors = sorted(type(waiter.exception(timeout=20)).__name__ for waiter in waiters)
    assert errors == ["BrokenBarrierError", "KeyError"] and barrier.broken


@barriers
def test_an_abort_under_load_leaves_nobody_behind(make) -> None:
    barrier = make(3, timeout=20)

    def party(number: int) -> int:
        for round_ in range(1000):
            if number == 0 and round_ == 30:
                barrier.abort()
            try:
                barrier.wait()
            except BrokenBarrierError:
                return round_
        raise AssertionError("the barrier never broke")

    with crew(3) as pool:
        broken = gather([pool.submit(party, number) for number in range(3)], timeout=60)
    assert broken[0] == 30 and min(broken) >= 29 and max(broken) <= 30
    assert barrier.n_waiting == 0


@barriers
def test_one_party_never_waits(make) -> None:
    assert [make(1).wait() for _ in range(3)] == [0, 0, 0]


def test_a_barrier_without_parties_is_refused() -> None:
    for parties in (0, -1):
        with pytest.raises(ValueError, match=f"parties={parties}: give 1 or more"):
            Barrier(parties)


def test_waits_are_recorded_under_what_they_wait_for() -> None:
    with trace.recording() as recorder:
        Event().wait(0.01)
        Latch(1).wait(0.01)
        with pytest.raises(BrokenBarrierError):
            Barrier(2).wait(0.01)
    spans = [(span.category, span.name) for span in recorder.trace().spans]
    assert spans == [("lock", "event"), ("lock", "latch"), ("lock", "barrier")]
