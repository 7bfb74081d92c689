"""What more threads within one operation buy: for the prompt, and for the tokens after it.

A prompt of n tokens uses every weight n times: arithmetic decides. A step that makes one token uses
each weight once, and has to fetch it: memory decides. The roofs are those of this machine
(`machine.ceilings`); source of the model: Williams et al., "Roofline", CACM 2009.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch

from utils.core import bench, machine, plots
from utils.core.bench import Sample
from utils.core.experiment import Range, checkpoint, experiment
from utils.core.workers import intra_op
from utils.llm import weights
from utils.llm.decoder import Cache, Decoder

Phase = Literal["prefill", "decode"]


@dataclass(frozen=True)
class Phases:
    """Seconds by phase and threads, and the roofs: at least so long for the bytes, the sums."""

    tokens: dict[Phase, int]  # that go through the model at once
    threads: tuple[int, ...]
    seconds: dict[tuple[Phase, int], Sample]
    memory: dict[tuple[Phase, int], float]
    arithmetic: dict[tuple[Phase, int], float]

    def gain(self, phase: Phase) -> float:
        """How many times faster with all threads than with one, in the median."""
        first, last = self.threads[0], self.threads[-1]
        return bench.ratio(self.seconds[phase, first], self.seconds[phase, last]).median


@torch.inference_mode()
def step(model: Decoder, tokens: torch.Tensor, cache: Cache, past: int) -> torch.Tensor:
    """Scores after the last of `tokens`, (batch, new), that follow `past` cached ones."""
    cache.length = past
    return model.lm_head(model.hidden(tokens, cache)[:, -1])


def operations(model: Decoder, tokens: int, batch: int) -> int:
    """Multiplications and additions of the matrices: 2 a weight and token, the head once a row."""
    head = model.lm_head.weight.numel()
    blocks = sum(parameter.numel() for parameter in model.layers.parameters())
    return 2 * (blocks * tokens + head * batch)


def size(model: Decoder) -> int:
    """Bytes that every step reads: all weights (the embedding is the head)."""
    return sum(parameter.nbytes for parameter in {*model.parameters()})


@experiment
def run(
    prompt: Annotated[int, Range(16, 256, 16, label="tokens of the prompt")] = 64,
    batch: Annotated[int, Range(1, 16, label="sequences that decode")] = 1,
) -> Phases:
    """Both phases of SmolLM2 with one thread and with all cores, in turns."""
    checkpoint(0, note="loading the model")
    model = weights.smollm2()
    roofs = machine.ceilings(0.6)
    cache = Cache(model.config, batch, prompt + 1)
    inputs: dict[Phase, tuple[torch.Tensor, Cache, int]] = {
        "prefill": (torch.arange(prompt)[None], Cache(model.config, 1, prompt), 0),
        "decode": (torch.arange(batch)[:, None], cache, prompt),
    }
    works, memory, arithmetic = {}, {}, {}
    for phase, given in inputs.items():
        for index, threads in enumerate(roofs.threads):
            works[phase, threads] = partial(_with, threads, model, *given)
            memory[phase, threads] = size(model) / roofs.read[index] / 1e9
            sums = operations(model, given[0].numel(), len(given[0]))
            arithmetic[phase, threads] = sums / roofs.matrix[index] / 1e9
    seconds = bench.compare(works, repeats=3)
    tokens = {phase: given[0].numel() for phase, given in inputs.items()}
    return Phases(tokens, roofs.threads, seconds, memory, arithmetic)


def _with(threads: int, *given: object) -> None:
    with intra_op(threads):
        step(*given)  # type: ignore[arg-type]


def plot(result: Phases) -> plots.Picture:
    """Measured milliseconds of a step, and the two roofs under it."""
    fig, axes = plots.figure(9, 3.2, cols=2)
    for ax, (phase, tokens) in zip(axes, result.tokens.items(), strict=True):
        names = [f"{count} thread" + "s" * (count > 1) for count in result.threads]
        keys = [(phase, count) for count in result.threads]
        medians = [1e3 * result.seconds[key].median for key in keys]
        bars = ax.bar(names, medians, 0.5, color=plots.color(phase), label="measured")
        ax.bar_label(bars, fmt="%.0f", fontsize=9)
        for roof, color, style, what in (
            (result.memory, plots.VERMILION, "-", "its bytes need"),
            (result.arithmetic, plots.INK, ":", "its arithmetic needs"),
        ):
            levels = [1e3 * roof[key] for key in keys]
            left = [place - 0.35 for place in range(len(keys))]
            right = [place + 0.35 for place in range(len(keys))]
            ax.hlines(levels, left, right, color=color, linestyle=style, linewidth=2, label=what)
        ax.set_title(f"{phase}: {tokens} token{'s' * (tokens > 1)} in a step", loc="left")
        ax.set_ylabel("ms a step", fontsize=9)
        ax.margins(y=0.12)
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return fig
