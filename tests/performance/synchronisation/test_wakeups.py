"""Wake-ups are counted exactly; nothing is lost; a stall is seen, and released."""

import threading
import time

import pytest

from utils.core import plots
from utils.core.experiment import Cancelled, Control, controlled
from utils.core.workers import crew
from utils.performance.synchronisation import herd as herds
from utils.performance.synchronisation import merged
from utils.performance.synchronisation.herd import stampede
from utils.performance.synchronisation.merged import ITEMS, VARIANTS, Buffer, Stalled, combine
from utils.performance.synchronisation.wakeups import Counting, Wake
from utils.threads.primitives.mutex import Mutex


def _asleep(conditions: set[Counting], count: int) -> None:
    """Wait until so many sleep."""
    deadline = time.monotonic() + 10
    while sum(condition.waiting for condition in conditions) != count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize(("producers", "consumers", "capacity"), [(4, 4, 1), (1, 1, 1), (2, 3, 4)])
def test_every_item_arrives_unless_all_sleep(producers: int, consumers: int, capacity: int) -> None:
    result = combine(producers=producers, consumers=consumers, capacity=capacity)
    assert [passing.variant for passing in result] == list(VARIANTS)
    for passing in result:
        assert len(set(passing.received)) == len(passing.received)
        if passing.stalled:  # only the variant that wakes one of a mixed line can
            assert passing.variant == "merged, notify"
            assert producers + consumers > 2
        else:
            assert set(passing.received) == set(range(ITEMS))
        assert passing.useful + passing.futile == len(passing.wakes)
    assert plots.png(merged.plot_combine(result)).startswith(b"\x89PNG")


def test_one_producer_and_one_consumer_never_wake_in_vain() -> None:
    """Each is the only one who could be woken, and for a reason."""
    for passing in combine(producers=1, consumers=1, capacity=1):
        assert not passing.stalled and passing.futile == 0


@pytest.mark.parametrize(
    ("variant", "least", "most"),
    # The taker rings as well, for a producer; in a merged line consumers hear it, again in vain.
    [("one each, notify", 0, 0), ("merged, notify_all", 3, 6), ("merged, notify", 1, 1)],
)
def test_the_wake_ups_of_one_put_by_hand(variant: merged.Variant, least: int, most: int) -> None:
    """Four consumers sleep and one item comes: who wakes, and who in vain?"""
    buffer = Buffer(1, threads=5, variant=variant)
    conditions = {buffer._room, buffer._item}

    def get() -> int:
        try:
            return buffer.get()
        finally:
            buffer.leave()

    with crew(4) as pool:
        gets = [pool.submit(get) for _ in range(4)]
        _asleep(conditions, 4)
        buffer.put(7)
        deadline = time.monotonic() + 10
        while buffer._threads == 5:  # one consumer takes, rings and leaves
            assert time.monotonic() < deadline
            time.sleep(0.001)
        _asleep(conditions, 3)
        wakes = list(buffer.wakes)
        assert sum(wake.useful for wake in wakes) == 1
        assert least <= sum(not wake.useful for wake in wakes) <= most
        buffer.leave()  # nobody is left that could put
        errors = [future.exception(10) for future in gets]
    assert buffer.stalled and buffer.wakes == wakes
    assert sum(isinstance(error, Stalled) for error in errors) == 3
    assert [got.result() for got, error in zip(gets, errors, strict=True) if not error] == [7]


def test_a_lost_wake_up_stalls_and_is_released() -> None:
    """Two consumers wait; of two notifications in one line, a producer's may go to a consumer."""
    tries = (merged._pass_on("merged, notify", 4, 4, 1) for _ in range(30))
    stalled = [next((passing for passing in tries if passing.stalled), None)]
    assert stalled[0], "30 runs, and the notification never went to the wrong one"
    assert len(stalled[0].received) < ITEMS
    assert not [t for t in threading.enumerate() if t.name.startswith("worker")]


def test_a_release_is_not_counted_as_a_wake_up() -> None:
    buffer = Buffer(1, threads=2, variant="one each, notify")
    with crew(1) as pool:
        get = pool.submit(buffer.get)
        _asleep({buffer._item}, 1)
        buffer.leave()
        with pytest.raises(Stalled):
            get.result(10)
    assert buffer.wakes == []


def test_who_waits_with_a_time_out_is_not_woken() -> None:
    mutex, wakes = Mutex(), list[Wake]()
    condition = Counting(mutex, wakes, "never")
    with condition:
        assert condition.wait_for(lambda: False, timeout=0.01) is False
        assert condition.wait_for(lambda: True) is True
    assert wakes == []


@pytest.mark.parametrize("waiters", [1, 2, 9])
def test_a_herd_s_futile_wake_ups(waiters: int) -> None:
    everybody, one = stampede(waiters=waiters)
    for item in range(waiters):
        assert everybody.futile(item) == waiters - 1 - item
        assert one.futile(item) == 0
    for herd in (everybody, one):
        assert sum(not wake.useful for wake in herd.wakes) == herd.expected
        assert sum(wake.useful for wake in herd.wakes) == waiters
        # Who woke had slept, and whoever woke in vain slept again.
        assert len(herd.trace) == len(herd.wakes)
    assert plots.png(herds.plot_stampede((everybody, one))).startswith(b"\x89PNG")


@pytest.mark.parametrize("run", [combine, stampede])
def test_a_cancelled_run_leaves_no_thread(run: object) -> None:
    control = Control()
    control.cancel()
    with controlled(control), pytest.raises(Cancelled):
        run()  # type: ignore[operator]
    assert not [t for t in threading.enumerate() if t.name.startswith("worker")]


@pytest.mark.timeout(60)  # it is released, it doesn't wait for a deadline
def test_a_herd_cancelled_in_the_middle_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(herds, "DEADLINE", 250)
    control = Control()
    rounds = iter(range(100))
    monkeypatch.setattr(
        herds.time, "sleep", lambda _: control.cancel() if next(rounds) == 2 else None
    )
    with controlled(control), pytest.raises(Cancelled):
        stampede(waiters=32)
    assert not [t for t in threading.enumerate() if t.name.startswith("worker")]


def test_values_outside_the_sliders_are_refused() -> None:
    with pytest.raises(ValueError, match="capacity=0"):
        combine(capacity=0)
    with pytest.raises(ValueError, match="waiters=33"):
        stampede(waiters=33)


def test_an_error_in_a_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer that dies leaves the others to be found asleep, not waited for."""
    get, calls = Buffer.get, iter(range(10**6))

    def failing(self: Buffer) -> int:
        if next(calls) == 5:
            raise OSError("no")
        return get(self)

    monkeypatch.setattr(Buffer, "get", failing)
    with pytest.raises(OSError, match="no"):
        combine(producers=2, consumers=2)
    assert not [t for t in threading.enumerate() if t.name.startswith("worker")]
