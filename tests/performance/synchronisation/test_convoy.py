"""The hand-over lock is a lock, and a fair one; both experiments count what they recorded."""

import itertools
import sys
import threading
import time
import types

import pytest

from utils.core import machine, plots
from utils.core.experiment import Cancelled, Control, controlled
from utils.core.trace import Span, Trace
from utils.performance.synchronisation import convoy
from utils.performance.synchronisation.convoy import (
    KINDS,
    NAPS,
    Convoy,
    HandOverLock,
    share_gil,
    stop_one,
)
from utils.threads import schedules
from utils.threads.bugs import together


def two_add() -> None:
    lock, number = HandOverLock(), 0

    def add() -> None:
        nonlocal number
        with lock:
            seen = number
            number = seen + 1

    together(add, add)
    assert number == 2 and not lock._held and not lock._line


def explored() -> schedules.Report:
    return schedules.check(two_add, seconds=60, random=0)


def test_no_schedule_breaks_the_hand_over_lock() -> None:
    report = explored()
    assert report.verdict == "proved", report


def test_setting_it_free_as_well_as_handing_it_on_would_be_found(monkeypatch) -> None:
    source = "def leave(self, *error):\n    self._held = False\n"
    names: dict = {}
    exec(compile(source, convoy.__file__, "exec"), vars(convoy), names)
    monkeypatch.setattr(HandOverLock, "__exit__", names["leave"])
    assert explored().verdict == "failed"


def test_the_longest_waiter_is_next() -> None:
    lock, order = HandOverLock(), []

    def come(number: int) -> None:
        with lock:
            order.append(number)

    with lock:
        threads = [threading.Thread(target=come, args=(number,)) for number in range(5)]
        for number, thread in enumerate(threads, start=1):
            thread.start()
            deadline = time.monotonic() + 10
            while len(lock._line) < number and time.monotonic() < deadline:
                time.sleep(0.001)
    for thread in threads:
        thread.join(10)
    assert order == [0, 1, 2, 3, 4]


def test_nobody_is_inside_together_and_one_is_stopped(monkeypatch) -> None:
    stops = []

    def stop(seconds: float) -> None:
        stops.append(seconds)
        time.sleep(seconds)

    monkeypatch.setattr(convoy, "time", types.SimpleNamespace(sleep=stop))
    result = stop_one(3)
    assert stops == [convoy.STALL] * len(KINDS), "once each"
    assert set(result.trace) == set(KINDS)
    for kind, trace in result.trace.items():
        holds = trace.select(category="hold").spans
        assert all(a.end <= b.start for a, b in itertools.pairwise(holds))
        first, last = result.stall[kind]
        assert (last - first) / 1e9 >= convoy.STALL
        assert sum(s.start <= first and last <= s.end for s in holds) == 1
        assert 0 <= result.waited(kind, after=True) <= 1
    assert plots.png(convoy.plot(result)).startswith(b"\x89PNG")


def test_shares_are_counted_on_each_side_of_the_stall() -> None:
    spans = [Span("worker 1", "hold", "inside", at, at + 1) for at in (1, 3, 5, 7, 31, 33)]
    spans += [Span("worker 2", "lock", "hot", at, at + 1) for at in (2, 32)]
    spans += [Span("worker 2", "hold", "inside", 9, 21), Span("worker 1", "lock", "hot", 12, 21)]
    result = Convoy(2, {"sets free": Trace(spans)}, {"sets free": (10, 20)})
    assert result.waited("sets free", after=False) == pytest.approx(1 / 4)
    assert result.waited("sets free", after=True) == pytest.approx(1 / 2)


def test_naps_and_delays() -> None:
    before = sys.getswitchinterval()
    result = share_gil(2.0)
    assert sys.getswitchinterval() == before
    assert (
        sorted(result.naps) == [0.001, 0.002, 0.005, 0.01, 0.02] and result.interval in result.naps
    )
    for naps in (*result.naps.values(), result.alone):
        assert len(naps.select(category="sleep")) == len(naps.select(category="gil")) == NAPS
        assert all(a.end <= b.start for a, b in itertools.pairwise(naps.spans))
    assert result.expected(0.005) == (0.005 if machine.gil() else 0)
    assert plots.png(convoy.plot_delays(result)).startswith(b"\x89PNG")


@pytest.mark.parametrize("run", [stop_one, share_gil])
def test_a_cancelled_run_leaves_nothing(run) -> None:
    before, control = sys.getswitchinterval(), Control()
    threading.Timer(0.1, control.cancel).start()
    with controlled(control), pytest.raises(Cancelled):
        run()
    assert not [t for t in threading.enumerate() if t.name.startswith("worker")]
    assert sys.getswitchinterval() == before


def test_values_outside_the_sliders_are_refused() -> None:
    with pytest.raises(ValueError, match="milliseconds=0"):
        share_gil(0)
    with pytest.raises(ValueError, match="threads=1"):
        stop_one(1)
