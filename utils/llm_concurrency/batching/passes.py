"""What a pass costs, by the tokens in it: of one prompt, or one of each of many sequences.

Whosesoever they are, the weights are read once. So a pass for several tokens takes hardly longer
than a pass for one, until arithmetic takes longer than reading.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch

from utils.core import bench, plots
from utils.core.bench import Sample
from utils.core.experiment import Range, experiment
from utils.deep_learning.serving.service import log_scale
from utils.llm import weights
from utils.llm_concurrency.engine.blocks import BlockPool
from utils.llm_concurrency.engine.model import PagedModel
from utils.llm_concurrency.engine.request import Request
from utils.llm_concurrency.engine.scheduler import Work
from utils.llm_concurrency.engine.sequence import Sequence
from utils.llm_concurrency.parallel.prompts import prompts

SIZE = 16  # tokens of a block


@dataclass(frozen=True)
class Passes:
    """Seconds of a pass, by its tokens; `said[n]`: the next token of each of n sequences."""

    prefill: dict[int, Sample]
    decode: dict[int, Sample]
    said: dict[int, list[int]]

    def rate(self, phase: Literal["prefill", "decode"], tokens: int) -> float:
        """Tokens a second."""
        return tokens / getattr(self, phase)[tokens].median


@experiment
def run(
    sequences: Literal[4, 8, 16, 32, 64] = 32,
    prompt: Literal[32, 64, 128, 256] = 128,
    past: Annotated[int, Range(2, 128, label="tokens each sequence has")] = 8,
    repeats: Annotated[int, Range(1, 9)] = 2,
) -> Passes:
    """Time both kinds of pass in turns, of 1, 2, 4 … tokens (a prompt: 1, 4, 16 …)."""
    decoder = weights.smollm2()
    pool = BlockPool(-(-past // SIZE) * sequences + -(-prompt // SIZE), SIZE, share=False)
    model = PagedModel(decoder, pool.count, SIZE)
    text = sum(prompts(8), []) * (sequences + prompt)
    batch = [_planned(number, text[7 * number :][:past], pool) for number in range(sequences)]
    model.scores([Work(one, 0, past - 1) for one in batch])  # all but the newest is in the cache
    reader = _planned(sequences, text[:prompt], pool)
    said: dict[int, list[int]] = {}

    def decode(count: int) -> None:
        scores = model.scores([Work(one, past - 1, 1) for one in batch[:count]])
        said[count] = scores.argmax(-1).tolist()

    def prefill(count: int) -> torch.Tensor:
        return model.scores([Work(reader, 0, count)])

    sizes = {
        prefill: [size for size in (1, 4, 16, 64, 256) if size < prompt] + [prompt],
        decode: [2**power for power in range(sequences.bit_length())],
    }
    works = {(kind, n): partial(kind, n) for kind, counts in sizes.items() for n in counts}
    times = bench.compare(works, repeats=repeats, warmup=0)
    return Passes(*({n: times[kind, n] for n in sizes[kind]} for kind in (prefill, decode)), said)


def _planned(number: int, tokens: list[int], pool: BlockPool) -> Sequence:
    """A sequence with memory for all of its tokens."""
    sequence = Sequence(number, Request(tuple(tokens)))
    sequence.grow(pool, len(tokens))
    return sequence


def plot(result: Passes) -> plots.Picture:
    """Left how long a pass takes; right tokens a second."""
    fig, (left, right) = plots.figure(9.5, 3.6, cols=2)
    names = {"prefill": "of one prompt", "decode": "one of each sequence"}
    for phase, name in names.items():
        samples = getattr(result, phase)
        rates = [result.rate(phase, tokens) for tokens in samples]
        values = [1e3 * sample.median for sample in samples.values()]
        color = plots.color(phase)
        left.plot(list(samples), values, "o-", color=color, label=f"{phase}: {name}")
        right.plot(list(samples), rates, "o-", color=color)
    left.set_ylim(0)
    left.set_title("milliseconds a pass", loc="left")
    right.set_title("tokens a second", loc="left")
    log_scale(right, "y")
    left.legend(frameon=False, fontsize=9)
    for ax in (left, right):
        log_scale(ax, "x")
        ax.set_xlabel("tokens in the pass", fontsize=9)
    return fig
