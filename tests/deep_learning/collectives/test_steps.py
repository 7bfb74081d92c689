"""The pictures of the algorithms show what they did, and the model recovers what made its data."""

from math import ceil, log2

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils.core import plots
from utils.deep_learning.collectives import costs, overlap, steps
from utils.deep_learning.collectives.costs import Costs, Model, steps_and_bytes
from utils.deep_learning.collectives.steps import Act


def drawn(picture):
    return plots.png(picture).startswith(b"\x89PNG")


@pytest.mark.parametrize("ranks", [2, 3, 5, 8])
@pytest.mark.parametrize("algorithm", steps.ALL_REDUCE)
def test_steps_end_with_everybodys_sum_in_as_many_steps_as_the_model_says(algorithm, ranks):
    result = steps.run(algorithm, ranks)
    first, last = result.states[0], result.states[-1]
    assert first == tuple((2**rank,) * ranks for rank in range(ranks))
    assert all(part == 2**ranks - 1 for rank in last for part in rank)
    assert len(result.states) - 1 == steps_and_bytes(algorithm, ranks, 0)[0]
    for before, after in zip(result.states, result.states[1:], strict=False):
        assert before != after
        for old, new in zip(sum(before, ()), sum(after, ()), strict=True):
            assert old & new == old  # nothing is lost from a sum, nothing added twice
    if algorithm == "ring" and ranks in (2, 5):  # 8 are 15 tables, and take long to draw
        assert drawn(steps.plot(result))


def test_ring_halfway_holds_one_complete_part_a_rank():
    result = steps.run("ring", 5)
    for rank, parts in enumerate(result.states[4]):
        assert [part == 31 for part in parts] == [place == rank for place in range(5)]
    assert result.sent == (8,) * 5


def test_both_ends_of_a_message_are_in_one_step():
    send, take = Act(1, None, 1, ()), Act(None, 0, 0, ())
    late = [[send], [Act(2, None, 1, ()), take], [Act(None, 1, 0, ())]]
    assert steps.number_steps(late) == [[2], [1, 2], [1]]


def test_longest_chain():
    assert steps_and_bytes("naive", 4, 100) == (6, 600)
    assert steps_and_bytes("tree", 5, 100) == (6, 600)
    assert steps_and_bytes("ring", 4, 100) == (6, 150)
    assert steps_and_bytes("tree", 1024, 8)[0] == 2 * ceil(log2(1024))
    for name in costs.ALL_REDUCE:
        assert steps_and_bytes(name, 1, 100) == (0, 0)


@given(st.floats(1e-7, 1e-3), st.floats(1e-12, 1e-8), st.integers(2, 64))
def test_fit_recovers_the_model(alpha, beta, ranks):
    true = Model(alpha, beta)
    sizes = (2**10, 2**20, 2**30)
    times = {name: [true.seconds(name, ranks, s) for s in sizes] for name in costs.ALL_REDUCE}
    found = costs.fit(ranks, sizes, times)
    for name in costs.ALL_REDUCE:
        for size, time in zip(sizes, times[name], strict=True):
            assert found.seconds(name, ranks, size) == pytest.approx(time, rel=1e-6)


def test_fit_is_never_negative():
    model = costs.fit(2, (1000, 2000), {"naive": [2.0, 1.0], "ring": [2.0, 1.0]})
    assert model.alpha >= 0 and model.beta == 0
    seconds = {name: (1.0,) * len(costs.SIZES) for name in costs.ALL_REDUCE}
    assert drawn(costs.plot(Costs(2, "threads", costs.SIZES, seconds, Model(1.0, 0.0))))


def test_costs_are_measured_for_every_size_and_algorithm(monkeypatch):
    monkeypatch.setattr(costs, "SIZES", (1024, 8192))
    result = costs.run(3, "threads")
    assert set(result.seconds) == set(costs.ALL_REDUCE)
    assert all(len(times) == 2 and min(times) > 0 for times in result.seconds.values())
    assert drawn(costs.plot(result))


@pytest.mark.parametrize(("network", "ranks", "kilobytes"), [("small", 1, 16), ("small", 3, 16)])
def test_overlap_changes_nothing_but_the_time(network, ranks, kilobytes):
    result = overlap.run(network, ranks, kilobytes)
    early, late = result.gradients.values()
    for of_rank in early + late:
        assert all(map(torch.equal, of_rank, early[0]))
    for trace in result.traces.values():
        for rank in range(ranks):
            sent = trace.select(lane=f"rank {rank} wire", category="communicate").spans
            assert len(sent) == result.buckets > 1
    for rank in range(ranks):
        after = result.traces["after backward"]
        [backward] = [
            span for span in after.select(lane=f"rank {rank}").spans if span.name == "backward"
        ]
        assert after.select(lane=f"rank {rank} wire").start >= backward.end
    assert drawn(overlap.plot(result))


@pytest.mark.parametrize(
    ("run", "values", "message"),
    [
        (steps.run, {"algorithm": "star"}, "algorithm='star' is not allowed"),
        (steps.run, {"ranks": 9}, "ranks=9 is not allowed"),
        (costs.run, {"on": "moons"}, "on='moons' is not allowed"),
        (overlap.run, {"kilobytes": 0}, "kilobytes=0 is not allowed"),
    ],
)
def test_mistakes_are_named(run, values, message):
    with pytest.raises(ValueError) as error:
        run(**values)
    assert message in str(error.value)
