"""The recipe followed by a group that shares one model: by tensor parallelism or by a pipeline.

Each function is what one rank does. All return the same: the loss of each step, and the state of
the whole model, which equals that of one process that does the same steps.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from torch import nn

from utils.deep_learning import digits, models
from utils.deep_learning.collectives.group import Group
from utils.deep_learning.digits import Digits
from utils.deep_learning.model_parallel.schedules import make_schedule
from utils.deep_learning.model_parallel.stages import Pipeline, cut
from utils.deep_learning.model_parallel.tensor import parallelize, whole_state
from utils.deep_learning.recipe import Recipe, loss_of


def train_tensor(
    group: Group, model_name: str, recipe: Recipe, steps: int, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Every layer on every rank, a part each; the same batch for all."""
    model = parallelize(models.make(model_name, dtype=dtype), group)

    def step(batch: Digits) -> float:
        loss = loss_of(model, batch)
        loss.backward()
        return loss.item()

    losses = _follow(recipe, steps, dtype, list(model.parameters()), step)
    return {"losses": losses, "state": whole_state(model)}


def train_pipeline(
    group: Group,
    model_name: str,
    recipe: Recipe,
    steps: int,
    dtype: torch.dtype = torch.float32,
    schedule: str = "1F1B",
    micro: int = 4,
) -> dict[str, Any]:
    """Some layers on each rank; each batch passes through in `micro` parts, by the schedule."""
    model = models.make(model_name, dtype=dtype)
    plan = make_schedule(schedule, group.size, micro)
    sample = digits.load()[0].images[:1].to(dtype)
    pipeline = Pipeline(group, model, plan, sample)
    losses = _follow(recipe, steps, dtype, pipeline.parameters(), pipeline.step)
    for number, layers in enumerate(cut(model, plan.stages)):
        for parameter in nn.ModuleList(layers).parameters():
            group.broadcast(parameter.data, plan.rank_of(number))
    return {"losses": losses, "state": model.state_dict()}


def _follow(
    recipe: Recipe,
    steps: int,
    dtype: torch.dtype,
    parameters: list[nn.Parameter],
    step: Callable[[Digits], float],
) -> list[float]:
    """Do the recipe's first `steps` steps; `step` adds to the gradients and returns the loss."""
    train = digits.load()[0].to(dtype)
    optimizer = recipe.optimizer(parameters)
    losses = []
    for number, which in enumerate(islice(recipe.batches(len(train)), steps)):
        optimizer.param_groups[0]["lr"] = recipe.rate_at(number, len(train))
        optimizer.zero_grad()
        losses.append(step(recipe.take(train, which, number)))
        optimizer.step()
    return losses
