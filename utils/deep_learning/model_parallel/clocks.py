"""The same schedule object on real ranks, threads or processes, and on the virtual clock.

Real stages train on real digits and exchange activations. Then the virtual clock is asked what the
schedule makes of it if each action takes what it really took: what differs is the exchange.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from utils.core import plots
from utils.core.experiment import Range, experiment
from utils.core.trace import Trace, now
from utils.core.workers import intra_op
from utils.deep_learning import digits
from utils.deep_learning.collectives.group import Group
from utils.deep_learning.collectives.launch import On, launch
from utils.deep_learning.digits import Digits
from utils.deep_learning.model_parallel.bubble import Name, draw
from utils.deep_learning.model_parallel.schedules import Schedule, make_schedule
from utils.deep_learning.model_parallel.simulate import CATEGORIES, Run, simulate
from utils.deep_learning.model_parallel.stages import Pipeline
from utils.deep_learning.models import Tower
from utils.deep_learning.recipe import loss_of


@dataclass(frozen=True)
class Clocks:
    """One step on both clocks, and how far loss and gradients are from those of one process."""

    where: On
    real: Run
    virtual: Run
    loss_error: float
    gradient_error: float  # the largest of any parameter


@experiment
def two_clocks(
    schedule: Name = "1F1B",
    p: Annotated[int, Range(1, 4, label="stages p")] = 2,
    m: Annotated[int, Range(1, 16, label="micro-batches m")] = 4,
    where: On = "threads",
    batch: Annotated[int, Range(16, 1024, 16, label="digits a step")] = 128,
) -> Clocks:
    """Forward and backward of a tower of 16 layers, float64, after one step to warm up."""
    plan = make_schedule(schedule, p, m)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Tower(depth=15).double()
    data = digits.load()[0][:batch].to(torch.float64)
    with intra_op(1):  # as each rank
        loss = loss_of(model, data)
        wanted = torch.autograd.grad(loss, list(model.parameters()))
    outcome = launch(run_rank, p, model, plan, data, on=where)
    began = min(result["began"] for result in outcome.results)
    spans = [
        span
        for span in outcome.trace.spans
        if span.category in CATEGORIES.values() and span.start >= began
    ]
    real = Run(plan, Trace(spans), tuple(result["peak"] for result in outcome.results))
    got = {name: grad for result in outcome.results for name, grad in result["gradients"].items()}
    names = [name for name, _ in model.named_parameters()]
    errors = [largest(got[name], grad) for name, grad in zip(names, wanted, strict=True)]
    missed = abs(outcome.results[0]["loss"] - loss.item())
    return Clocks(where, real, replay(real), missed, max(errors))


def run_rank(group: Group, model: nn.Module, plan: Schedule, batch: Digits) -> dict[str, Any]:
    """One rank's part of two steps: the second's loss, own gradients, peak, and when it began.

    Threads share `model`: each touches its own stages only.
    """
    pipeline = Pipeline(group, model, plan, batch.images)
    pipeline.step(batch)
    for parameter in pipeline.parameters():
        parameter.grad = None
    group.barrier()
    began = now()
    loss = pipeline.step(batch)
    mine = {id(parameter) for parameter in pipeline.parameters()}
    gradients = {n: p.grad for n, p in model.named_parameters() if id(p) in mine}
    return {"loss": loss, "gradients": gradients, "peak": pipeline.peak, "began": began}


def largest(a: Tensor, b: Tensor) -> float:
    """The largest difference between two tensors."""
    return (a - b).abs().max().item()


def replay(real: Run) -> Run:
    """What the virtual clock makes of the schedule if each action takes what it took."""
    took = {tuple(span.args.values()): span.seconds for span in real.trace.spans}
    return simulate(real.schedule, lambda action: took[tuple(action)])


def plot(result: Clocks) -> plots.Picture:
    """Both timelines on one scale."""
    rows = len(result.real.schedule.ranks)
    fig, axes = plots.figure(9, 2.2 + 0.45 * rows, rows=2, sharex=True)
    until = 1.02 * max(result.real.trace.duration, result.virtual.trace.duration)
    for ax, name in zip(axes, ("real", "virtual"), strict=True):
        run = getattr(result, name)
        seconds, where = run.trace.duration, f", {result.where}" if name == "real" else ""
        title = f"{name} clock{where}: {1e3 * seconds:.0f} ms, {100 * run.bubble:.0f} % idle"
        draw(ax, run, until, f"{result.real.schedule.name}, {title}")
    axes[0].set_xlabel("")
    plots.legend(fig, ["forward", "backward", "weights"][: 2 + result.real.schedule.split])
    return fig
