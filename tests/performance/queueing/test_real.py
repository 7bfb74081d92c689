"""Real threads do what the virtual clock says, but for the time it takes them; nothing is left."""

import threading
import time
from itertools import pairwise

import pytest

from utils.core import plots
from utils.core.experiment import Cancelled, Control, controlled
from utils.performance.queueing import real, waiting
from utils.performance.queueing.real import serve
from utils.performance.queueing.requests import SECOND, Job, poisson
from utils.performance.queueing.simulate import simulate
from utils.performance.queueing.waiting import wait

MS = SECOND // 1000


def left_behind() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("server")]


@pytest.mark.parametrize("servers", [1, 3])
def test_both_clocks_agree(servers: int) -> None:
    """The same requests in the same order; no thread is faster than the virtual clock."""
    load = poisson(150 * servers, 0.005, 80, seed=3)
    virtual, threads = simulate(load, servers), serve(load, servers)
    assert [r.due for r in threads.requests] == [r.due for r in virtual.requests]
    assert threads.servers == servers and len(threads.requests) == len(load)
    for job, request in zip(load, threads.requests, strict=True):
        assert request.sent == job.due <= request.start
        assert (
            request.end - request.start >= job.service - MS
        )  # a sleep ends within the clock's tick
    for server in range(servers):  # first come, first served, one at a time
        own = [r for r in threads.requests if r.server == server]
        assert all(a.end <= b.start for a, b in pairwise(own))
    assert threads.area == sum(r.end - r.sent for r in threads.requests)
    assert threads.mean_number == pytest.approx(threads.arrival_rate * threads.mean_response)
    assert not left_behind()


def test_a_stall_reaches_those_who_come_during_it() -> None:
    load = [Job(i * 5 * MS, (100 if i == 3 else 1) * MS) for i in range(20)]
    late = [r for r in serve(load).requests if r.start - r.sent > 20 * MS]
    assert len(late) >= 10  # a load generator that waits would have sent none of them


def test_any_work_will_do() -> None:
    asked: list[float] = []
    run = serve([Job(0, MS), Job(MS, 2 * MS)], work=asked.append)
    assert asked == [0.001, 0.002] and len(run.requests) == 2


def test_a_server_that_fails_is_heard_of_and_nothing_is_left() -> None:
    def work(_: float) -> None:
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        serve([Job(i * MS, MS) for i in range(10)], 2, work=work)
    assert not left_behind()


@pytest.mark.parametrize("spacing", [0, 20, 200])
def test_a_cancelled_run_drops_what_is_queued_and_what_would_come(spacing: int) -> None:
    control, begun = Control(), []

    def work(seconds: float) -> None:
        begun.append(seconds)
        control.cancel()
        time.sleep(seconds)

    with controlled(control), pytest.raises(Cancelled):
        serve([Job(i * spacing * MS, 2 * MS) for i in range(2000)], 1, work=work)
    assert len(begun) < 2000 and not left_behind()


def test_an_empty_load_is_refused() -> None:
    with pytest.raises(ValueError, match="load is empty"):
        real.serve([])


@pytest.mark.parametrize(
    ("busy", "servers", "service"),
    [(0.8, 1, "exponential"), (0.1, 2, "constant"), (0.95, 8, "heavy tail")],
)
def test_the_experiment(
    busy: float, servers: int, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "LENGTH", 0.2)
    monkeypatch.setattr(waiting, "REQUESTS", 200)
    result = wait(busy=busy, servers=servers, service=service)
    assert [r.due for r in result.virtual.requests] == [r.due for r in result.real.requests]
    assert len(result.simulated) == len(waiting.BUSY)
    assert result.theory(busy).utilisation == pytest.approx(busy)
    assert plots.png(waiting.plot(result)).startswith(b"\x89PNG")


def test_values_outside_the_sliders_are_refused() -> None:
    with pytest.raises(ValueError, match="busy=1"):
        wait(busy=1)


@pytest.mark.timeout(30)
def test_a_server_that_fails_ends_the_run() -> None:
    """Not when all requests are sent: the last one is due in a week."""

    def work(seconds: float) -> None:
        raise LookupError("no such answer")

    week = 7 * 24 * 3600 * SECOND
    with pytest.raises(LookupError, match="no such answer"):
        serve([Job(0, MS), Job(week, MS)], work=work)
    assert left_behind() == []
