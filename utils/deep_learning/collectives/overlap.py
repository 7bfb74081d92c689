"""One training step twice: gradients sent after backward, and while it runs."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor, nn

from utils.core import plots, trace
from utils.core.experiment import Range, experiment
from utils.core.trace import Trace
from utils.deep_learning import digits, models, recipe
from utils.deep_learning.collectives.buckets import WAITING, Buckets
from utils.deep_learning.collectives.group import Group
from utils.deep_learning.collectives.launch import launch
from utils.deep_learning.digits import Digits

WARMUP = 2  # steps that are not drawn


@dataclass(frozen=True)
class Overlap:
    """The last step without and with overlap: `traces`, and all ranks' `gradients`."""

    ranks: int
    buckets: int
    traces: dict[str, Trace]
    gradients: dict[str, list[list[Tensor]]]


def step(
    group: Group, model: nn.Module, batch: Digits, bytes: int, overlap: bool
) -> tuple[list[Tensor], int, int]:
    """This rank's share of a step: gradients, buckets, and when the last step began."""
    model = copy.deepcopy(model)
    mine = batch[slice(group.rank, None, group.size)]
    with Buckets(model, group, bytes, overlap) as buckets:
        for _ in range(WARMUP + 1):
            model.zero_grad()
            group.barrier()
            began = trace.now()
            with trace.span("compute", "forward"):
                loss = recipe.loss_of(model, mine) * len(mine) / len(batch)
            with trace.span("compute", "backward"):
                loss.backward()
            buckets.wait()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    return gradients, len(buckets.buckets), began


@experiment
def run(
    network: Literal["tower", "deep", "small"] = "tower",
    ranks: Annotated[int, Range(1, 4)] = 2,
    kilobytes: Annotated[int, Range(16, 4096, 16, label="KB a bucket")] = 512,
) -> Overlap:
    """Train a few steps on 64 digits, in threads."""
    batch, model = digits.load()[0][:64], models.make(network)
    traces, gradients, buckets = {}, {}, 0
    for name, overlap in (("after backward", False), ("during backward", True)):
        outcome = launch(step, ranks, model, batch, 1024 * kilobytes, overlap, on="threads")
        gradients[name] = [result[0] for result in outcome.results]
        buckets, began = outcome.results[0][1], min(result[2] for result in outcome.results)
        traces[name] = Trace(
            span
            for span in outcome.trace.spans
            if span.start >= began and (span.category != "queue" or span.name == WAITING)
        )  # without the waits of single messages
    return Overlap(ranks, buckets, traces, gradients)


def plot(result: Overlap) -> plots.Picture:
    """Both steps on one scale: what each rank computes, sends, and waits for."""
    lanes = [f"rank {rank}{end}" for rank in range(result.ranks) for end in ("", " wire")]
    until = 1.05 * max(spans.duration for spans in result.traces.values())
    fig, axes = plots.figure(9.5, 1.8 + 0.56 * len(lanes), rows=2, sharex=True)
    for ax, (name, spans) in zip(axes, result.traces.items(), strict=True):
        exposed = sum(span.seconds for span in spans.spans if span.category == "queue") / max(
            1e-9, result.ranks * spans.duration
        )
        plots.timeline(ax, spans, lanes=lanes, until=until)
        ax.set_title(
            f"{result.buckets} buckets sent {name}: {100 * exposed:.0f} % of the step is waiting",
            loc="left",
        )
    axes[0].set_xlabel("")
    names = {"compute": "forward, backward", "communicate": "all-reduce", "queue": "waits"}
    plots.legend(fig, list(names), names)
    return fig
