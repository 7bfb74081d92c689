"""Every policy, on both clocks: each task once, never faster than possible, and Graham's bounds."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.performance.balance.policies import (
    POLICIES,
    Guided,
    LeastLoad,
    LongestFirst,
    Policy,
    RoundRobin,
    SharedQueue,
    TwoChoices,
    UrgentFirst,
    UrgentRoundRobin,
    WorkStealing,
    make_policy,
)
from utils.performance.balance.stream import POLICIES as STREAMED
from utils.performance.balance.tasks import Task, lower_bound, make_tasks
from utils.performance.balance.virtual import simulate

EVERY = {
    **POLICIES,
    **STREAMED,
    "urgent first": UrgentFirst,
    "urgent round robin": UrgentRoundRobin,
}
every = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY.keys())

costs = st.lists(st.floats(0, 2), min_size=1, max_size=40)
tasks_there_at_once = costs.map(
    lambda costs: tuple(Task(number, cost, cost) for number, cost in enumerate(costs))
)
tasks_that_arrive = st.lists(
    st.tuples(st.floats(0, 2), st.floats(0, 10), st.floats(0, 2), st.integers(0, 1)),
    min_size=1,
    max_size=40,
).map(
    lambda rows: tuple(
        Task(number, cost, estimate, arrival, priority)
        for number, (cost, arrival, estimate, priority) in enumerate(rows)
    )
)
crew = st.integers(1, 9)


def check(outcome) -> None:
    """Each task once, not before it arrived, for as long as it takes; a worker one at a time."""
    done = [span for span in outcome.trace.spans if span.category == "compute"]
    assert sorted(span.args["task"] for span in done) == sorted(t.number for t in outcome.tasks)
    by_number = {task.number: task for task in outcome.tasks}
    for span in done:
        task = by_number[span.args["task"]]
        assert span.start >= task.arrival * 1e9 - 1
        assert abs(span.seconds - task.cost) <= 2e-9
    for lane in outcome.trace.lanes:
        spans = outcome.trace.select(lane=lane).spans
        for before, after in itertools.pairwise(spans):
            assert before.end <= after.start + 1
    assert outcome.makespan >= outcome.bound - 1e-8


@every
@settings(max_examples=40, deadline=None)
@given(tasks=tasks_that_arrive, workers=crew, overhead=st.sampled_from([0.0, 0.01]))
def test_every_task_is_done_once_by_one_worker(make, tasks, workers, overhead) -> None:
    check(simulate(make(workers), tasks, overhead))


@every
@settings(max_examples=20, deadline=None)
@given(tasks=tasks_that_arrive, workers=crew)
def test_the_virtual_clock_repeats_itself(make, tasks, workers) -> None:
    assert simulate(make(workers), tasks) == simulate(make(workers), tasks)


@pytest.mark.parametrize("make", [SharedQueue, LongestFirst, UrgentFirst, WorkStealing])
@settings(max_examples=60, deadline=None)
@given(tasks=tasks_that_arrive, workers=crew)
def test_nobody_idles_while_a_task_waits(make, tasks, workers) -> None:
    outcome = simulate(make(workers), tasks)
    started = {s.args["task"]: s.start for s in outcome.trace.spans if s.category == "compute"}
    for task in tasks:
        arrived = round(task.arrival * 1e9)
        for instant in (arrived, *(s.end for s in outcome.trace.spans)):
            if not arrived <= instant < started[task.number]:
                continue
            # The task waits at this instant, so whoever is not busy now must be about to start.
            busy = [s for s in outcome.trace.spans if s.start <= instant + 2 and instant < s.end]
            assert len({span.lane for span in busy}) == workers


@settings(max_examples=100, deadline=None)
@given(tasks=tasks_there_at_once, workers=crew)
def test_a_shared_queue_keeps_graham_s_bound(tasks, workers) -> None:
    longest, total = max(t.cost for t in tasks), sum(t.cost for t in tasks)
    most = total / workers + (1 - 1 / workers) * longest
    for make in (SharedQueue, LongestFirst):
        assert simulate(make(workers), tasks).makespan <= most + 1e-7


@settings(max_examples=60, deadline=None)
@given(costs=st.lists(st.integers(1, 20), min_size=1, max_size=7), workers=st.integers(1, 3))
def test_longest_first_is_within_a_third_of_the_best(costs, workers) -> None:
    best = min(
        max(
            sum(c for c, w in zip(costs, given_to, strict=True) if w == worker)
            for worker in given_to
        )
        for given_to in itertools.product(range(workers), repeat=len(costs))
    )
    tasks = [Task(number, cost, cost) for number, cost in enumerate(costs)]
    assert (
        simulate(LongestFirst(workers), tasks).makespan <= (4 / 3 - 1 / (3 * workers)) * best + 1e-7
    )
    assert best >= lower_bound(costs, workers)


def test_round_robin_deals_in_turn() -> None:
    tasks = make_tasks("equal", 6, 1)
    outcome = simulate(RoundRobin(2), tasks)
    assert [s.args["task"] for s in outcome.trace.select(lane="worker 2").spans] == [1, 3, 5]


def test_chunks_are_taken_whole_and_guided_ones_shrink() -> None:
    def sizes(policy: Policy) -> list[int]:
        for task in make_tasks("equal", 20, 1):
            policy.arrive(task)
        return list(itertools.takewhile(bool, (len(policy.take(0)) for _ in itertools.count())))

    assert sizes(SharedQueue(2, chunk=8)) == [8, 8, 4]
    assert sizes(Guided(2)) == [10, 5, 3, 1, 1]


def test_least_load_counts_what_is_under_way() -> None:
    policy = LeastLoad(2)
    policy.arrive(Task(0, 5, 5))
    policy.arrive(Task(1, 1, 1))
    policy.arrive(Task(2, 1, 1))  # worker 2 again: 1 + 1 is less than 5
    assert [task.number for task in policy.lines[1]] == [1, 2]
    (long,) = policy.take(0)
    policy.arrive(Task(3, 3, 3))  # taken is not finished
    policy.finish(0, long)
    policy.arrive(Task(4, 1, 1))
    assert [[task.number for task in line] for line in policy.lines] == [[4], [1, 2, 3]]


@pytest.mark.parametrize("make", [LeastLoad, TwoChoices])
def test_all_load_is_gone_when_all_is_done(make) -> None:
    policy = make(3)
    simulate(policy, make_tasks("heavy tail", 50, 1, error=1))
    assert policy.load == pytest.approx([0, 0, 0], abs=1e-9)


def test_a_thief_takes_the_last_and_each_move_is_counted() -> None:
    policy = WorkStealing(2)
    for task in (Task(0, 1, 1), Task(2, 1, 1), Task(4, 1, 1)):  # all of them worker 1's
        policy.arrive(task)
    assert [task.number for task in policy.take(1)] == [4]
    assert [task.number for task in policy.take(0)] == [0]
    assert policy.moves == 1
    assert [task.number for task in policy.take(1)] == [2]
    assert policy.take(0) == policy.take(1) == []


def test_priorities_move_no_work() -> None:
    tasks = make_tasks("rhythm", 64, 0.01, urgent=0.2)
    plain, urgent = simulate(RoundRobin(4), tasks), simulate(UrgentRoundRobin(4), tasks)
    assert urgent.busy == pytest.approx(plain.busy)
    assert urgent.makespan == pytest.approx(plain.makespan)
    assert sum(urgent.waits(priority=0)) < sum(plain.waits(priority=0))


@pytest.mark.parametrize("shape", ["equal", "rhythm", "growing", "heavy tail"])
def test_tasks_have_the_mean_that_was_asked_for_and_are_the_same_again(shape) -> None:
    tasks = make_tasks(shape, 40, 0.5, error=0.7, urgent=0.5, seed=3)
    assert sum(task.cost for task in tasks) == pytest.approx(20)
    assert tasks == make_tasks(shape, 40, 0.5, error=0.7, urgent=0.5, seed=3)
    assert {task.priority for task in tasks} == {0, 1}


def test_estimates_are_right_without_an_error() -> None:
    assert all(task.estimate == task.cost for task in make_tasks("heavy tail", 40, 1))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda: make_tasks("lumpy", 4, 1), "shape='lumpy'"),
        (lambda: make_tasks("equal", 0, 1), "count=0"),
        (lambda: make_tasks("equal", 4, 0), "mean=0"),
        (lambda: make_tasks("equal", 4, math.nan), "mean=nan"),
        (lambda: make_tasks("equal", 4, 1, error=-1), "error=-1"),
        (lambda: make_tasks("equal", 4, 1, urgent=2), "urgent=2"),
        (lambda: Task(0, -1, 1), "cost=-1"),
        (lambda: Task(0, 1, math.nan), "estimate=nan"),
        (lambda: Task(0, 1, 1, arrival=-1), "arrival=-1"),
        (lambda: SharedQueue(0), "workers=0"),
        (lambda: SharedQueue(2, chunk=0), "chunk=0"),
        (lambda: make_policy("magic", 2), "policy='magic'"),
        (lambda: lower_bound([1], 0), "workers=0"),
        (lambda: simulate(SharedQueue(1), [], overhead=-1), "overhead=-1"),
    ],
)
def test_bad_input_is_named(wrong, named) -> None:
    with pytest.raises(ValueError, match=named):
        wrong()


def test_no_task_takes_no_time() -> None:
    assert lower_bound([], 3) == 0
    assert simulate(SharedQueue(2), []).makespan == 0
