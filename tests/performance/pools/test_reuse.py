"""Every task is done, by as many threads as the way says; nothing is left behind."""

import threading

import pytest

from utils.core import machine, plots
from utils.core.experiment import Cancelled, Control, controlled
from utils.performance.pools import backlog as backlog_module
from utils.performance.pools import reuse as reuse_module
from utils.performance.pools.backlog import TASKS, backlog
from utils.performance.pools.reuse import reuse


@pytest.mark.parametrize(("task_us", "workers"), [(0, 1), (20, 4), (10, 16)])
def test_who_did_the_tasks(task_us: int, workers: int) -> None:
    result = reuse(task_us=task_us, workers=workers)
    each, pool, one = result.ways.values()
    assert each.threads == reuse_module.TASKS and one.threads == 1
    assert 1 <= pool.threads <= workers
    for way in result.ways.values():
        assert way.rate == pytest.approx(reuse_module.TASKS / way.seconds)
        assert (way.switches is None) == (machine.switches() is None)
    assert plots.png(reuse_module.plot(result)).startswith(b"\x89PNG")


def test_where_switches_are_not_counted(monkeypatch) -> None:
    monkeypatch.setattr(machine, "switches", lambda: None)
    result = reuse(task_us=0, workers=2)
    assert all(way.switches is None for way in result.ways.values())
    assert plots.png(reuse_module.plot(result)).startswith(b"\x89PNG")


@pytest.mark.parametrize("bound", [1, 8])
def test_the_backlog_keeps_to_its_bound(bound: int) -> None:
    free, bounded = backlog(max_pending=bound)
    assert bounded.longest <= bound
    for flow in (free, bounded):
        assert sorted(flow.done) == list(range(TASKS))
        assert all(length >= 0 for _, length in flow.lengths)
    assert plots.png(backlog_module.plot((free, bounded))).startswith(b"\x89PNG")


@pytest.mark.parametrize("run", [reuse, backlog])
def test_a_cancelled_run_leaves_no_thread(run) -> None:
    class Soon(Control):
        """Is cancelled when it has been asked a few times."""

        asked = 0

        @property
        def cancelled(self) -> bool:
            self.asked += 1
            return self.asked > 5

    before = set(threading.enumerate())
    with controlled(Soon()), pytest.raises(Cancelled):
        run()
    assert set(threading.enumerate()) <= before


def test_values_outside_the_sliders_are_refused() -> None:
    with pytest.raises(ValueError, match="workers=0"):
        reuse(workers=0)
    with pytest.raises(ValueError, match="max_pending=0"):
        backlog(max_pending=0)
