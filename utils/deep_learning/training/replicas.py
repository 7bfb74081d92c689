"""Must replicas start identical? Average gradients, parameters or nothing, and watch the gap.

Averaged gradients give every replica the same update, so what lies between two of them at the start
stays there (weight decay shrinks it, as it shrinks all parameters). And that update is the mean of
gradients taken at *different* places: right for none of them. Averaging the parameters themselves
closes any gap at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from utils.core import plots
from utils.core.experiment import Range, experiment
from utils.deep_learning.collectives.group import Group
from utils.deep_learning.collectives.launch import launch
from utils.deep_learning.recipe import Recipe
from utils.deep_learning.training.data_parallel import DataParallel
from utils.deep_learning.training.job import Job

Averaged = Literal["gradients", "parameters", "nothing"]
WORKERS = 2


@dataclass(frozen=True)
class Replicas:
    """For each start: the loss of each batch; how far the replicas were apart, before and after."""

    averaged: Averaged
    losses: dict[str, list[float]]
    gaps: dict[str, list[float]]  # length of the difference of all parameters


@experiment
def run(
    averaged: Averaged = "gradients", steps: Annotated[int, Range(10, 300, 10)] = 60
) -> Replicas:
    """Train two replicas in threads, once from one seed and once from two."""
    job = Job("small", WORKERS, Recipe(), Path(), steps=steps)
    losses, gaps = {}, {}
    for start in ("identical", "different"):
        ranks = launch(_rank, WORKERS, job, averaged, start == "identical", on="threads").results
        losses[start] = [sum(parts) for parts in zip(*(own for own, _ in ranks), strict=True)]
        gaps[start] = ranks[0][1]
    return Replicas(averaged, losses, gaps)


def _rank(
    group: Group, job: Job, averaged: Averaged, identical: bool
) -> tuple[list[float], list[float]]:
    replica = DataParallel(group, job.new_model(), job)  # makes them identical
    if not identical:
        replica.model.load_state_dict(job.new_model(seed=group.rank).state_dict())

    def gap() -> float:
        both = group.all_gather(replica.flat.values).view(WORKERS, -1)
        return (both[0] - both[1]).norm().item()

    losses, gaps = [], [gap()]
    for _, which in job.batches(0):
        mine = replica.take(0, which)
        whole = len(which) if averaged == "gradients" else len(mine)  # alone: the mean of ours
        loss = replica.gradient(job.digits[mine], whole)
        if averaged == "gradients":
            replica.exchange()
        replica.update()
        if averaged == "parameters":
            group.all_reduce(replica.flat.values.div_(WORKERS))
        losses.append(loss * whole / len(which))
        gaps.append(gap())
    return losses, gaps


def plot(result: Replicas) -> plots.Picture:
    """Left what the batches cost, right how far the replicas are apart."""
    fig, (left, right) = plots.figure(9, 3.2, cols=2)
    colors = {"identical": plots.BLUE, "different": plots.VERMILION}
    for start, color in colors.items():
        left.plot(result.losses[start], color=color, label=f"{start} start")
        right.plot(result.gaps[start], color=color)
    left.set_title(f"averaged: {result.averaged}", loc="left")
    left.set_ylabel("loss of a batch")
    right.set_title("distance between the replicas' parameters", loc="left")
    right.set_ylim(bottom=-0.1)
    for ax in (left, right):
        ax.set_xlabel("step", fontsize=9)
    left.legend(frameon=False, fontsize=9)
    return fig
