"""A recurrent network and a decoder learn the same characters; an encoder learns hidden ones.

All have about as many parameters. What one has learnt from much text is a start for less text.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import nn

from utils.core import plots
from utils.core.experiment import Range, experiment
from utils.core.workers import intra_op
from utils.llm.architectures import characters
from utils.llm.architectures.learning import (
    Curve,
    Pupil,
    draw,
    hidden_character,
    learn,
    next_character,
)
from utils.llm.architectures.networks import Encoder, Recurrent, make
from utils.llm.decoder import Config, Decoder

TINY = Config(
    characters.SIZE, layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=96
)
COLORS = {
    "RNN (GRU)": plots.ORANGE,
    "Transformer (decoder)": plots.BLUE,
    "causal: the next": plots.BLUE,
    "masked: the hidden": plots.GREEN,
    "pretrained": plots.GREEN,
    "from scratch": plots.VERMILION,
}


@dataclass(frozen=True)
class Race:
    """Trained models and their curves by name; `unigram` is what letter counts alone reach."""

    models: dict[str, nn.Module]
    curves: dict[str, Curve]
    unigram: float


@experiment
def run(
    steps: Annotated[int, Range(20, 3000, 20, label="training steps")] = 120,
    length: Annotated[int, Range(16, 256, 16, label="characters a window")] = 64,
) -> Race:
    """Train both on the same windows of about 1000 characters a step, each on one thread."""
    text = characters.manual()
    exam = text.exam(24, length + 1)
    pupils = {
        "RNN (GRU)": _causal(make(Recurrent, TINY), text, length, exam),
        "Transformer (decoder)": _causal(make(Decoder, TINY), text, length, exam),
    }
    return _race(pupils, steps, text)


def _causal(model: nn.Module, text: characters.Text, length: int, exam: torch.Tensor) -> Pupil:
    dice, count = torch.Generator().manual_seed(0), max(1, 1024 // length)
    return Pupil(
        model,
        lambda: next_character(model, text.windows(count, length + 1, dice)),
        lambda: next_character(model, exam),
    )


@experiment
def objectives(
    steps: Annotated[int, Range(20, 3000, 20, label="training steps")] = 140,
) -> Race:
    """The same blocks, with the mask and next characters, and without it and hidden ones."""
    text, length = characters.manual(), 64
    exam, dice = text.exam(24, length + 1), torch.Generator().manual_seed(0)
    causal, masked = make(Decoder, TINY), make(Encoder, TINY)
    pupils = {
        "causal: the next": _causal(causal, text, length, exam),
        "masked: the hidden": Pupil(
            masked,
            lambda: hidden_character(masked, text.windows(1024 // length, length, dice), dice),
            lambda: hidden_character(masked, exam, torch.Generator().manual_seed(2)),
        ),
    }
    return _race(pupils, steps, text)


def fine_tune(pretrained: nn.Module, text: characters.Text, steps: int = 60) -> Race:
    """Train a copy of a decoder, and a new one of the same shape, on the same (little) text."""
    exam = text.exam(16, 65)
    pupils = {
        "pretrained": _causal(copy.deepcopy(pretrained), text, 64, exam),
        "from scratch": _causal(make(Decoder, TINY), text, 64, exam),
    }
    return _race(pupils, steps, text)


def _race(pupils: Mapping[str, Pupil], steps: int, text: characters.Text) -> Race:
    with intra_op(1):  # more threads would cost more than they bring
        curves = learn(pupils, steps, rate=0.012)
    models = {name: pupil.model for name, pupil in pupils.items()}
    return Race(models, curves, text.unigram_bits)


def plot(result: Race) -> plots.Picture:
    """What each knows of held-out text, after so many steps and after so many seconds."""
    fig, axes = plots.figure(10, 3.5, cols=2, sharey=True)
    for ax, by in zip(axes, ("steps", "seconds"), strict=True):
        draw(ax, result.curves, COLORS, by)
        ax.axhline(result.unigram, color=plots.GREY, linestyle="--", linewidth=1)
    axes[0].annotate(
        "letter counts alone", (1, result.unigram), xycoords=("axes fraction", "data"),
        ha="right", va="bottom", color=plots.GREY, fontsize=8,
    )  # fmt: skip
    axes[0].set_ylabel("bits a held-out character", fontsize=9)
    axes[1].legend(frameon=False, fontsize=9)
    return fig
