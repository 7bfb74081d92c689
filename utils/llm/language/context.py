"""What context is worth: the loss of a token by how many tokens stand before it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import numpy as np

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.llm import tokens, weights
from utils.llm.language import texts
from utils.llm.language.perplexity import BEGIN, losses

LENGTH = 64  # tokens of a window


@dataclass(frozen=True)
class Context:
    """Loss in nats by window and position, (windows, LENGTH): of a text, and shuffled."""

    text: np.ndarray
    shuffled: np.ndarray


@experiment
def run(
    windows: Annotated[int, Range(2, 32)] = 6,
    seed: Annotated[int, Range(0, 20)] = 0,
) -> Context:
    """Windows from everywhere in Python's manual, and the words of each in random order.

    The token at position i of a window has exactly i tokens before it, so one pass through the
    model measures every length of context at once.
    """
    vocabulary, model, dice = tokens.smollm2(), weights.smollm2(), random.Random(seed)
    begin, manual = vocabulary.encode(BEGIN), texts.documentation().split()
    found = []
    for window in range(windows):
        start = dice.randrange(len(manual) - LENGTH)
        words = manual[start : start + LENGTH]  # a word is at least a token, so they are enough
        for order in (words, dice.sample(words, len(words))):
            checkpoint(len(found), 2 * windows, f"window {window + 1}")
            row = vocabulary.encode(" ".join(order))[:LENGTH]
            found.append(losses(model, [*begin, *row]).numpy())
    return Context(np.stack(found[0::2]), np.stack(found[1::2]))


def plot(result: Context) -> plots.Picture:
    """Means over positions 0, 1, 2–3, 4–7, …: with more context there are more tokens in a mean."""
    edges = [0, 1, *(2**power for power in range(1, 7))]
    names = [f"{low}" if high - low == 1 else f"{low}–{high - 1}" for low, high in pairwise(edges)]
    fig, ax = plots.figure(8, 3.4)
    for name, values, color in (
        ("words shuffled", result.shuffled, plots.ORANGE),
        ("the text", result.text, plots.BLUE),
    ):
        means = [values[:, low:high].mean() for low, high in pairwise(edges)]
        ax.plot(names, means, "o-", color=color)
        ax.annotate(name, (len(names) - 1, means[-1]), (8, 0), textcoords="offset points",
                    va="center", color=color)  # fmt: skip
    ax.set_ylim(bottom=0)
    ax.set_xlim(right=len(names) + 0.4)
    ax.set_xlabel("tokens before the one to predict", fontsize=9)
    ax.set_ylabel("loss (nats a token)", fontsize=9)
    return fig
