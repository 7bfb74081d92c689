"""Every kind of lock gets its price, and the grids keep to what they count."""

import threading

import pytest

from utils.core import plots
from utils.core.experiment import Cancelled, Control, controlled
from utils.performance.synchronisation import lock_cost
from utils.performance.synchronisation.lock_cost import (
    HANDED,
    SIZES,
    THREADS,
    Contended,
    contend,
    price,
)


def test_every_kind_has_a_price() -> None:
    result = price(1000)
    assert {"an empty with", "a function call", "Lock", "RLock", "our Mutex", HANDED} <= set(
        result.seconds
    )
    assert all(result.of(kind) == sample.median for kind, sample in result.seconds.items())
    assert plots.png(lock_cost.plot_prices(result)).startswith(b"\x89PNG")


def test_each_hand_over_finds_the_lock_taken(monkeypatch) -> None:
    """So each of them blocks. The first acquire of a lock is made by its maker."""
    taken = []
    real = lock_cost.allocate_lock

    class Watched:
        def __init__(self) -> None:
            self._lock = real()

        def acquire(self, timeout: float = -1) -> bool:
            taken.append(timeout)
            return self._lock.acquire(timeout=timeout)

        def release(self) -> None:
            self._lock.release()

    monkeypatch.setattr(lock_cost, "allocate_lock", Watched)
    lock_cost._ping_pong(20)
    assert len(taken) == 22 and taken.count(-1) == 2


@pytest.mark.parametrize("share", [0, 0.5])
def test_the_grids(share: float, monkeypatch) -> None:
    monkeypatch.setattr(lock_cost, "CELL", 0.005)
    result = contend(share)
    assert len(result.speedup) == len(result.waits) == len(result.held) == len(SIZES)
    for rates, waits in zip(result.speedup, result.waits, strict=True):
        assert len(rates) == len(waits) == len(THREADS)
        assert rates[0] == 1 and waits[0] == 0, "one thread is compared with itself, never waits"
        assert all(rate > 0 for rate in rates) and all(0 <= wait <= 1 for wait in waits)
        if share == 0:
            assert set(waits) == {0}
    assert plots.png(lock_cost.plot(result)).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("share", "cores", "threads", "bound"),
    [(0.5, 8, 1, 1), (0.5, 8, 4, 2), (0.1, 4, 8, 4), (0.1, 64, 64, 10), (0, 4, 8, 4), (0, 4, 2, 2)],
)
def test_the_bound(share: float, cores: int, threads: int, bound: float) -> None:
    assert Contended(share, cores, (), (), ()).bound(threads) == pytest.approx(bound)


@pytest.mark.parametrize("run", [price, contend])
def test_a_cancelled_run_leaves_no_thread(run) -> None:
    control = Control()
    threading.Timer(0.2, control.cancel).start()
    with controlled(control), pytest.raises(Cancelled):
        while True:
            run()
    assert not [t for t in threading.enumerate() if t.name.startswith("worker")]


def test_a_share_outside_the_slider_is_refused() -> None:
    with pytest.raises(ValueError, match="share=1 is not allowed: give a number from 0 to 0.6"):
        contend(share=1)
