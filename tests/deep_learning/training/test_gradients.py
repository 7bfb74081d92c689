"""What the ranks compute together is what one model computes alone, to rounding (float64)."""

from pathlib import Path

import pytest
import torch

from utils.deep_learning import digits, models
from utils.deep_learning.collectives.launch import launch
from utils.deep_learning.recipe import Recipe, loss_of
from utils.deep_learning.training.data_parallel import Accumulation, DataParallel, Overlapped
from utils.deep_learning.training.job import Job, shares

DATA = digits.load()[0][:40].to(torch.float64)


def job(workers, **changes):
    return Job("small", workers, Recipe(batch=40), Path(), data=DATA, **changes)


def reference():
    model = models.make("small", dtype=torch.float64)
    loss_of(model, DATA).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def gradient(group, kind, job):
    """What this rank holds before the exchange, and after it."""
    strategy = kind(group, job.new_model(), job)
    which = torch.arange(len(DATA))
    try:
        mine = strategy.take(0, which)
        strategy.gradient(DATA[mine], len(which))
        alone = [parameter.grad.clone() for parameter in strategy.model.parameters()]
        strategy.exchange()
        return alone, [parameter.grad.clone() for parameter in strategy.model.parameters()]
    finally:
        strategy.close()


def furthest(one, other):
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", [DataParallel, Accumulation])
@pytest.mark.parametrize(
    "weights", [(1, 1), (1, 1, 1), (1, 2, 5), (1, 1000), (3, 1, 1, 1)], ids=str
)
def test_the_gradients_of_all_workers_are_that_of_the_batch_for_unequal_parts_too(kind, weights):
    ranks = launch(
        gradient, len(weights), kind, job(len(weights), weights=weights), on="threads"
    ).results
    for _, together in ranks:
        assert furthest(together, reference()) <= 1e-12
    for _, together in ranks[1:]:
        assert furthest(together, ranks[0][1]) == 0  # to the bit


def test_accumulated_gradients_differ_before_the_last_micro_batch_and_not_after():
    ranks = launch(gradient, 2, Accumulation, job(2, micro_batches=5), on="threads").results
    (alone_0, together_0), (alone_1, together_1) = ranks
    assert furthest(alone_0, alone_1) > 1e-4
    assert furthest(together_0, together_1) == 0


def step_of(group, kind, job):
    strategy = kind(group, job.new_model(), job)
    try:
        mine = strategy.take(0, torch.arange(len(DATA)))
        loss = strategy.step(DATA[mine], len(DATA))
        return loss, strategy.state()
    finally:
        strategy.close()


def test_buckets_that_overlap_give_the_same_step():
    flat = launch(step_of, 2, DataParallel, job(2), on="threads").results[0]
    buckets = launch(step_of, 2, Overlapped, job(2), on="threads").results[0]
    assert flat[0] == buckets[0]
    assert furthest(flat[1].values(), buckets[1].values()) <= 1e-12


@pytest.mark.parametrize("count", [0, 1, 7, 64])
@pytest.mark.parametrize("weights", [(1,), (1, 1, 1), (0.1, 5, 1)], ids=str)
def test_shares_are_all_of_it_and_near_the_weights(count, weights):
    cuts = shares(count, weights)
    assert cuts[0] == 0 and cuts[-1] == count and cuts == sorted(cuts)
    for start, end, weight in zip(cuts, cuts[1:], weights, strict=False):
        assert abs(end - start - count * weight / sum(weights)) <= 1


def test_replicas_that_two_threads_make_at_once_are_the_seed_s():
    """A model is made with the process's random numbers: two ranks must not draw in turns."""
    expected = models.make("deep").state_dict()
    job_ = Job("deep", 4, Recipe(), Path())
    for state in launch(_made, 4, job_, on="threads").results:
        assert all(torch.equal(state[name], expected[name]) for name in expected)


def _made(group, job):
    group.barrier()
    return job.new_model().state_dict()
