"""One at a time, whatever the sliders say; the pictures' numbers are those of the trace."""

import threading

import pytest

from utils.core import plots
from utils.core.experiment import Cancelled, Control, controlled
from utils.core.trace import Span, Trace
from utils.threads.primitives import contention
from utils.threads.primitives.contention import ROUNDS, Contention, contend


@pytest.mark.parametrize(("workers", "outside"), [(1, 0.5), (3, 0.5), (2, 0)])
def test_nobody_is_inside_together(workers: int, outside: float) -> None:
    result = contend(workers=workers, held_ms=1, outside=outside)
    holds = result.trace.select(category="hold").spans
    assert len(holds) == result.acquired == workers * ROUNDS
    assert all(a.end <= b.start for a, b in zip(holds, holds[1:], strict=False))
    assert len(result.trace.select(category="lock")) == result.contended
    assert result.trace.total("lock") == pytest.approx(result.waited, abs=1e-2)
    if workers == 1:
        assert result.contended == 0 and result.waited == 0
    assert plots.png(contention.plot(result)).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("workers", "outside", "expected"),
    [(1, 0.5, 1), (4, 0.5, 2), (4, 0, 1), (4, 0.75, 4), (8, 0.75, 4), (2, 0.9, 2)],
)
def test_the_bottleneck_s_bound(workers: int, outside: float, expected: float) -> None:
    assert Contention(workers, 0.005, outside, Trace(), 0, 0, 0.0).expected == pytest.approx(
        expected
    )


def test_the_speed_up_by_hand() -> None:
    """Two workers, 8 rounds of 10 ms each, in 100 ms."""
    trace = Trace([Span("worker 1", "hold", "mutex", 0, 100_000_000)])
    result = Contention(2, 0.005, 0.5, trace, 16, 0, 0.0)
    assert result.round == pytest.approx(0.01) and result.speedup == pytest.approx(1.6)


def test_a_cancelled_run_leaves_no_thread() -> None:
    control = Control()
    control.cancel()
    with controlled(control), pytest.raises(Cancelled):
        contend()
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("worker")]


def test_values_outside_the_sliders_are_refused() -> None:
    with pytest.raises(ValueError, match="outside=1"):
        contend(outside=1)
