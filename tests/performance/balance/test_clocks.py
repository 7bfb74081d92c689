"""The virtual clock keeps time; the real one does the same tasks; and both agree."""

import threading
import time
from dataclasses import replace

import pytest

from utils.core.experiment import Cancelled, Control, controlled
from utils.performance.balance import clocks, compare, estimates, grain, stream
from utils.performance.balance.policies import POLICIES, SharedQueue, make_policy
from utils.performance.balance.real import jobs, run
from utils.performance.balance.tasks import Task, lower_bound, make_tasks
from utils.performance.balance.virtual import VirtualClock, simulate

every = pytest.mark.parametrize("name", POLICIES)


def numbers(outcome) -> list[int]:
    return sorted(s.args["task"] for s in outcome.trace.spans if s.category == "compute")


# ---------------------------------------------------------------- virtual


def test_events_happen_in_order_of_time_and_then_of_asking() -> None:
    clock, seen = VirtualClock(), []
    clock.at(2, lambda: seen.append(("late", clock.now)))
    clock.at(1, lambda: (seen.append(("first", clock.now)), clock.at(2, seen.append, "added")))
    clock.at(1, lambda: seen.append(("second", clock.now)))
    clock.run()
    assert seen == [("first", 1), ("second", 1), ("late", 2), "added"]


@pytest.mark.parametrize("when", [0.5, float("nan")])
def test_the_past_is_over(when) -> None:
    clock = VirtualClock()
    clock.at(1, lambda: clock.at(when, print))
    with pytest.raises(ValueError, match="is not allowed: it is 1"):
        clock.run()


def test_visitors_of_a_shared_queue_wait_for_each_other() -> None:
    tasks = make_tasks("equal", 4, 1)
    outcome = simulate(SharedQueue(2), tasks, overhead=0.25)
    starts = {s.args["task"]: s.start / 1e9 for s in outcome.trace.spans if s.args}
    assert starts == pytest.approx({0: 0.25, 1: 0.5, 2: 1.5, 3: 1.75})
    assert outcome.makespan == pytest.approx(2.75)
    assert outcome.idle == pytest.approx(1 - 4 / (2 * 2.75))


def test_waits_count_from_the_arrival_and_the_makespan_from_second_0() -> None:
    tasks = [Task(0, 2, 2, arrival=1), Task(1, 1, 1, arrival=1.5, priority=0)]
    outcome = simulate(SharedQueue(1), tasks)
    assert outcome.makespan == pytest.approx(4)
    assert outcome.waits() == pytest.approx([0, 1.5])
    assert outcome.waits(priority=0) == pytest.approx([1.5])
    assert outcome.busy == pytest.approx([3]) and outcome.idle == pytest.approx(0.25)


def test_a_simulation_can_be_cancelled() -> None:
    control = Control()
    control.cancel()
    with controlled(control), pytest.raises(Cancelled):
        simulate(SharedQueue(2), make_tasks("equal", 4, 1))


# ---------------------------------------------------------------- real


@every
@pytest.mark.parametrize("workers", [1, 3])
def test_real_threads_do_every_task_once(name, workers) -> None:
    tasks = [replace(task, arrival=0.0005 * task.number) for task in make_tasks("equal", 40, 1e-9)]
    done, lock = [], threading.Lock()

    def job(task: Task) -> None:
        with lock:
            done.append(task.number)

    outcome = run(make_policy(name, workers), tasks, job)
    assert sorted(done) == numbers(outcome) == list(range(40))
    by_number = {task.number: task for task in tasks}
    for span in outcome.trace.select(category="compute").spans:
        assert (span.start - outcome.began) / 1e9 >= by_number[span.args["task"]].arrival
    assert min(outcome.waits()) >= 0


@every
def test_both_clocks_agree(name) -> None:
    """The real run took as long as the virtual clock makes of tasks as long as they really were.

    Sleeping leaves the machine's cores out; that each task took as long as it did, too. What is
    left is what a policy decides, and between two tasks a fraction of 10 ms. A machine that stops
    for a while between two tasks may spoil a run, but hardly three.
    """
    tasks = make_tasks("rhythm", 24, 0.01)
    for _ in range(3):
        with jobs("threads", 2, "sleep") as job:
            real = run(make_policy(name, 2), tasks, job)
        assert numbers(real) == list(range(24))
        replayed = clocks.replay(name, real)
        if 0.85 <= real.makespan / replayed.makespan <= 1.15:
            return
    pytest.fail(f"real {real.makespan:.3f} s, virtual {replayed.makespan:.3f} s")


def test_round_robin_gives_everybody_the_same_on_both_clocks() -> None:
    tasks = make_tasks("heavy tail", 30, 0.001)
    real = run(make_policy("round robin", 3), tasks, lambda task: None)
    virtual = simulate(make_policy("round robin", 3), tasks)
    for lane in virtual.trace.lanes:
        orders = [
            [s.args["task"] for s in outcome.trace.select(lane=lane, category="compute").spans]
            for outcome in (real, virtual)
        ]
        assert orders[0] == orders[1]


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_do_every_task_once(workers) -> None:
    tasks = make_tasks("equal", 10, 0.001)
    with jobs("processes", workers) as job:
        outcome = run(SharedQueue(workers), tasks, job)
    assert numbers(outcome) == list(range(10))


def test_real_tasks_come_in_order_of_arrival() -> None:
    arrivals = (0.02, 0.0, 0.01, 0.0)
    tasks = [Task(number, 0, 0, arrival) for number, arrival in enumerate(arrivals)]
    done = []
    run(SharedQueue(1), tasks, lambda task: done.append(task.number))
    assert done == [1, 3, 2, 0]


def test_a_policy_hears_of_every_end() -> None:
    policy = make_policy("least load", 2)
    run(policy, make_tasks("heavy tail", 20, 1), lambda task: None)
    assert policy.load == pytest.approx([0, 0], abs=1e-9)


NEVER = 1e6  # seconds: a run that waits for it does not end within a test


@pytest.mark.timeout(30)
@pytest.mark.parametrize("last", [0.0, NEVER])
@pytest.mark.parametrize("count", [1, 8])
def test_a_failing_task_ends_the_run(count, last) -> None:
    """Its error comes out even if others idle and wait for more; nobody starts another task."""
    tasks = [*make_tasks("equal", count, 0.001), Task(count, 0.001, 0.001, arrival=last)]
    started = []

    def job(task: Task) -> None:
        started.append(task.number)
        raise LookupError(f"task {task.number} is broken")

    before = threading.active_count()
    with pytest.raises(LookupError, match="is broken"):
        run(SharedQueue(2, chunk=4), tasks, job)
    assert len(started) <= 2
    assert threading.active_count() == before


@pytest.mark.timeout(30)
@pytest.mark.parametrize("last", [0.0, NEVER])
def test_a_cancelled_run_leaves_nothing_behind(last) -> None:
    control, done = Control(), []
    tasks = [*make_tasks("equal", 5000, 0.01), Task(5000, 0.01, 0.01, arrival=last)]

    def job(task: Task) -> None:
        control.cancel()
        time.sleep(task.cost)
        done.append(task.number)

    before = threading.active_count()
    with controlled(control), pytest.raises(Cancelled):
        run(SharedQueue(2), tasks, job)
    assert len(done) < 5000
    assert threading.active_count() == before


# ---------------------------------------------------------------- experiments


@pytest.mark.parametrize("workers", [1, 4, 64])
def test_the_comparison_draws_few_and_many_workers(workers) -> None:
    result = compare.compare("heavy tail", "guided chunks", workers=workers, overhead=50)
    assert all(outcome.excess >= 1 for outcome in result.outcomes.values())
    assert compare.plot(result)._repr_png_()
    times, busy = compare.busy_workers(result.outcomes["shared queue"])
    assert busy[-1] == 0 and max(busy) <= workers and list(times) == sorted(times)


def test_skewed_tasks_show_what_stealing_is_worth() -> None:
    tasks = make_tasks("rhythm", 64, 0.01)
    dealt, stolen = (
        simulate(make_policy(name, 2), tasks) for name in ("round robin", "work stealing")
    )
    assert dealt.excess >= 1.5 and stolen.excess <= 1.1
    assert stolen.moves > dealt.moves == 0


def test_two_clocks_are_drawn_and_do_the_same() -> None:
    result = clocks.two_clocks(count=2, work="sleep", milliseconds=5)
    assert numbers(result.real) == numbers(result.virtual) == numbers(result.replayed)
    assert clocks.plot(result)._repr_png_()


def test_the_grain_has_a_figure_for_each_chunk_size_and_both_clocks() -> None:
    result = grain.grain(workers=2, microseconds=20)
    assert len(result.real) == len(result.virtual) == len(result.chunks) + 1
    assert min(result.virtual) >= result.bound
    assert result.bound == lower_bound(
        [t.cost for t in make_tasks("growing", grain.TASKS, 2e-5)], 2
    )
    assert grain.plot(result)._repr_png_()


def test_right_estimates_beat_no_estimates_on_average() -> None:
    result = estimates.estimates()
    right = {name: rows[0].mean() for name, rows in result.excess.items()}
    assert right["longest first"] <= right["shared queue"]
    assert len(set(result.excess["shared queue"].mean(axis=1))) == 1  # it asks for none
    assert estimates.plot(result)._repr_png_()


def test_a_stream_waits_least_in_a_shared_queue() -> None:
    result = stream.stream(workers=8, utilisation=0.9)
    means = {name: sum(waits) / len(waits) for name, waits in result.waits.items()}
    assert min(means, key=means.get) == "shared queue"
    assert means["two choices"] < means["random"]
    assert stream.plot(result)._repr_png_()


def test_a_stream_on_real_threads_gets_through() -> None:
    tasks = [Task(n, 0.001, 0.001, arrival=0.002 * n) for n in range(20)]
    with jobs("threads", 2, "sleep") as job:
        outcome = run(make_policy("least load", 2), tasks, job)
    assert numbers(outcome) == list(range(20))
