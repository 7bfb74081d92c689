"""The harness counts what it says, takes turns, and leaves the collector as it was."""

import gc

import pytest

from utils.core import bench
from utils.core.bench import Sample


def test_alternatives_take_turns_and_the_warm_up_is_not_counted() -> None:
    order: list[str] = []
    works = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    times = bench.compare(works, repeats=3, warmup=2)
    assert order == ["a", "b"] * 5
    assert {name: len(sample.values) for name, sample in times.items()} == {"a": 3, "b": 3}


def test_the_collector_is_off_during_a_run_and_back_after_a_failure() -> None:
    states: list[bool] = []

    def fail() -> None:
        states.append(gc.isenabled())
        raise RuntimeError

    with pytest.raises(RuntimeError):
        bench.measure(fail)
    assert states == [False] and gc.isenabled()


def test_median_spread_and_pairwise_ratio() -> None:
    slow, fast = Sample((2.0, 8.0, 6.0)), Sample((1.0, 2.0, 2.0))
    assert slow.median == 6 and slow.spread == (2, 8)
    assert bench.ratio(slow, fast).values == (2, 4, 3)
    assert str(bench.ratio(slow, fast)) == "3.00 × (2.00 × to 4.00 ×, n=3)"
    assert str(slow) == "6 s (2 s to 8 s, n=3)"


@pytest.mark.parametrize(
    ("value", "shown"), [(1.5, "1.5 s"), (0.0012, "1.2 ms"), (3e-6, "3 µs"), (2e-8, "20 ns")]
)
def test_seconds_are_shown_in_the_unit_that_fits(value: float, shown: str) -> None:
    assert bench.seconds(value) == shown


def test_bad_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="repeats=0"):
        bench.measure(lambda: None, repeats=0)
    with pytest.raises(ValueError, match="works is empty"):
        bench.compare({})
