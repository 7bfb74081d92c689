"""Where memory ends: weights, and a cache that grows with every token of every sequence.

    cache = sequences · tokens · layers · 2 · kv_heads · head_dim · bytes of a number

Nobody knows how long an answer will be. To reserve the longest possible row for each sequence is
simple and wastes most of it; blocks of a few tokens waste less than one block a sequence. Source:
Kwon et al., "Efficient Memory Management for LLM Serving with PagedAttention", arXiv:2309.06180.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from utils.core import plots
from utils.core.experiment import Range, experiment
from utils.llm.decoder import Config

BLOCK = 16  # tokens
GIB = 2**30


@dataclass(frozen=True)
class Model:
    """`weights` in bytes, and bytes of a number in the cache."""

    config: Config
    weights: float
    number: int


LLAMA = Config(32000, 32, 4096, 32, 32, 128, 11008, 4096, tied=False)
MODELS = {
    "SmolLM2-135M, float32": Model(Config(), 538e6, 4),
    "Llama 2 7B, bfloat16": Model(LLAMA, 13.5e9, 2),  # arXiv:2307.09288 and its config.json
}
Name = Literal["SmolLM2-135M, float32", "Llama 2 7B, bfloat16"]


def token_bytes(config: Config, number: int) -> int:
    """Bytes that one token of one sequence takes in the cache."""
    return 2 * config.layers * config.kv_heads * config.head_dim * number


def room(model: Model, budget: float) -> int:
    """Tokens of cache that fit beside the weights into `budget` bytes; 0 if none do."""
    return max(0, int(budget - model.weights) // token_bytes(model.config, model.number))


def blocks(length: int) -> int:
    """Tokens that whole blocks take for a sequence of `length`."""
    return -(-length // BLOCK) * BLOCK


def admitted(lengths: Iterable[int], tokens: int) -> int:
    """How many sequences, in their order, fit if each takes so many tokens."""
    return int((np.cumsum(list(lengths)) <= tokens).sum())


@dataclass(frozen=True)
class Budget:
    """Sequences that fit at once by how memory is given out; `lengths` are those they reach."""

    name: str
    context: int
    tokens: int  # room
    lengths: tuple[int, ...]
    fitting: dict[str, int]

    @property
    def used(self) -> float:
        """Share of a row reserved for `context` tokens that is ever used."""
        return float(np.mean(self.lengths)) / self.context


@experiment
def run(
    model: Name = "SmolLM2-135M, float32",
    gib: Annotated[float, Range(0.5, 80, 0.5, label="GiB for weights and cache")] = 2,
    context: Annotated[int, Range(256, 8192, 256, label="longest context")] = 2048,
    mean: Annotated[int, Range(32, 2048, 32, label="tokens on average")] = 256,
) -> Budget:
    """Admit sequences until memory is full, each of a random length."""
    tokens = room(MODELS[model], gib * GIB)
    dice = np.random.default_rng(0)
    count = max(64, 4 * tokens // min(mean, context))
    spread = 0.8  # of the logarithm: many short ones, some very long
    drawn = dice.lognormal(np.log(mean) - spread**2 / 2, spread, count)
    lengths = tuple(int(length) for length in np.clip(drawn, 1, context).round())
    fitting = {
        "a whole row each": admitted([context] * count, tokens),
        f"blocks of {BLOCK}": admitted(map(blocks, lengths), tokens),
        "no waste at all": admitted(lengths, tokens),
    }
    return Budget(model, context, tokens, lengths, fitting)


def plot(result: Budget) -> plots.Picture:
    """Which batches and contexts fit, and how many sequences do by how memory is given out."""
    fig, (ax, bars) = plots.figure(9.6, 3.3, cols=2)
    contexts = np.geomspace(128, 8192, 80)
    sequences = np.maximum(result.tokens / contexts, 1e-3)
    ax.fill_between(contexts, 1e-3, sequences, color=plots.GREEN, alpha=0.35, linewidth=0)
    ax.plot(contexts, sequences, color=plots.GREEN)
    ax.axvline(result.context, color=plots.ORANGE, linewidth=2, label="longest context")
    ax.set(xscale="log", yscale="log", xlim=(128, 8192))
    ax.set_ylim(0.5, max(20, 1.5 * sequences[0]))
    ax.set_xticks([128, 512, 2048, 8192], ["128", "512", "2048", "8192"])
    ax.minorticks_off()
    ax.set_xlabel("tokens in each sequence", fontsize=9)
    ax.set_ylabel("sequences", fontsize=9)
    fits = f"{result.tokens:,} tokens of cache fit" if result.tokens else "weights alone do not fit"
    ax.set_title(fits, loc="left")
    ax.legend(frameon=False, fontsize=9)
    colors = (plots.VERMILION, plots.BLUE, plots.GREY)
    drawn = bars.barh(list(result.fitting), list(result.fitting.values()), color=colors)
    bars.bar_label(drawn, fontsize=9, padding=3)
    bars.invert_yaxis()
    bars.set_xlim(0, 1.15 * max(1, *result.fitting.values()))
    bars.grid(visible=False)
    bars.set_title(f"sequences at once; a row is used to {100 * result.used:.0f} %", loc="left")
    return fig
