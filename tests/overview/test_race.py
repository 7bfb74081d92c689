"""Every task is done once, by as many workers as were asked for, and nobody is left behind."""

import multiprocessing
import sys
import threading
from typing import get_args

import pytest

from utils.core import machine, plots
from utils.core.experiment import Cancelled, Control, controlled
from utils.overview import work as jobs
from utils.overview.race import (
    TASKS,
    Kind,
    Vehicle,
    expected_speedup,
    plot,
    plot_table,
    race,
    table,
)


@pytest.fixture(scope="module")
def races() -> dict:
    return table(workers=2)


def test_every_task_is_done_once_and_no_worker_does_two_at_a_time(races) -> None:
    for result in races.values():
        names = [f"task {number}" for number in range(1, TASKS + 1)]
        assert [span.name for span in result.alone.spans] == names
        done = {span.name: span.args for span in result.together.spans}
        assert done == {span.name: span.args for span in result.alone.spans}  # same results
        assert sorted(done) == sorted(names) and len(result.together) == TASKS
        assert 1 <= len(result.together.lanes) <= 2
        if result.vehicle == "asyncio" and result.work == "waiting":
            continue
        for lane in result.together.lanes:
            spans = result.together.select(lane=lane).spans
            assert all(a.end <= b.start for a, b in zip(spans, spans[1:], strict=False))


def test_processes_are_processes_and_threads_are_threads(races) -> None:
    assert {lane.split()[0] for lane in races["python", "threads"].together.lanes} == {"thread"}
    assert races["waiting", "processes"].together.lanes == ("process 1", "process 2")


def test_coroutines_of_computing_work_never_overlap(races) -> None:
    """What makes asyncio useless for computing is not a timing: one thread does it all."""
    for work in ("python", "torch"):
        spans = races[work, "asyncio"].together.spans
        assert all(a.end <= b.start for a, b in zip(spans, spans[1:], strict=False))


def test_nothing_is_left_behind(races) -> None:
    assert multiprocessing.active_children() == []
    names = {thread.name.split("_")[0].split("-")[0] for thread in threading.enumerate()}
    assert not names & {"worker", "event", "core"}


@pytest.mark.parametrize("vehicle", get_args(Vehicle))
def test_cancel_ends_the_workers(vehicle: Vehicle) -> None:
    control = Control()
    with controlled(control), pytest.raises(Cancelled):
        threading.Timer(0.05, control.cancel).start()
        while True:
            race("waiting", vehicle, workers=2)
    assert multiprocessing.active_children() == []


def test_torch_threads_are_put_back() -> None:
    import torch

    before = torch.get_num_threads()
    race("torch", "threads", workers=2)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("work", "vehicle", "workers", "cores", "gil", "speedup"),
    [
        ("python", "threads", 4, 2, True, 1),
        ("python", "threads", 4, 2, False, 2),
        ("python", "processes", 4, 2, True, 2),
        ("python", "asyncio", 4, 2, False, 1),
        ("waiting", "threads", 4, 1, True, 4),
        ("waiting", "asyncio", 8, 1, True, 8),
        ("waiting", "threads", 3, 8, True, 8 / 3),  # eight tasks, three at a time: three rounds
        ("torch", "threads", 8, 6, True, 6),  # the system shares six cores among eight threads
        ("torch", "threads", 4, 3, True, 3),
        ("torch", "threads", 3, 2, True, 2),  # rounds of 3, 3 and 2
        ("torch", "threads", 8, 4, True, 4),
        ("torch", "asyncio", 8, 4, True, 1),
    ],
)
def test_theory(work, vehicle, workers, cores, gil, speedup) -> None:
    assert expected_speedup(work, vehicle, workers, cores, gil) == pytest.approx(speedup)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="platform: no affinity to set")
def test_one_core_is_one_core_and_waiting_still_overlaps(monkeypatch) -> None:
    sleep = jobs.waiting
    before, seen = machine.affinity(), []
    monkeypatch.setitem(jobs.KINDS, "waiting", lambda: seen.append(machine.affinity()) or sleep())
    result = race("waiting", "threads", workers=4, one_core=True)
    assert seen == [1] * (2 * TASKS) and machine.affinity() == before
    assert result.cores == 1
    # Not a timing: with four waiting at once, a task must begin before another one has ended.
    first, second = result.together.spans[:2]
    assert second.start < first.end


def test_pictures_of_all_races(races) -> None:
    for result in races.values():
        assert plots.png(plot(result)).startswith(b"\x89PNG")
    assert plots.png(plot_table(races)).startswith(b"\x89PNG")
    assert set(races) == {(w, v) for w in get_args(Kind) for v in get_args(Vehicle)}
