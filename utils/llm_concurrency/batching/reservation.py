"""How many answers fit into a memory: room for the longest possible one, or blocks as needed.

A contiguous cache must be given out when a request starts, and nobody knows how long its answer
will be. Blocks are given out when they are needed; only the last one of each table is not full.

Source: Kwon et al. (arXiv:2309.06180), section 3.1: memory challenges in LLM serving.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Annotated

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.llm_concurrency.engine.blocks import BlockPool, OutOfBlocks
from utils.llm_concurrency.engine.request import Request
from utils.llm_concurrency.engine.sequence import Sequence

PROMPTS = 32, 256  # tokens, the fewest and the most
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Held:
    """Sequences in one memory at one moment: tokens that each holds, and room that it has."""

    memory: int
    tokens: list[int]
    room: list[int]

    @property
    def wasted(self) -> float:
        """Share of the room given out that holds nothing."""
        return 1 - sum(self.tokens) / sum(self.room)


@dataclass(frozen=True)
class Fit:
    """Held in either way; `wasted` by size of a block, paged."""

    size: int
    reserved: Held
    paged: Held
    wasted: dict[int, float]


def in_flight(number: int, limit: int, seed: int) -> tuple[int, int]:
    """Tokens that a sequence has now, and could have in the end.

    Most answers end long before `limit`: their length is exponential, an eighth of it on average.
    """
    dice = random.Random(1000 * seed + number)
    prompt = dice.randint(*PROMPTS)
    answer = min(limit, 1 + int(dice.expovariate(8 / limit)))
    return prompt + dice.randint(1, answer), prompt + limit


def page(memory: int, size: int, limit: int, seed: int) -> Held:
    """Let sequences in until the real tables of the engine find no block."""
    pool, tokens, tables = BlockPool(memory // size, size), [], []
    while True:
        now, _ = in_flight(len(tables), limit, seed)
        sequence = Sequence(len(tables), Request((0,) * now))
        try:
            sequence.grow(pool, now)
        except OutOfBlocks:
            pool.check(tables)
            return Held(memory, tokens, [size * len(table) for table in tables])
        tokens.append(now)
        tables.append(sequence.table)


def reserve(memory: int, limit: int, seed: int) -> Held:
    """Let sequences in while the longest possible answer of the next one fits as well."""
    tokens: list[int] = []
    room: list[int] = []
    while True:
        now, most = in_flight(len(tokens), limit, seed)
        if sum(room) + most > memory:
            return Held(memory, tokens, room)
        tokens.append(now)
        room.append(most)


@experiment
def run(
    memory: Annotated[int, Range(4096, 32768, 1024, label="memory [tokens]")] = 8192,
    limit: Annotated[int, Range(64, 2048, 64, label="longest answer")] = 1024,
    size: Annotated[int, Range(1, 256, label="tokens a block")] = 16,
    seed: Annotated[int, Range(0, 99)] = 0,
) -> Fit:
    """The same sequences, in the same order, into the same memory in both ways."""
    wasted = {}
    for done, one in enumerate(SIZES):
        checkpoint(done, len(SIZES), f"blocks of {one}")
        wasted[one] = page(memory, one, limit, seed).wasted
    return Fit(size, reserve(memory, limit, seed), page(memory, size, limit, seed), wasted)


def plot(result: Fit) -> plots.Picture:
    """Left the memory, sequence after sequence; right the waste by size of a block."""
    fig, (left, right) = plots.figure(10, 3, cols=2, gridspec_kw={"width_ratios": [3, 2]})
    for row, held in enumerate((result.reserved, result.paged)):
        start, edge = 0, 0.5 if len(held.tokens) < 80 else 0
        for tokens, room in zip(held.tokens, held.room, strict=True):
            left.barh(row, room, 0.6, start, color=plots.PAPER_GREY, edgecolor="white", lw=edge)
            left.barh(row, tokens, 0.6, start, color=plots.BLUE, edgecolor="white", lw=edge)
            start += room
        text = f"{len(held.tokens)} sequences, {100 * held.wasted:.1f} % of their room empty"
        left.text(0, row - 0.36, text, fontsize=9, va="bottom")
    left.set_yticks([0, 1], ["reserved", f"blocks of {result.size}"])
    left.set_ylim(1.5, -0.8)
    left.set_xlim(0, result.paged.memory)
    left.grid(visible=False)
    left.set_xlabel("tokens of memory", fontsize=9)
    left.set_title("blue: keys and values; grey: given out and empty", loc="left")
    right.plot(range(len(SIZES)), [100 * value for value in result.wasted.values()], "o-",
               color=plots.BLUE, label="blocks")  # fmt: skip
    reserved = 100 * result.reserved.wasted
    right.axhline(reserved, color=plots.GREY, linestyle="--", label="reserved")
    right.set_xticks(range(len(SIZES)), map(str, SIZES))
    right.set_ylim(0, 100)
    right.set_xlabel("tokens a block", fontsize=9)
    right.set_title("% of the room empty", loc="left")
    right.legend(frameon=False, fontsize=9)
    return fig
