"""Bucketed gradients: equal to the big batch's, with and without overlap; held back on demand."""

import copy
import threading

import pytest
import torch
from torch import nn

from utils.deep_learning import digits, models, recipe
from utils.deep_learning.collectives.buckets import Buckets
from utils.deep_learning.collectives.launch import RankFailed, launch


def gradients(model):
    return [parameter.grad.clone() for parameter in model.parameters()]


def backward(model, batch, share=1.0):
    (recipe.loss_of(model, batch) * share).backward()


@pytest.fixture(scope="module")
def task():
    """A model in float64, 48 digits, and their gradient."""
    model = models.make("small", dtype=torch.float64)
    batch = digits.load()[0][:48].to(torch.float64)
    reference = copy.deepcopy(model)
    backward(reference, batch)
    return model, batch, gradients(reference)


def two_steps(group, model, batch, cuts, bytes, overlap):
    """The gradients of the second of two equal steps, each rank with its own digits."""
    model = copy.deepcopy(model)
    mine = batch[cuts[group.rank] : cuts[group.rank + 1]]
    with Buckets(model, group, bytes, overlap) as buckets:
        for _ in range(2):
            model.zero_grad()
            if len(mine):
                backward(model, mine, len(mine) / len(batch))
            buckets.wait()
    return gradients(model)


@pytest.mark.parametrize("cuts", [(0, 24, 48), (0, 5, 48), (0, 20, 20, 48), (0, 48)])
@pytest.mark.parametrize("bytes", [1, 50_000, 10**9])
def test_the_sum_is_the_gradient_of_all_with_and_without_overlap(task, cuts, bytes):
    model, batch, reference = task
    results = [
        launch(two_steps, len(cuts) - 1, model, batch, cuts, bytes, overlap, on="threads").results
        for overlap in (True, False)
    ]
    first = results[0][0]
    for of_rank in results[0] + results[1]:
        assert all(map(torch.equal, of_rank, first))  # ranks, and with or without overlap
    for ours, theirs in zip(first, reference, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


def accumulate(group, model, batch):
    model = copy.deepcopy(model)
    seen = []
    with Buckets(model, group, 50_000) as buckets:
        mine = batch[24 * group.rank : 24 * group.rank + 24]
        with buckets.no_sync():
            for part in (mine[:8], mine[8:16]):
                backward(model, part, 8 / 48)
                seen.append(gradients(model))
        backward(model, mine[16:], 8 / 48)
        buckets.wait()
    return seen, gradients(model)


def test_accumulated_gradients_stay_here_until_the_last_micro_batch(task):
    model, batch, reference = task
    outcome = launch(accumulate, 2, model, batch, on="threads")
    (seen, last), (seen_by_other, last_of_other) = outcome.results
    alone = copy.deepcopy(model)
    for number, state in enumerate(seen):
        backward(alone, batch[8 * number : 8 * number + 8], 8 / 48)
        for ours, theirs in zip(state, gradients(alone), strict=True):
            assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
        assert not any(map(torch.equal, state, seen_by_other[number]))
    assert all(map(torch.equal, last, last_of_other))
    for ours, theirs in zip(last, reference, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


class Branches(nn.Module):
    """Layers of two types of numbers; rank 0 takes one branch, rank 1 the other."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3, dtype=torch.float64)])
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


def one_branch(group):
    torch.manual_seed(0)
    model = Branches()
    with Buckets(model, group) as buckets:
        layer = model.layers[group.rank]
        layer(torch.ones(2, 3, dtype=layer.weight.dtype)).sum().backward()
        buckets.wait()
    return [parameter.grad for parameter in model.parameters()], len(buckets.buckets)


def test_branches_not_taken_count_as_zero():
    (grads, buckets), (of_other, _) = launch(one_branch, 2, on="threads").results
    assert buckets == 2  # one for each type
    for grad, other in zip(grads[:4], of_other[:4], strict=True):
        assert torch.equal(grad, torch.full_like(grad, 2)) and torch.equal(grad, other)
    assert grads[4:] == [None, None]


class Reversible(nn.Module):
    """Two parallel layers; the order in which backward meets them depends on `swap`."""

    def __init__(self, swap):
        super().__init__()
        self.a, self.b, self.swap = nn.Linear(4, 4), nn.Linear(4, 4), swap

    def forward(self, x):
        first, second = (self.b, self.a) if self.swap else (self.a, self.b)
        return (first(x) + second(x)).sum()


def orders(group):
    model = Reversible(swap=group.rank == 1)
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    with Buckets(model, group, bytes=1) as buckets:
        (model(torch.ones(1, 4)) * (group.rank + 1)).backward()
        buckets.wait()
    return gradients(model)


def test_ranks_that_meet_parameters_in_different_orders_still_pair_buckets():
    for result in launch(orders, 2, on="threads").results:
        assert all(torch.equal(grad, torch.full_like(grad, 3)) for grad in result)


def test_the_wire_has_a_lane_and_works_during_backward(task):
    model, batch, _ = task
    outcome = launch(two_steps, 2, model, batch, (0, 24, 48), 1, True, on="threads")
    assert {"rank 0 wire", "rank 1 wire"} <= set(outcome.trace.lanes)
    calls = outcome.trace.select(lane="rank 0 wire", category="communicate").spans
    assert len(calls) == 2 * 8  # two steps, a bucket for each of 8 parameters


class Spy:
    """A group of one that only writes down when it was called."""

    rank, size, lane, device = 0, 1, "rank 0", torch.device("cpu")

    def __init__(self):
        self.called = threading.Event()

    def all_reduce(self, tensor, op="sum"):
        self.called.set()


def test_a_full_bucket_leaves_before_backward_has_ended():
    spy, left, under_way = Spy(), [], []
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with Buckets(model, spy, bytes=1) as buckets:

        def before_the_last(_):
            left.append(spy.called.wait(10))
            under_way.append(len(buckets._sent))

        hook = model[0].weight.register_hook(before_the_last)
        model(torch.ones(1, 4)).sum().backward()
        hook.remove()
        buckets.wait()
        assert left == [True]
        assert 1 <= under_way[0] < len(buckets.buckets) == 4  # its own has not left before it
    late, spy = [], Spy()
    with Buckets(model, spy, bytes=1, overlap=False) as buckets:
        model(torch.ones(1, 4)).sum().backward()
        late.append(spy.called.is_set())
        buckets.wait()
    assert late == [False] and spy.called.is_set()


def misuse(group, model, batch):
    with Buckets(copy.deepcopy(model), group) as buckets:
        for _ in range(2):
            backward_of = buckets.buckets[0].parameters[0]
            (backward_of.sum()).backward()


def fail_on_the_way(group, model, batch):
    model = copy.deepcopy(model)
    with Buckets(model, group) as buckets:
        if group.rank:
            raise KeyError("gone")
        backward(model, batch)
        buckets.wait()


def test_mistakes_and_failures_are_heard(task):
    model, batch, _ = task
    before = set(threading.enumerate())
    with pytest.raises(RankFailed, match="a second backward before wait"):
        launch(misuse, 1, model, batch, on="threads")
    with pytest.raises(RankFailed, match="rank 1 raised KeyError"):
        launch(fail_on_the_way, 2, model, batch, on="threads")
    with pytest.raises(ValueError, match="bytes=0 is not allowed"):
        Buckets(model, Spy(), bytes=0)
    assert set(threading.enumerate()) == before


def test_a_closed_one_leaves_the_model_alone():
    model, spy = nn.Linear(2, 2), Spy()
    Buckets(model, spy, bytes=1).close()
    model(torch.ones(1, 2)).sum().backward()
    assert not spy.called.is_set()
