"""Schedules are complete and end; on the virtual clock they idle and remember as theory says."""

from dataclasses import replace

import pytest

from utils.core import plots
from utils.deep_learning.model_parallel import bubble
from utils.deep_learning.model_parallel.schedules import (
    SCHEDULES,
    Action,
    Schedule,
    make_schedule,
    order,
    validate,
)
from utils.deep_learning.model_parallel.simulate import simulate

every = pytest.mark.parametrize("name", SCHEDULES)
sizes = pytest.mark.parametrize(("p", "m"), [(1, 1), (1, 4), (2, 2), (3, 6), (4, 8), (5, 20)])


def unit_run(plan: Schedule, backward: float = 2):
    return simulate(plan, bubble.costs(plan, backward))


@every
@sizes
def test_every_schedule_is_complete_and_respects_what_it_needs(name, p, m) -> None:
    plan = make_schedule(name, p, m)
    done = set()
    for action in order(plan):
        assert done.issuperset(plan.needs(action))
        done.add(action)
    assert len(done) == plan.stages * m * (3 if plan.split else 2)
    assert 1 <= validate(plan) <= m * plan.stages


@every
@sizes
def test_the_bubble_is_what_theory_says(name, p, m) -> None:
    plan = make_schedule(name, p, m)
    assert unit_run(plan).bubble == pytest.approx(bubble.expected(plan), abs=1e-6)
    if name in ("GPipe", "1F1B"):
        assert bubble.expected(plan) == pytest.approx((p - 1) / (m + p - 1))


@sizes
def test_live_activations(p, m) -> None:
    assert unit_run(make_schedule("GPipe", p, m)).peaks == (m,) * p
    assert unit_run(make_schedule("1F1B", p, m)).peaks == tuple(min(m, p - r) for r in range(p))
    assert unit_run(make_schedule("zero bubble", p, m)).peaks == (min(m, p),) * p


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("name", ["GPipe", "1F1B", "zero bubble"])
def test_fewer_micro_batches_than_stages(name, m) -> None:
    plan = make_schedule(name, 4, m)
    validate(plan)
    assert unit_run(plan).bubble >= bubble.expected(plan) - 1e-6  # too few to fill it


def test_messages_take_time() -> None:
    plan = make_schedule("GPipe", 3, 1)
    run = simulate(plan, lambda action: 1.0, hop=0.5)
    assert run.trace.duration == pytest.approx(6 + 4 * 0.5)


def broken(**changes) -> Schedule:
    return replace(make_schedule("1F1B", 2, 2), **changes)


def test_the_validator_finds_what_is_wrong() -> None:
    first, second = make_schedule("1F1B", 2, 2).ranks
    with pytest.raises(ValueError, match="nobody does B1 of stage 1"):
        validate(broken(ranks=(first, second[:-1])))
    with pytest.raises(ValueError, match="rank 0 must not do F0 of stage 0"):
        validate(broken(ranks=((first[0], *first), second)))
    with pytest.raises(ValueError, match="rank 0 must not do"):
        validate(broken(ranks=(second, first)))
    with pytest.raises(ValueError, match="rank 0 must not do W0"):
        validate(broken(ranks=((*first, Action("W", 0, 0)), second)))
    with pytest.raises(ValueError, match="wait for each other: rank 0 at B0.*rank 1 at F0"):
        validate(broken(ranks=(sorted(first), second)))


def test_ranks_that_wait_until_a_message_is_taken_need_room_for_some() -> None:
    assert validate(make_schedule("1F1B", 4, 8)) == 1
    plan = make_schedule("interleaved", 2, 8)
    assert validate(plan) > 1
    with pytest.raises(ValueError, match="wait for each other"):
        list(order(plan, buffer=1))


@pytest.mark.parametrize(
    ("name", "p", "m", "says"),
    [
        ("2F2B", 2, 2, "name='2F2B' is no schedule"),
        ("GPipe", 0, 2, "p=0"),
        ("interleaved", 4, 6, "m=6 is not allowed: interleaving needs a multiple of p=4"),
    ],
)
def test_bad_schedules_are_refused(name, p, m, says) -> None:
    with pytest.raises(ValueError, match=says):
        make_schedule(name, p, m)


def test_the_experiment_compares_what_fits() -> None:
    result = bubble.bubbles(p=4, m=6)
    assert list(result.runs) == ["GPipe", "1F1B", "zero bubble"]
    plots.png(bubble.plot(result))
    assert list(bubble.bubbles(p=16, m=64, hop=1).runs) == list(SCHEDULES)
