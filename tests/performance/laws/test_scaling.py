"""What is set is what the law says; the serial part is serial; nothing is left behind."""

import statistics
import threading

import pytest

from utils.core import plots
from utils.core.experiment import Cancelled, Control, controlled
from utils.core.trace import Trace
from utils.performance.laws import scaling
from utils.performance.laws.formulas import gustafson, usl
from utils.performance.laws.scaling import ROUNDS, SHOWN, Scaling, scale


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "ROUND", 0.003)


def made(seconds: dict[int, tuple[float, ...]], **given) -> Scaling:
    settings = {"serial": 0.3, "exchange": 0.0, "barrier": True, "grows": False} | given
    return Scaling(resource="waiting", seconds=seconds, cores=2, trace=Trace(), **settings)


@pytest.mark.parametrize("workers", [1, 2, 5, 64])
@pytest.mark.parametrize("exchange", [0.0, 0.02])
def test_the_rounds_obey_the_laws_by_construction(workers: int, exchange: float) -> None:
    assert made({}, exchange=exchange).expected(workers) == pytest.approx(
        usl(workers, 0.3, exchange)
    )
    assert made({}, grows=True).expected(workers) == pytest.approx(gustafson(workers, 0.3))


def test_without_a_barrier_the_mutex_alone_is_the_limit() -> None:
    free = made({}, barrier=False)
    assert [free.expected(n) for n in (1, 2, 8)] == pytest.approx([1, 2, 1 / 0.3])
    assert made({}, barrier=False, serial=0.0).expected(8) == 8


def test_speed_up_by_hand() -> None:
    times = {1: (2.0, 2.2, 1.8), 4: (1.0, 0.8, 1.6)}
    assert made(times).measured(4) == pytest.approx((2, 2.5, 1.25))
    assert made(times, grows=True).measured(4) == pytest.approx((6.2, 7.75, 3.875))
    assert statistics.median(made(times).measured(1)) == 1


def test_the_fit_finds_what_was_set() -> None:
    times = {n: (1 / usl(n, 0.1, 0.02),) * 3 for n in (1, 2, 4, 8)}
    found = made(times, serial=0.1, exchange=0.02).fit
    assert found is not None and found.contention.value == pytest.approx(0.1, abs=1e-5)
    assert found.coherence.value == pytest.approx(0.02, abs=1e-6)
    assert made(times, grows=True).fit is None


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"exchange": 0.05},
        {"serial": 0.0},
        {"barrier": False},
        {"grows": True},
        {"resource": "cores"},
    ],
)
def test_the_parts_happen_as_told(given: dict) -> None:
    result = scale(**given)
    assert {1, 2, 3, 4, 6, 8} <= set(result.seconds)
    assert all(t > 0 for times in result.seconds.values() for t in times)
    inside = result.trace.select(category="serial").spans
    assert len(inside) == (SHOWN * ROUNDS if result.serial else 0)
    assert all(a.end <= b.start for a, b in zip(inside, inside[1:], strict=False))
    assert len(result.trace.select(category="compute")) == SHOWN * ROUNDS
    read = len(result.trace.select(category="communicate"))
    assert read == (SHOWN * ROUNDS if result.exchange else 0)
    assert plots.png(scaling.plot(result)).startswith(b"\x89PNG")


@pytest.mark.parametrize("grows", [False, True])
def test_all_the_work_is_done_and_no_more(grows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(scaling, "_hashing", lambda: asked.append)
    result = scale(serial=0.25, exchange=0.1, resource="cores", grows=grows)
    rounds = sum(
        0.25 + 0.75 * (n if grows else 1) + 0.1 * n * (n - 1) for n in result.seconds
    )  # of one worker's time
    assert sum(asked) == pytest.approx(rounds * scaling.ROUND * scaling.ROUNDS * scaling.REPEATS)


def test_nobody_is_a_round_ahead_of_the_others() -> None:
    """With a barrier all divided parts of a round end before one of the next begins."""
    parts = scale().trace.select(category="compute").spans
    for round_ in range(ROUNDS - 1):
        this, following = parts[round_ * SHOWN :][:SHOWN], parts[(round_ + 1) * SHOWN :][:SHOWN]
        assert len({span.lane for span in this}) == SHOWN
        assert max(span.end for span in this) <= min(span.start for span in following)


def test_a_cancelled_run_leaves_no_thread() -> None:
    control = Control()
    threading.Timer(0.05, control.cancel).start()
    with controlled(control), pytest.raises(Cancelled):
        for _ in range(1000):
            scale()
    assert not [t for t in threading.enumerate() if t.name.startswith("worker")]


def test_values_outside_the_sliders_are_refused() -> None:
    with pytest.raises(ValueError, match="serial=1"):
        scale(serial=1)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("barrier", [True, False])
def test_a_worker_that_fails_lets_the_others_go(barrier: bool, monkeypatch) -> None:
    """They stand at a barrier, and would wait for it until the deadline."""

    def fail(seconds: float) -> None:
        if threading.current_thread().name == "worker 2":
            raise LookupError("gone")

    monkeypatch.setattr(scaling.time, "sleep", fail)
    with pytest.raises((LookupError, threading.BrokenBarrierError)):
        scale(barrier=barrier)
    assert not [t for t in threading.enumerate() if t.name.startswith("worker")]
