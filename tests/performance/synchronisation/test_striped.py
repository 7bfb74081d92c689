"""The striped map is a dictionary, also when many change it, and under every schedule tried."""

import threading
from contextlib import nullcontext

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.core import plots
from utils.core.experiment import Cancelled, Control, controlled, gather
from utils.core.workers import crew
from utils.performance.synchronisation import striped
from utils.performance.synchronisation.striped import (
    StripedLock,
    StripedMap,
    Striping,
    count,
)
from utils.threads import schedules
from utils.threads.bugs import together

KEYS = st.one_of(st.integers(-3, 3), st.sampled_from(["a", "b", 1.0, True, None, (1, 2)]))
STEPS = st.tuples(st.sampled_from(["set", "del", "get", "[]", "in", "compute"]), KEYS)


@settings(max_examples=100, deadline=None)
@given(stripes=st.integers(1, 5), steps=st.lists(STEPS, max_size=30))
def test_it_does_what_a_dict_does(stripes: int, steps: list) -> None:
    ours, theirs = StripedMap(stripes), {}
    for number, (step, key) in enumerate(steps):
        if step == "set":
            ours[key] = theirs[key] = number
        elif step == "get":
            assert ours.get(key, -1) == theirs.get(key, -1)
        elif step == "in":
            assert (key in ours) == (key in theirs)
        elif step == "compute":
            theirs[key] = theirs.get(key, 10) + 1
            assert ours.compute(key, lambda value: value + 1, 10) == theirs[key]
        elif key in theirs:
            if step == "[]":
                assert ours[key] == theirs[key]
            else:
                del ours[key], theirs[key]
        else:
            with pytest.raises(KeyError):
                ours[key] if step == "[]" else ours.__delitem__(key)
    assert ours.copy() == theirs and len(ours) == len(theirs)
    assert sorted(map(repr, ours)) == sorted(map(repr, theirs))
    assert not any(mutex.locked() for mutex in ours.locks.mutexes)


def test_updates_of_many_threads_all_count() -> None:
    counts: StripedMap[int, int] = StripedMap(4)
    keys = [n % 7 for n in range(700)]

    def work() -> None:
        for key in keys:
            counts.compute(key, lambda value: value + 1, 0)

    with crew(4) as pool:
        gather([pool.submit(work) for _ in range(4)], timeout=20)
    assert counts.copy() == dict.fromkeys(range(7), 400)


def test_iterating_sees_what_stays_exactly_once_whatever_else_happens() -> None:
    numbers = StripedMap(4)
    for key in range(100):
        numbers[key] = key
    seen = []
    for key in numbers:
        if isinstance(key, int):
            seen.append(key)
            numbers[f"new {key}"] = key  # no "dictionary changed size during iteration"
    assert sorted(seen) == list(range(100))


def test_a_failing_change_frees_the_stripe_and_changes_nothing() -> None:
    numbers = StripedMap(2)
    numbers["a"] = 1
    with pytest.raises(ZeroDivisionError):
        numbers.compute("a", lambda value: value / 0, 0)
    assert numbers["a"] == 1 and not any(mutex.locked() for mutex in numbers.locks.mutexes)


def test_equal_keys_share_a_stripe_and_regular_ones_spread() -> None:
    lock = StripedLock(16)
    assert lock.of(1) is lock.of(1.0) is lock.of(True)
    assert len({lock.stripe(16 * n) for n in range(200)}) > 8
    with lock.all():
        assert all(mutex.locked() for mutex in lock.mutexes)
    with pytest.raises(ValueError, match="stripes=0 is not allowed"):
        StripedLock(0)


def same_key() -> None:
    counts = StripedMap(2)

    def add() -> None:
        counts.compute("a", lambda value: value + 1, 0)

    together(add, add)
    assert counts["a"] == 2


def size_beside_a_new_key() -> None:
    numbers, seen = StripedMap(2), []
    numbers[1] = 1

    def put() -> None:
        numbers[2] = 1

    together(lambda: seen.append(len(numbers)), put)
    assert seen in ([1], [2]) and len(numbers) == 2


def two_sizes() -> None:
    numbers, seen = StripedMap(2), []

    def look() -> None:
        seen.append(len(numbers))

    together(look, look)
    assert seen == [0, 0]


def explored(program) -> schedules.Report:
    return schedules.check(program, seconds=60, random=0, preemptions=1)


@pytest.mark.parametrize("program", [same_key, size_beside_a_new_key, two_sizes])
def test_no_schedule_breaks_it(program) -> None:
    report = explored(program)
    assert report.verdict == "proved", report


def test_without_its_lock_it_would_be_found(monkeypatch) -> None:
    monkeypatch.setattr(StripedLock, "of", lambda self, key: nullcontext())
    assert explored(same_key).verdict == "failed"


@pytest.mark.parametrize(("threads", "skew"), [(1, 0), (8, 0), (8, 2)])
def test_nothing_is_lost_and_every_update_has_its_stripe(threads: int, skew: float) -> None:
    result = count(stripes=5, threads=threads, skew=skew)
    assert result.lost == 0 and 5 in result.rate
    for size, load in result.load.items():
        assert len(load) == size and sum(load) == pytest.approx(1)
        assert 0 < result.expected(size) <= result.bound(size) + 1e-9 <= threads + 1e-9
    assert result.expected(1) == pytest.approx(1) and result.speedup(1) == 1
    assert plots.png(striped.plot(result)).startswith(b"\x89PNG")


@pytest.mark.parametrize(("stripes", "threads"), [(1, 4), (4, 4), (16, 8), (64, 8)])
def test_the_theory_for_equal_stripes(stripes: int, threads: int) -> None:
    """Then it is a known formula: n k / (n + k - 1)."""
    load = (1 / stripes,) * stripes
    result = Striping(threads, 0, stripes, {1: 1.0}, {stripes: load}, 0)
    assert result.expected(stripes) == pytest.approx(stripes * threads / (stripes + threads - 1))
    assert result.bound(stripes) == pytest.approx(min(stripes, threads))


def test_a_cancelled_run_stops_at_once_and_leaves_no_thread(monkeypatch) -> None:
    control, updates, compute = Control(), [], StripedMap.compute

    def cancelling(self, key, change, default):
        updates.append(key)
        if len(updates) == 3:
            control.cancel()
        return compute(self, key, change, default)

    monkeypatch.setattr(StripedMap, "compute", cancelling)
    with controlled(control), pytest.raises(Cancelled):
        count(threads=1)
    assert len(updates) == 3
    assert not [t for t in threading.enumerate() if t.name.startswith("worker")]


def test_values_outside_the_sliders_are_refused() -> None:
    with pytest.raises(ValueError, match="skew=3 is not allowed: give a number from 0 to 2"):
        count(skew=3)
