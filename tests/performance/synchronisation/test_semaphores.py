"""All items arrive whatever the batch; a pool lends each semaphore to one thread at a time."""

import threading

import pytest

from utils.core import plots
from utils.core.experiment import Cancelled, Control, controlled
from utils.performance.synchronisation import semaphores
from utils.performance.synchronisation.semaphores import (
    BATCHES,
    ITEMS,
    Batch,
    Batches,
    SemaphorePool,
    batch,
    costs,
)


def test_costs() -> None:
    result = costs(repeats=3)
    assert len(result.samples) == 5
    for sample in result.samples.values():
        assert len(sample.values) == 3 and all(value > 0 for value in sample.values)
    assert plots.png(semaphores.plot_costs(result)).startswith(b"\x89PNG")


def test_a_pool_lends_each_semaphore_once() -> None:
    pool = SemaphorePool(2)
    first, second = pool.take(), pool.take()
    assert first is not second
    with pytest.raises(IndexError):
        pool.take()
    pool.give_back(second)
    assert pool.take() is second


@pytest.mark.parametrize("size", [1, 3, 256])
def test_all_items_arrive(size: int) -> None:
    result = batch(size=size)
    assert [run.size for run in result.runs] == sorted({*BATCHES, size})
    for run in result.runs:
        assert run.received == ITEMS
        assert run.permits == -(-ITEMS // run.size)
    assert plots.png(semaphores.plot_batch(result)).startswith(b"\x89PNG")


def test_the_expected_rate_by_hand() -> None:
    """a = 1 ms of an item, b = 9 ms of a permit: 10 ms alone, 1.9 ms in a batch of ten."""
    runs = (Batch(1, 100, 100, 1.0), Batch(10, 10, 100, 0.19))
    result = Batches(1, runs)
    assert result.expected_rate(1) == pytest.approx(100)
    assert result.expected_rate(10) == pytest.approx(100 / 0.19)
    assert result.expected_rate(3) == pytest.approx(1000 / 4)


@pytest.mark.parametrize("run", [costs, batch])
def test_a_cancelled_run_leaves_no_thread(run: object) -> None:
    control = Control()
    control.cancel()
    with controlled(control), pytest.raises(Cancelled):
        run()  # type: ignore[operator]
    assert not [t for t in threading.enumerate() if t.name.startswith("worker")]


def test_values_outside_the_sliders_are_refused() -> None:
    with pytest.raises(ValueError, match="size=257"):
        batch(size=257)
    with pytest.raises(ValueError, match="repeats=0"):
        costs(repeats=0)
