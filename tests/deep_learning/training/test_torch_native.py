"""PyTorch's own data parallel beside ours, over gloo, in processes of their own."""

import pytest
import torch

from utils.deep_learning import digits
from utils.deep_learning.recipe import Recipe
from utils.deep_learning.training.train import train

DATA = digits.load()[0][:90].to(torch.float64)
RECIPE = Recipe(epochs=3, batch=32, shift=1)


def furthest(one, other):
    return max((one[name] - other[name]).abs().max().item() for name in other)


def test_our_own_reach_what_pytorch_s_own_do():
    ours = train("zero", recipe=RECIPE, data=DATA, steps=6, on="threads")
    for strategy in ("ddp", "fsdp"):
        result = train(strategy, recipe=RECIPE, data=DATA, steps=6)
        assert furthest(result.state, ours.state) <= 1e-12
        assert result.losses == pytest.approx(ours.losses, abs=1e-12)
    assert sum(result.state_bytes) == pytest.approx(sum(ours.state_bytes), rel=0.01)
