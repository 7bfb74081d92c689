"""The climber finds the left edge of the plateau, holds it, and notices when the work changes."""

import random
import threading
from collections.abc import Callable

import pytest

from utils.core import plots
from utils.core.experiment import Cancelled, Control, controlled
from utils.performance.balance import sizing
from utils.performance.balance.sizing import (
    MOST,
    SAMPLES,
    adapt,
    bound,
    climb,
    real,
    rule,
    try_sizes,
)


def _walk(curve: Callable[[int], float], samples: int, low: int = 1, high: int = 64) -> list[int]:
    """The sizes a climber uses while throughput is `curve(size)`."""
    climber = climb(low, high)
    sizes = [next(climber)]
    for _ in range(samples - 1):
        sizes.append(climber.send(curve(sizes[-1])))
    return sizes


@pytest.mark.parametrize(
    ("cores", "wait", "compute", "workers"),
    [(2, 0, 1, 2), (2, 1, 1, 4), (4, 0.006, 0.002, 16), (1, 0, 5, 1)],
)
def test_the_rule_is_the_corner_of_the_bound(
    cores: int, wait: float, compute: float, workers: int
) -> None:
    assert rule(cores, wait, compute) == pytest.approx(workers)
    assert bound(workers, cores, wait, compute) == pytest.approx(cores / compute)
    assert bound(2 * workers, cores, wait, compute) == pytest.approx(cores / compute)
    assert bound(workers - 1, cores, wait, compute) < cores / compute


@pytest.mark.parametrize("edge", [1, 2, 3, 5, 6, 8, 13, 21, 40, 64])
def test_a_plateau_ends_at_its_left_edge(edge: int) -> None:
    sizes = _walk(lambda size: min(size, edge), samples=60)
    assert len({*sizes[-20:]}) == 1, "it has not settled"
    assert 0.85 * edge <= sizes[-1] <= 1.15 * edge
    assert max(sizes) <= 4 * edge, "it doubles on where that has stopped to pay"


@pytest.mark.parametrize("peak", [1, 4, 10, 30])
def test_a_peak_is_found(peak: int) -> None:
    """Above the peak every further worker costs throughput."""
    sizes = _walk(lambda size: min(size, peak) / (1 + 0.1 * max(0, size - peak)), samples=60)
    assert len({*sizes[-20:]}) == 1
    assert 0.8 * peak <= sizes[-1] <= 1.2 * peak


@pytest.mark.parametrize("seed", range(20))
def test_noise_moves_nothing(seed: int) -> None:
    chance = random.Random(seed)
    sizes = _walk(lambda size: min(size, 12) * chance.uniform(0.96, 1.04), samples=80)
    assert len({*sizes[-40:]}) == 1
    assert 9 <= sizes[-1] <= 16


@pytest.mark.parametrize(
    ("before", "after"),
    [((1, 1), (11, 1)), ((2, 1), (5, 1)), ((2, 1), (2, 4)), ((5, 1), (8, 8))],
)
def test_a_change_of_the_work_is_noticed(
    before: tuple[float, float], after: tuple[float, float]
) -> None:
    """In mid-run the tasks' (wait, compute) change, and with them the throughput."""
    calls = iter(range(1000))
    sizes = _walk(
        lambda size: bound(size, 2, *(before if next(calls) < 50 else after)), samples=120
    )
    for size, tasks in ((sizes[49], before), (sizes[-1], after)):
        assert 0.85 * rule(2, *tasks) <= size <= 1.15 * rule(2, *tasks)
    assert len({*sizes[-20:]}) == 1


def test_a_pool_that_became_too_large_stays_so() -> None:
    """Its throughput is what it was, and throughput is all that the climber sees."""
    calls = iter(range(1000))
    sizes = _walk(lambda size: bound(size, 2, 11 if next(calls) < 50 else 1, 1), samples=120)
    assert {*sizes[49:]} == {sizes[49]} and sizes[49] > 2 * rule(2, 1, 1)


def test_one_odd_sample_is_no_change() -> None:
    calls = iter(range(1000))
    sizes = _walk(lambda size: 0.1 if next(calls) == 60 else min(size, 4), samples=80)
    assert {*sizes[40:]} == {4}


def test_it_stays_within_its_limits() -> None:
    chance = random.Random(1)
    for low, high in ((1, 1), (1, 7), (3, 5), (8, 9)):
        for curve in (lambda size: size, lambda size: 1 / size, lambda _: chance.random()):
            assert all(low <= size <= high for size in _walk(curve, 200, low, high))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [((0, 4), "low=0"), ((5, 4), "high=4"), ((1, 4, 0), "margin=0"), ((1, 4, 1), "margin=1")],
)
def test_bad_limits_are_refused(arguments: tuple[float, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        next(climb(*arguments))  # type: ignore[arg-type]


def test_real_threads_obey_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more at work than the size, and all that are allowed."""
    monkeypatch.setattr(sizing, "SECONDS", 0.1)
    inside, seen, lock = 0, list[int](), threading.Lock()
    sleep = sizing.time.sleep

    def watched(seconds: float) -> None:
        nonlocal inside
        if not threading.current_thread().name.startswith("worker"):
            return sleep(seconds)
        with lock:
            inside += 1
            seen.append(inside)
        sleep(0.005)
        with lock:
            inside -= 1

    monkeypatch.setattr(sizing.time, "sleep", watched)
    with real(8, 0.0001) as throughput:
        for size in (3, 8, 1):
            rate = throughput(size, 0.02)
            assert rate > 0 and max(seen) <= size
            while inside and size > 1:  # whoever is at work when the size falls, finishes
                throughput(0, 0.02)
            seen.clear()
    assert not [t for t in threading.enumerate() if t.name.startswith("worker")]


def test_all_sizes_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "SECONDS", 0.03)
    result = try_sizes(wait_ms=30, compute_ms=1)
    assert [*result.rates][0] == 1 and [*result.rates][-1] == MOST
    assert min(result.rates.values()) >= 0 and max(result.rates.values()) > 0
    for shown in (result, try_sizes(wait_ms=0, compute_ms=1)):
        assert plots.png(sizing.plot_sizes(shown)).startswith(b"\x89PNG")


@pytest.mark.parametrize("clock", ["virtual", "real"])
def test_both_clocks_use_the_same_policy(clock: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the rates a run has seen, the policy proposes the sizes that the run has used."""
    monkeypatch.setattr(sizing, "SECONDS", 0.02)
    result = adapt(clock=clock, wait_ms=6, later_ms=2)  # type: ignore[arg-type]
    assert len(result.sizes) == len(result.rates) == len(result.rules) == SAMPLES
    again = climb(1, MOST)
    sizes = [next(again), *(again.send(rate) for rate in result.rates)]
    assert tuple(sizes[:-1]) == result.sizes
    assert plots.png(sizing.plot_adapt(result)).startswith(b"\x89PNG")


def test_the_virtual_clock_ends_near_the_rule() -> None:
    result = adapt(clock="virtual", wait_ms=0, later_ms=6, compute_ms=2)
    assert abs(result.sizes[SAMPLES // 2 - 1] - result.rules[0]) <= 1 + 0.15 * result.rules[0]
    assert abs(result.sizes[-1] - result.rules[-1]) <= 1 + 0.15 * result.rules[-1]


@pytest.mark.timeout(60)  # they are released, they don't wait for a deadline
@pytest.mark.parametrize("run", [try_sizes, lambda: adapt(clock="real")])
def test_cancel_in_the_middle_leaves_no_thread(
    run: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizing, "DEADLINE", 250)
    control = Control()
    timer = threading.Timer(0.3, control.cancel)
    timer.start()
    with controlled(control), pytest.raises(Cancelled):
        run()
    timer.join()
    assert not [t for t in threading.enumerate() if t.name.startswith("worker")]


def test_values_outside_the_sliders_are_refused() -> None:
    with pytest.raises(ValueError, match="compute_ms=0"):
        try_sizes(compute_ms=0)
    with pytest.raises(ValueError, match="clock='wall'"):
        adapt(clock="wall")  # type: ignore[arg-type]
