"""Turns are recorded as they were taken, and the interval comes back."""

import itertools
import sys

import pytest

from utils.core import machine, plots
from utils.core.experiment import Cancelled, Control, controlled
from utils.threads.life import switching
from utils.threads.life.switching import switch_interval, take_turns


def test_the_old_interval_comes_back_whatever_happens() -> None:
    before = sys.getswitchinterval()
    with pytest.raises(ZeroDivisionError), switch_interval(0.02):
        assert sys.getswitchinterval() == pytest.approx(0.02)
        raise ZeroDivisionError
    assert sys.getswitchinterval() == before
    take_turns(20, 3)
    assert sys.getswitchinterval() == before
    control = Control()
    control.cancel()
    with controlled(control), pytest.raises(Cancelled):
        take_turns()
    assert sys.getswitchinterval() == before


def test_turns_of_a_thread_do_not_overlap_and_with_a_gil_neither_do_those_of_two() -> None:
    result = take_turns(10)
    assert set(result.trace.lanes) == {"thread 1", "thread 2"}
    for lane in result.trace.lanes:
        own = result.trace.select(lane=lane).spans
        assert all(a.end <= b.start for a, b in itertools.pairwise(own))
    if machine.gil():
        pairs = list(itertools.pairwise(result.trace.spans))
        # Stays below a gap, such as the main thread's short look, are not seen: hence the margin.
        assert len(pairs) >= 2
        overlaps = sum(max(0, a.end - b.start) for a, b in pairs if a.lane != b.lane)
        assert overlaps <= 0.2 * (result.trace.end - result.trace.start)
    assert plots.png(switching.plot(result)).startswith(b"\x89PNG")


def test_a_sweep_tries_each_interval() -> None:
    results = switching.sweep((1.0, 30.0))
    assert [result.interval for result in results] == [0.001, 0.03]
    assert all(result.median > 0 for result in results)
    assert plots.png(switching.plot_sweep(results)).startswith(b"\x89PNG")


@pytest.mark.parametrize("interval", [0, -1, 51, float("nan")])
def test_a_bad_interval_is_named(interval) -> None:
    with pytest.raises(ValueError, match="milliseconds=.*give a number from 0.5 to 50"):
        take_turns(interval)
