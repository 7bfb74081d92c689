"""Counters in one cache line count right; torch's setting and our cores are as before."""

import os
import threading

import pytest
import torch

from utils.core import machine, plots
from utils.core.experiment import Cancelled, Control, controlled
from utils.performance.synchronisation import sharing
from utils.performance.synchronisation.sharing import DISTANCES, MOST, bandwidth, false_sharing


@pytest.fixture(autouse=True)
def nothing_left():
    cores, threads = sharing._cores(), torch.get_num_threads()
    yield
    assert sharing._cores() == cores and torch.get_num_threads() == threads
    assert not [t for t in threading.enumerate() if t.name.startswith("worker")]


@pytest.mark.parametrize("threads", [1, 2, MOST])
def test_every_counter_is_right(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "PIECES", 10)
    result = false_sharing(threads=threads)
    assert result.wrong == 0 and result.threads == threads
    assert tuple(result.together) == DISTANCES
    assert plots.png(sharing.plot_false_sharing(result)).startswith(b"\x89PNG")


def test_a_wrong_counter_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads at distance 0 share one counter: whatever it ends at, it isn't right."""
    monkeypatch.setattr(sharing, "PIECES", 2)
    monkeypatch.setattr(sharing, "DISTANCES", (0, 8))
    assert false_sharing(threads=2).wrong > 0


def test_counters_are_where_they_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one begins a line, and the others follow at the distance."""
    seen: list[tuple[int, list[int]]] = []

    def count(pool: object, cells: torch.Tensor, where: list[int]) -> float:
        seen.append((cells.data_ptr() + 8 * where[0], where))
        for cell in where:
            cells[cell] = sharing.PIECE * sharing.PIECES
        return 1.0

    monkeypatch.setattr(sharing, "_count", count)
    false_sharing(threads=2)
    pairs = [where for _, where in seen if len(where) == 2]
    assert {8 * (b - a) for a, b in pairs} == set(DISTANCES)
    assert all(address % DISTANCES[-1] == 0 for address, _ in seen)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cannot pin here")
def test_threads_are_spread_over_the_cores() -> None:
    cores, seen = sharing._cores(), []

    def where(number: int) -> None:
        sharing._keep_to(cores, number)
        seen.append(os.sched_getaffinity(0))

    for number in range(2 * len(cores)):
        thread = threading.Thread(target=where, args=(number,))
        thread.start()
        thread.join()
    assert seen == [{core} for core in cores] * 2


@pytest.mark.parametrize("megabytes", [1, 64])
def test_bandwidth(megabytes: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "SECONDS", 0.02)
    result = bandwidth(megabytes=megabytes)
    assert result.threads[0] == 1 and result.threads[-1] == machine.cores()
    for work in ("stream", "multiply"):
        assert len(result.rates[work]) == len(result.threads) and min(result.rates[work]) > 0
        assert result.speedup(work)[0] == 1
    assert plots.png(sharing.plot_bandwidth(result)).startswith(b"\x89PNG")


@pytest.mark.parametrize("run", [false_sharing, bandwidth])
def test_cancel(run: object) -> None:
    control = Control()
    control.cancel()
    with controlled(control), pytest.raises(Cancelled):
        run()  # type: ignore[operator]


def test_values_outside_the_sliders_are_refused() -> None:
    with pytest.raises(ValueError, match="threads=0"):
        false_sharing(threads=0)
    with pytest.raises(ValueError, match="megabytes=2"):
        bandwidth(megabytes=2)  # type: ignore[arg-type]
