"""Tensor parallel decoding by arithmetic: what share of a step is communication?

A step reads each rank's part of the weights, and adds up `batch` vectors twice a layer:

    compute = max(bytes ÷ memory rate, operations ÷ arithmetic rate) ÷ ranks
    communication = 2 · layers · (α · steps + β · bytes on the longest chain)

with ring or tree, whichever is faster (`collectives.costs`). Sources: Shoeybi et al.,
"Megatron-LM", arXiv:1909.08053; Pope et al., "Efficiently Scaling Transformer Inference",
arXiv:2211.05102.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from utils.core import plots
from utils.core.experiment import Range, experiment
from utils.deep_learning.collectives.costs import Model as Link

RANKS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Shape:
    """What the arithmetic needs of a model."""

    layers: int
    hidden: int
    parameters: float
    bytes: int  # a number


MODELS = {
    "SmolLM2-135M, float32": Shape(30, 576, 134.5e6, 4),
    "Llama 2 7B, bfloat16": Shape(32, 4096, 6.74e9, 2),  # arXiv:2307.09288 and its config.json
}
Name = Literal["SmolLM2-135M, float32", "Llama 2 7B, bfloat16"]


@dataclass(frozen=True)
class Machine:
    """What each rank has to itself: bytes and operations a second."""

    memory: float
    arithmetic: float


def computing(shape: Shape, ranks: int, batch: int, machine: Machine) -> float:
    """Seconds of a step without messages (and without what reading the cache takes)."""
    reading = shape.parameters * shape.bytes / machine.memory
    return max(reading, 2 * shape.parameters * batch / machine.arithmetic) / ranks


def talking(shape: Shape, ranks: int, batch: int, link: Link) -> float:
    """Seconds of a step's all-reduces."""
    if ranks == 1:
        return 0.0
    size = batch * shape.hidden * shape.bytes
    return 2 * shape.layers * min(link.seconds(how, ranks, size) for how in ("ring", "tree"))


@dataclass(frozen=True)
class Shares:
    """Seconds of a step for each of `RANKS`."""

    name: str
    computing: tuple[float, ...]
    talking: tuple[float, ...]


@experiment
def run(
    model: Name = "SmolLM2-135M, float32",
    batch: Annotated[int, Range(1, 256)] = 1,
    alpha: Annotated[float, Range(0.5, 200, 0.5, label="α, µs a message")] = 20,
    rate: Annotated[float, Range(0.5, 500, 0.5, label="link, GB/s")] = 2,
    memory: Annotated[int, Range(5, 4000, 5, label="memory, GB/s a rank")] = 15,
    arithmetic: Annotated[float, Range(0.05, 1000, 0.05, label="TFLOP/s a rank")] = 0.1,
) -> Shares:
    """Seconds of a step, for one rank to 32."""
    shape, link = MODELS[model], Link(alpha / 1e6, 1e-9 / rate)
    each = Machine(memory * 1e9, arithmetic * 1e12)
    return Shares(
        model,
        tuple(computing(shape, ranks, batch, each) for ranks in RANKS),
        tuple(talking(shape, ranks, batch, link) for ranks in RANKS),
    )


def plot(result: Shares) -> plots.Picture:
    """A step's two parts over the ranks."""
    fig, ax = plots.figure(8, 3.2)
    names = [str(ranks) for ranks in RANKS]
    below = [1e3 * seconds for seconds in result.computing]
    above = [1e3 * seconds for seconds in result.talking]
    ax.bar(names, below, color=plots.color("compute"), label="computing")
    tops = ax.bar(names, above, bottom=below, color=plots.color("communicate"), label="all-reduces")
    shares = [f"{100 * b / (a + b):.0f} %" for a, b in zip(below, above, strict=True)]
    ax.bar_label(tops, shares, fontsize=9, padding=2)
    ax.set_xlabel("ranks (%: communication's share)", fontsize=9)
    ax.set_ylabel("ms a step", fontsize=9)
    ax.set_title(result.name, loc="left")
    ax.set_ylim(0, 1.15 * max(a + b for a, b in zip(below, above, strict=True)))
    ax.legend(frameon=False, fontsize=9)
    return fig
