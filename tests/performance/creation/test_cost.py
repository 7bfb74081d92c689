"""Every kind is really started, the arithmetic of a start's share holds, and nothing is left."""

import asyncio
import multiprocessing
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor

import pytest

from utils.core import plots
from utils.core.bench import Sample
from utils.core.experiment import Cancelled, Control, controlled
from utils.performance.creation import cost
from utils.performance.creation.cost import Costs


def test_each_kind_is_started_and_nothing_is_left() -> None:
    before = set(threading.enumerate())
    result = cost.start(count=50)
    assert set(threading.enumerate()) == before and not multiprocessing.active_children()
    assert list(result.each) == list(cost.COLORS)
    assert all(value > 0 for sample in result.each.values() for value in sample.values)
    assert plots.png(cost.plot(result)).startswith(b"\x89PNG")


def test_a_sample_is_of_one_start(monkeypatch) -> None:
    """400 starts took 2 s, one process took 3 s."""
    monkeypatch.setattr(
        cost.bench,
        "compare",
        lambda works: {kind: Sample((3.0 if kind == "process" else 2.0,)) for kind in works},
    )
    each = cost.start(count=400).each
    assert each["thread"].median == each["call"].median == 0.005
    assert each["process"].median == 3


def test_calls_and_threads_are_as_many_as_counted(monkeypatch) -> None:
    ran_on: list[int] = []
    monkeypatch.setattr(cost, "nothing", lambda: ran_on.append(threading.get_native_id()))
    cost.calls(4)
    assert ran_on == [threading.get_native_id()] * 4
    ran_on.clear()

    def slow() -> None:
        time.sleep(0.01)
        cost.nothing()

    cost.threads(5, slow)
    assert len(ran_on) == 5 and threading.get_native_id() not in ran_on
    ran_on.clear()
    with ThreadPoolExecutor(1) as pool:
        cost.round_trips(pool, 6)
    assert len(ran_on) == 6 and len(set(ran_on)) == 1 and threading.get_native_id() not in ran_on


def test_tasks_and_coroutines_are_as_many_as_counted(monkeypatch) -> None:
    ran: list[asyncio.Task | None] = []

    async def note() -> None:
        try:
            ran.append(asyncio.current_task())
        except RuntimeError:  # no loop runs
            ran.append(None)

    monkeypatch.setattr(cost, "nothing_async", note)
    cost.coroutines(4)
    assert ran == [None] * 4
    ran.clear()
    with ThreadPoolExecutor(1) as pool:  # a loop may run in this thread
        pool.submit(asyncio.run, cost.tasks(5)).result(10)
    assert len(set(ran)) == 5 and None not in ran


def test_work_for_is_the_inverse_of_share() -> None:
    """A start of 2 ms is 10 % of the whole before 18 ms of work, and 1 % before 198 ms."""
    result = Costs({"thread": Sample((0.001, 0.002, 0.1))})
    assert result.work_for("thread", 0.1) == pytest.approx(0.018)
    assert result.work_for("thread", 0.01) == pytest.approx(0.198)
    for share in (0.01, 0.1, 0.5):
        assert result.share("thread", result.work_for("thread", share)) == pytest.approx(share)
    for wrong in (0, 1, 10):
        with pytest.raises(ValueError, match=f"share={wrong} is not allowed: give a number betw"):
            result.work_for("thread", wrong)


def test_a_process_that_does_not_end_is_an_error_and_is_killed(monkeypatch) -> None:
    done: list[str] = []

    class Hangs:
        exitcode = None

        def __init__(self, target) -> None: ...

        def start(self) -> None:
            done.append("start")

        def join(self, timeout: float) -> None:
            done.append("join")

        def kill(self) -> None:
            done.append("kill")

    context = types.SimpleNamespace(Process=Hangs)
    monkeypatch.setattr(cost.multiprocessing, "get_context", lambda method: context)
    with pytest.raises(RuntimeError, match="exit code None"):
        cost.process()
    assert done == ["start", "join", "kill", "join"]


def test_a_cancelled_run_leaves_no_thread_and_no_loop(monkeypatch) -> None:
    closed = []

    class Noted(asyncio.Runner):
        def close(self) -> None:
            super().close()
            closed.append(self)

    monkeypatch.setattr(cost.asyncio, "Runner", Noted)
    before, control = set(threading.enumerate()), Control()
    monkeypatch.setattr(cost, "process", control.cancel)  # in the first turn
    with controlled(control), pytest.raises(Cancelled):
        cost.start(count=50)
    assert set(threading.enumerate()) == before and len(closed) == 1


def test_values_outside_the_slider_are_refused() -> None:
    with pytest.raises(ValueError, match="count=0 is not allowed: give a whole number from 50"):
        cost.start(count=0)
