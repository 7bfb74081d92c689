"""The same by PyTorch's own: DTensor for tensor parallelism, `torch.distributed.pipelining`.

Two processes, gloo, a tower of digits in float64: loss and gradients of each way, and of ours,
against one process.

Sources: https://docs.pytorch.org/docs/stable/distributed.tensor.parallel.html,
https://docs.pytorch.org/docs/stable/distributed.pipelining.html
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleavedZeroBubble,
)
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional as F

from utils.deep_learning import digits, models
from utils.deep_learning.collectives.group import Group
from utils.deep_learning.collectives.launch import launch
from utils.deep_learning.collectives.torch_group import torch_group
from utils.deep_learning.digits import Digits
from utils.deep_learning.model_parallel.clocks import largest
from utils.deep_learning.model_parallel.schedules import make_schedule
from utils.deep_learning.model_parallel.stages import Pipeline, cut
from utils.deep_learning.model_parallel.tensor import Shard, parallelize
from utils.deep_learning.recipe import loss_of

RANKS, MICRO = 2, 4


def compare(batch: int = 32) -> dict[str, float]:
    """The largest difference of a gradient from one process's, of any rank, by each way."""
    with tempfile.TemporaryDirectory() as folder:
        outcome = launch(one_rank, RANKS, str(Path(folder) / "store"), batch)
    ways = outcome.results[0]
    return {way: max(result[way] for result in outcome.results) for way in ways}


def one_rank(group: Group, store: str, batch: int) -> dict[str, float]:
    """One rank's part of each way."""
    data = digits.load()[0][:batch].to(torch.float64)
    reference = models.make("tower", dtype=torch.float64)
    loss_of(reference, data).backward()
    wanted = {name: parameter.grad for name, parameter in reference.named_parameters()}

    def error(model: nn.Module) -> float:
        return max(
            largest(parameter.grad, wanted[name])
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        )

    ours = parallelize(models.make("tower", dtype=torch.float64), group)
    loss_of(ours, data).backward()
    errors = {"tensor, ours": max(_shard_errors(ours, reference))}
    for name in ("GPipe", "1F1B", "zero bubble"):
        model = models.make("tower", dtype=torch.float64)
        Pipeline(group, model, make_schedule(name, RANKS, MICRO), data.images).step(data)
        errors[f"{name}, ours"] = error(model)
    with torch_group(rank=group.rank, size=group.size, store=store):
        errors["tensor, DTensor"] = _dtensor(data, wanted)
        for schedule in (ScheduleGPipe, Schedule1F1B, ScheduleInterleavedZeroBubble):
            model = models.make("tower", dtype=torch.float64)
            several = schedule is ScheduleInterleavedZeroBubble
            count = 2 * RANKS if several else RANKS
            cuts = cut(model, count)
            stages = [
                PipelineStage(nn.Sequential(*cuts[number]), number, count, torch.device("cpu"))
                for number in range(group.rank, count, RANKS)
            ]
            run = schedule(stages if several else stages[0], MICRO, loss_fn=F.cross_entropy)
            entering = [data.images] if group.rank == 0 else []
            run.step(*entering, target=data.labels if group.rank == RANKS - 1 else None)
            errors[f"{schedule.__name__}, torch"] = error(model)
    return errors


def _shard_errors(cut_model: nn.Module, whole: nn.Module) -> list[float]:
    return [
        largest(part.weight.grad, part.part_of(whole.get_submodule(name).weight.grad))
        for name, part in cut_model.named_modules()
        if isinstance(part, Shard)
    ]


def _dtensor(data: Digits, wanted: dict[str, Tensor]) -> float:
    model = models.make("tower", dtype=torch.float64)
    linear = [name for name, layer in model.named_children() if isinstance(layer, nn.Linear)]
    styles = dict.fromkeys(linear[0:-1:2], ColwiseParallel())
    styles |= dict.fromkeys(linear[1:-1:2], RowwiseParallel())
    parallelize_module(model, init_device_mesh("cpu", (RANKS,)), styles)
    loss_of(model, data).backward()
    return max(
        largest(getattr(p.grad, "full_tensor", lambda grad=p.grad: grad)(), wanted[name])
        for name, p in model.named_parameters()
    )
