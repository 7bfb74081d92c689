"""The virtual clock: nobody overtakes, nobody idles beside a queue, L = λ W to the nanosecond."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.core.trace import validate_chrome
from utils.performance.queueing.requests import SECOND, Job, Run, merge, poisson
from utils.performance.queueing.simulate import separate, simulate
from utils.performance.queueing.theory import Steady

MS = SECOND // 1000
loads = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 100)), min_size=1, max_size=60).map(
    lambda rows: [Job(*row) for row in sorted(rows)]
)


def check(run: Run, load: list[Job]) -> None:
    """What is true of every run: complete, one at a time, and Little's law without a remainder."""
    assert sorted((r.due, r.end - r.start) for r in run.requests) == sorted(load)
    assert all(r.due <= r.sent <= r.start <= r.end for r in run.requests)
    for server in range(run.servers):
        own = sorted((r.start, r.end) for r in run.requests if r.server == server)
        assert all(a[1] <= b[0] for a, b in pairwise(own))
    assert run.area == sum(r.end - r.sent for r in run.requests)
    assert run.present[-1][1] == 0 and all(count >= 0 for _, count in run.present)


@given(loads, st.integers(1, 4), st.none() | st.integers(1, 5))
def test_every_run_is_complete_and_obeys_little_s_law(
    load: list[Job], servers: int, clients: int | None
) -> None:
    run = simulate(load, servers, clients=clients)
    check(run, load)
    starts = [r.start for r in run.requests]
    assert starts == sorted(starts)  # first come, first served
    if clients is not None:
        assert max(count for _, count in run.present) <= clients


@given(loads, st.integers(1, 4))
def test_nobody_waits_beside_an_idle_server(load: list[Job], servers: int) -> None:
    run = simulate(load, servers)
    for r in run.requests:
        if r.start > r.sent:
            busy = [o for o in run.requests if o.start <= r.sent < o.end and o is not r]
            begun = [o for o in run.requests if r.sent <= o.start < r.start]
            assert len(busy) + len(begun) >= servers
            assert any(o.end == r.start for o in run.requests)


@given(loads, st.integers(1, 4), st.integers(0, 5))
def test_separate_queues_serve_the_same_jobs(load: list[Job], servers: int, seed: int) -> None:
    check(separate(load, servers, seed=seed), load)


@given(loads)
def test_a_client_for_each_job_is_an_open_loop(load: list[Job]) -> None:
    assert simulate(load, 2, clients=len(load)) == simulate(load, 2)


def test_by_hand() -> None:
    """Three jobs of 4 at 0, 1 and 2: with one server they end at 4, 8 and 12."""
    load = [Job(0, 4 * SECOND), Job(SECOND, 4 * SECOND), Job(2 * SECOND, 4 * SECOND)]
    run = simulate(load)
    assert [r.end // SECOND for r in run.requests] == [4, 8, 12]
    assert run.seconds == 12 and run.arrival_rate == 0.25 and run.utilisation == 1
    assert run.mean_response == 7 and run.mean_wait == 3 and run.mean_number == 1.75
    assert run.response(50) == 7 and run.responses == [4, 7, 10]
    assert [r.end // SECOND for r in simulate(load, 2).requests] == [4, 5, 8]
    closed = simulate(load, clients=1)
    assert [r.sent // SECOND for r in closed.requests] == [0, 4, 8] and closed.mean_wait == 0


def test_a_stall_is_hidden_by_the_client_that_waits() -> None:
    """Coordinated omission: a job each 10 ms, the server stops for a second once."""
    load = [Job(i * 10 * MS, (1000 if i == 100 else 5) * MS) for i in range(400)]
    opened, closed = simulate(load), simulate(load, clients=1)
    assert sum(t > 0.1 for t in closed.responses) == 1
    assert sum(t > 0.1 for t in opened.responses) > 100
    assert closed.response(99) == pytest.approx(0.005) and opened.response(90) > 0.5


@pytest.mark.parametrize(("servers", "variability"), [(1, 1.0), (1, 0.0), (3, 1.0)])
def test_long_runs_tend_to_the_theory(servers: int, variability: float) -> None:
    load = poisson(0.7 * servers, 1.0, 60_000, variability=variability, seed=2)
    theory = Steady(0.7 * servers, 1.0, servers, variability)
    run = simulate(load, servers)
    assert run.mean_wait == pytest.approx(theory.mean_wait, rel=0.1)
    assert run.utilisation == pytest.approx(0.7, rel=0.02)
    if variability == 1:
        waits = sorted(r.start - r.sent for r in run.requests)
        assert waits[int(0.9 * len(waits))] / SECOND == pytest.approx(
            theory.wait_percentile(90), rel=0.15
        )


def test_one_queue_for_all_beats_a_queue_each() -> None:
    load = poisson(3.2, 1.0, 20_000, seed=1)
    own = separate(load, 4)
    assert simulate(load, 4).mean_wait < own.mean_wait
    shares = [sum(r.server == server for r in own.requests) for server in range(4)]
    assert all(4500 < share < 5500 for share in shares)


@pytest.mark.parametrize("variability", [0.0, 1.0, 2.0])
def test_jobs_have_the_mean_and_the_spread_asked_for(variability: float) -> None:
    jobs = poisson(50, 0.01, 40_000, variability=variability, seed=1)
    assert jobs == poisson(50, 0.01, 40_000, variability=variability, seed=1)
    assert jobs != poisson(50, 0.01, 40_000, variability=variability, seed=2)
    services = [job.service / SECOND for job in jobs]
    mean = sum(services) / len(services)
    spread = (sum((s - mean) ** 2 for s in services) / len(services)) ** 0.5 / mean
    assert mean == pytest.approx(0.01, rel=0.03)
    assert spread == pytest.approx(variability, rel=0.1, abs=1e-6)
    assert jobs[-1].due / SECOND == pytest.approx(800, rel=0.03)
    assert all(a.due <= b.due for a, b in pairwise(jobs))


def test_the_trace_has_a_lane_a_server_and_one_for_the_queue() -> None:
    run = simulate([Job(0, 4), Job(1, 4), Job(2, 4)], 2)
    trace = run.trace()
    assert set(trace.lanes) == {"server 1", "server 2", "queue"}
    assert trace.total("compute") * SECOND == pytest.approx(12)
    assert trace.total("queue") * SECOND == pytest.approx(2)
    validate_chrome(trace.to_chrome())


def test_merged_runs_keep_their_servers_apart() -> None:
    one, other = simulate([Job(0, 5)], 2), simulate([Job(1, 5)], 1)
    both = merge([one, other])
    assert both.servers == 3 and [r.server for r in both.requests] == [0, 2]


@settings(max_examples=10)
@given(st.integers(-3, 0))
def test_nonsense_is_refused(few: int) -> None:
    for call in (
        lambda: simulate([Job(0, 1)], few),
        lambda: simulate([Job(0, 1)], 1, clients=few),
        lambda: separate([Job(0, 1)], few),
        lambda: poisson(1, 1, few),
        lambda: poisson(few, 1, 1),
        lambda: poisson(1, 1, 1, variability=few - 1),
        lambda: simulate([]),
    ):
        with pytest.raises(ValueError, match="give"):
            call()
