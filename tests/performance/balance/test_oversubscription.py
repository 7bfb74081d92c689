"""Every split is measured with as many torch threads as it says, and the setting comes back."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from utils.core import plots
from utils.core.experiment import Cancelled, Control, controlled
from utils.performance.balance import oversubscription
from utils.performance.balance.oversubscription import COUNTS, Cell, Grid, split_cores


def _numbers() -> tuple[int, int]:
    """Torch's number of threads here, and in a new thread: that of the whole process."""
    with ThreadPoolExecutor(1) as pool:
        return torch.get_num_threads(), pool.submit(torch.get_num_threads).result(10)


@pytest.fixture(autouse=True)
def nothing_left():
    before = _numbers()
    yield
    assert _numbers() == before
    assert not [t for t in threading.enumerate() if t.name.startswith("worker")]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oversubscription, "SECONDS", 0.01)


@pytest.mark.parametrize("size", [64, 256])
def test_every_split_is_measured(size: int, quick: None) -> None:
    result = split_cores(size=size)
    assert set(result.cells) == {(p, t) for p in COUNTS for t in COUNTS}
    assert all(cell.rate > 0 for cell in result.cells.values())
    assert result.cells[result.best].rate == max(cell.rate for cell in result.cells.values())
    assert plots.png(oversubscription.plot(result)).startswith(b"\x89PNG")


@pytest.mark.parametrize(("python", "inside"), [(1, 1), (2, 1), (1, 2), (2, 4)])
def test_each_python_thread_has_its_torch_threads(
    python: int, inside: int, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    seen: dict[str, int] = {}
    relu, set_number = torch.relu, torch.set_num_threads
    said: dict[str, int] = {}

    def watched(batch: torch.Tensor) -> torch.Tensor:
        seen[threading.current_thread().name] = torch.get_num_threads()
        return relu(batch)

    def watched_set(number: int) -> None:
        said[threading.current_thread().name] = number
        set_number(number)

    monkeypatch.setattr(torch, "relu", watched)
    monkeypatch.setattr(torch, "set_num_threads", watched_set)
    monkeypatch.setattr(oversubscription, "SECONDS", 0.1)
    oversubscription._measure(torch.ones(64, 64), python, inside)
    workers = {f"worker {number + 1}": inside for number in range(python)}
    assert seen == workers
    # Nothing shows whether a product before the first question obeys; so each must have said it.
    assert said.items() >= workers.items()


def test_where_nobody_counts_switches(monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    monkeypatch.setattr(oversubscription.machine, "switches", lambda: None)
    result = split_cores(size=64)
    assert {cell.switches for cell in result.cells.values()} == {None}
    assert plots.png(oversubscription.plot(result)).startswith(b"\x89PNG")


def test_the_median_and_the_best_by_hand() -> None:
    cells = [Cell(1.0, 5.0), Cell(9.0, None), Cell(2.0, 7.0)]
    assert oversubscription._median(cells) == Cell(2.0, 6.0)
    assert oversubscription._median([Cell(1.0, None)]) == Cell(1.0, None)
    grid = Grid(64, 2, {(1, 1): Cell(3.0, None), (1, 2): Cell(4.0, None), (2, 1): Cell(2.0, None)})
    assert grid.best == (1, 2)


def test_cancel(quick: None) -> None:
    control = Control()
    timer = threading.Timer(0.1, control.cancel)
    timer.start()
    with controlled(control), pytest.raises(Cancelled):
        for _ in range(50):
            split_cores()
    timer.join()


def test_values_outside_the_sliders_are_refused() -> None:
    with pytest.raises(ValueError, match="size=63"):
        split_cores(size=63)
