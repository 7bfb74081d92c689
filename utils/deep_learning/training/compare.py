"""One strategy beside serial training: who computes when, what the loss does, how fast it goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from utils.core import plots
from utils.core.experiment import Range, experiment
from utils.core.trace import Trace
from utils.deep_learning.collectives.launch import On
from utils.deep_learning.recipe import Recipe
from utils.deep_learning.training.train import TrainResult, train

Name = Literal[
    "data parallel",
    "overlapped",
    "accumulation",
    "parameter server",
    "asynchronous server",
    "hogwild",
    "local sgd",
    "zero",
    "intra-op",
    "ddp",
    "fsdp",
]
SHOWN = 6  # steps in the timeline


@dataclass(frozen=True)
class Comparison:
    """The same recipe, serial and by the chosen strategy."""

    serial: TrainResult
    chosen: TrainResult
    ranks: tuple[str, ...]


@experiment
def run(
    strategy: Name = "data parallel",
    model: Literal["small", "deep"] = "small",
    workers: Annotated[int, Range(1, 8)] = 2,
    batch: Annotated[int, Range(8, 256, 8)] = 64,
    steps: Annotated[int, Range(10, 600, 10)] = 40,
    local_steps: Annotated[int, Range(1, 64, label="K (local SGD)")] = 8,
    on: On = "threads",
) -> Comparison:
    """In "processes" the ranks take seconds to start; PyTorch's own run nowhere else."""
    recipe = Recipe(batch=batch)
    chosen = train(
        strategy, model, workers, recipe=recipe, steps=steps, local_steps=local_steps, on=on
    )
    serial = train("serial", model, 1, recipe=recipe, steps=steps, on="threads")
    ranks = tuple(f"rank {rank}" for rank in range(len(chosen.bytes_sent)))
    return Comparison(serial, chosen, ranks)


def plot(result: Comparison) -> plots.Picture:
    """Above: some steps of all ranks. Below: the loss beside serial's, and digits a second."""
    chosen, serial = result.chosen, result.serial
    rows = len(result.ranks)
    fig = plots.Picture(figsize=(9.5, 3.9 + 0.28 * rows), layout="constrained")
    grid = fig.add_gridspec(2, 2, height_ratios=[0.8 + 0.28 * rows, 2.4], width_ratios=[3, 2])
    lanes, curve, rate = (
        plots.style(fig.add_subplot(place)) for place in (grid[0, :], grid[1, 0], grid[1, 1])
    )
    shown = window(chosen.trace, SHOWN)
    wires = [lane for lane in shown.lanes if lane not in result.ranks]  # of buckets, of a server
    title = f"{chosen.strategy}: about {SHOWN} steps of a rank, from the middle"
    plots.timeline(lanes, shown, lanes=[*result.ranks, *sorted(wires)], title=title)
    curve.plot(serial.losses, color=plots.GREY, label="serial", linewidth=3)
    curve.plot(chosen.losses, color=plots.BLUE, label=chosen.strategy, linewidth=1.2)
    curve.set_xlabel("step", fontsize=9)
    curve.set_ylabel("loss of a batch", fontsize=9)
    curve.legend(frameon=False, fontsize=9)
    both = [serial.samples_per_second, chosen.samples_per_second]
    bars = rate.barh(["serial", chosen.strategy], both, color=[plots.GREY, plots.BLUE])
    rate.bar_label(bars, fmt="%.0f", fontsize=9, padding=3)
    rate.margins(x=0.2)
    rate.invert_yaxis()
    rate.grid(visible=False)
    rate.set_title(f"digits a second, {chosen.on}", loc="left")
    names = {"queue": "waits for another rank", "lock": "waits for the lock"}
    seen = {span.category for span in shown.spans} - {"hold"}
    plots.legend(fig, [category for category in plots.COLORS if category in seen], names)
    return fig


def window(trace: Trace, steps: int) -> Trace:
    """What happened while a rank did about `steps` steps in the middle, cut at both ends."""
    gradients = trace.select(category="compute")
    gradients = Trace(span for span in gradients.spans if span.name != "update")
    each = len(gradients) / len(gradients.lanes)  # steps of one rank
    length = (gradients.end - gradients.start) * min(1, steps / each)
    start = int((gradients.start + gradients.end - length) / 2)
    end = int(start + length)
    return Trace(
        span._replace(start=max(span.start, start), end=min(span.end, end))
        for span in trace.spans
        if span.start < end and start < span.end
    )
