"""What ranks compute together from parts of each layer equals what one does from the whole."""

import copy
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from utils.core import plots
from utils.deep_learning import digits, models
from utils.deep_learning.collectives.launch import RankFailed, launch
from utils.deep_learning.model_parallel import shards, train
from utils.deep_learning.model_parallel.clocks import largest
from utils.deep_learning.model_parallel.schedules import SCHEDULES
from utils.deep_learning.model_parallel.tensor import Shard, parallelize, shares, whole_state
from utils.deep_learning.recipe import Recipe, loss_of


def odd() -> nn.Module:
    """Cut between a convolution of 5 channels and a linear layer with 4 inputs for each."""
    conv = nn.Conv2d(1, 5, 3, stride=2, padding=1)
    return nn.Sequential(conv, nn.ReLU(), nn.AvgPool2d(7), nn.Flatten(), nn.Linear(20, 10)).double()


def compare(group, whole, data) -> dict:
    """Largest differences from `whole`, which has gradients; the copy is cut."""
    cut = parallelize(copy.deepcopy(whole), group)
    images = data.images.clone().requires_grad_()
    output = cut(images)
    F.cross_entropy(output, data.labels).backward()
    reference = data.images.clone().requires_grad_()
    wanted = copy.deepcopy(whole)
    expected = wanted(reference)
    F.cross_entropy(expected, data.labels).backward()
    errors = [largest(output, expected), largest(images.grad, reference.grad)]
    theirs = dict(wanted.named_modules())
    for name, part in cut.named_modules():
        if isinstance(part, Shard):
            errors.append(largest(part.weight.grad, part.part_of(theirs[name].weight.grad)))
            errors.append(largest(part.bias.grad, part.bias_of(theirs[name].bias.grad)))
        elif isinstance(part, nn.Linear):
            errors.append(largest(part.weight.grad, theirs[name].weight.grad))
    state = whole_state(cut)
    same = all(torch.equal(state[name], value) for name, value in whole.state_dict().items())
    return {"errors": errors, "same": same and len(state) == len(whole.state_dict())}


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["small", "tower", "odd"])
def test_forward_weight_and_input_gradients_equal_the_reference_shards(name, ranks) -> None:
    whole = odd() if name == "odd" else models.make(name, dtype=torch.float64)
    data = digits.load()[0][:7].to(torch.float64)
    for result in launch(compare, ranks, whole, data, on="threads").results:
        assert max(result["errors"]) <= 1e-12
        assert result["same"]  # put together again it is the model that was cut


@pytest.mark.parametrize(("ranks", "blocks"), [(1, 1), (2, 1), (4, 3), (3, 2)])
def test_one_all_reduce_a_pair_forward_and_one_backward(ranks, blocks) -> None:
    result = shards.shards(ranks, blocks, width=24, batch=10)
    assert result.all_reduces == (blocks, blocks)
    slack = 8 * ranks * 2 * blocks  # parts of a tensor that cannot be shared evenly
    assert all(abs(sent - result.formula) <= slack for sent in result.sent)
    assert max(result.errors.values()) <= 1e-12
    plots.png(shards.plot(result))


def test_shares() -> None:
    assert shares(10, 4) == [3, 3, 2, 2]
    with pytest.raises(ValueError, match="ranks=5 is not allowed: a layer has only 4 channels"):
        shares(4, 5)
    data = digits.load()[0][:2].to(torch.float64)
    with pytest.raises(RankFailed, match="only 5 channels"):
        launch(compare, 6, odd(), data, on="threads")


# ── Training ──────────────────────────────────────────────────────────────────────────────────

STEPS = 4


@cache
def serial(name: str, recipe: Recipe) -> tuple[list[float], dict]:
    """The first steps of a recipe, written out."""
    model = models.make(name, dtype=torch.float64)
    data, losses = digits.load()[0].to(torch.float64), []
    optimizer = recipe.optimizer(model.parameters())
    for step, which in zip(range(STEPS), recipe.batches(len(data)), strict=False):
        optimizer.param_groups[0]["lr"] = recipe.rate_at(step, len(data))
        optimizer.zero_grad()
        loss = loss_of(model, recipe.take(data, which, step))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model.state_dict()


WAYS = {"tensor": (train.train_tensor,)} | {
    name: (train.train_pipeline, name) for name in SCHEDULES
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["small", "tower"])
def test_training_reaches_the_serial_parameters(name, way) -> None:
    recipe = Recipe(batch=32, shift=1)
    losses, state = serial(name, recipe)
    function, *schedule = WAYS[way]
    arguments = (name, recipe, STEPS, torch.float64, *schedule)
    for result in launch(function, 2, *arguments, on="threads").results:
        assert result["losses"] == pytest.approx(losses, abs=1e-10)
        assert result["state"].keys() == state.keys()
        assert max(largest(result["state"][key], state[key]) for key in state) <= 1e-10
