"""Whose is which block, step after step: the engine's own tables while requests come and go.

The tables depend on how many tokens there are and not on which. So no model computes here: every
step counts as a second, and the picture is there at once.

Source: Kwon et al., "Efficient Memory Management for Large Language Model Serving with
PagedAttention" (arXiv:2309.06180).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from matplotlib.colors import ListedColormap

from utils.core import plots
from utils.core.experiment import Range, experiment
from utils.llm_concurrency.batching import drive
from utils.llm_concurrency.batching.race import make_requests
from utils.llm_concurrency.engine.blocks import BlockPool
from utils.llm_concurrency.engine.core import Core
from utils.llm_concurrency.engine.scheduler import Scheduler
from utils.llm_concurrency.engine.sequence import Sequence
from utils.llm_concurrency.scheduling.virtual import Cost, VirtualRunner

NOBODY = -1
OWNERS = (plots.BLUE, plots.ORANGE, plots.GREEN, plots.PURPLE, plots.SKY, plots.VERMILION,
          plots.YELLOW, plots.GREY)  # fmt: skip


@dataclass(frozen=True)
class PoolMap:
    """After each step: the owner of each block, (steps, blocks), and the tokens of each table."""

    size: int
    owners: np.ndarray
    tokens: list[list[int]]
    preempted: int

    @property
    def room(self) -> np.ndarray:
        """Tokens that the blocks in use can hold, after each step."""
        return self.size * (self.owners != NOBODY).sum(1)

    @property
    def filled(self) -> np.ndarray:
        return np.array([sum(row) for row in self.tokens])

    @property
    def wasted(self) -> float:
        """Share of that room, over the run, that held nothing."""
        return 1 - self.filled.sum() / self.room.sum()


@experiment
def run(
    blocks: Annotated[int, Range(16, 96, 4)] = 48,
    size: Annotated[int, Range(3, 32, label="tokens a block")] = 4,
    requests: Annotated[int, Range(1, 24)] = 12,
    slots: Annotated[int, Range(1, 12)] = 6,
    seed: Annotated[int, Range(0, 99)] = 8,
) -> PoolMap:
    """Requests with 16 tokens of prompt and up to 32 of answer, continuously batched."""
    pool = BlockPool(blocks, size, share=False)
    core = Core(VirtualRunner(Cost(1, 0)), Scheduler(pool, slots=slots))
    maps: list[np.ndarray] = []
    tokens: list[list[int]] = []

    def watch(everybody: list[Sequence]) -> None:
        pool.check(one.table for one in everybody)
        maps.append(np.full(blocks, NOBODY))
        for one in everybody:
            maps[-1][one.table] = one.number
        tokens.append([one.computed for one in everybody if one.table])

    served = drive.serve(core, make_requests(requests, 32, seed), watch)
    return PoolMap(size, np.array(maps), tokens, sum(one.preempted for one in served))


def plot(result: PoolMap) -> plots.Picture:
    """Above a row a block, coloured by owner; below what is held and what is filled."""
    fig, (above, below) = plots.figure(
        9.5, 5, rows=2, sharex=True, gridspec_kw={"height_ratios": [3, 1]}
    )
    steps, blocks = result.owners.shape
    colors = np.where(result.owners == NOBODY, 0, 1 + result.owners % len(OWNERS)).T
    look = ListedColormap([plots.LIGHT, *OWNERS])
    above.pcolormesh(np.arange(steps + 1), np.arange(blocks + 1), colors, cmap=look, vmin=0,
                     vmax=len(OWNERS), edgecolors="white",
                     linewidth=0.2 if max(steps, blocks) <= 50 else 0)  # fmt: skip
    label = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none"}
    middle = {"ha": "center", "va": "center"}
    for owner in np.unique(result.owners[result.owners != NOBODY]):
        step, block = np.argwhere(result.owners == owner)[0]
        above.text(step + 0.5, block + 0.5, str(owner), fontsize=6, bbox=label, **middle)
    above.invert_yaxis()
    above.set_ylabel("block", fontsize=9)
    above.grid(visible=False)
    times = f", {result.preempted} times preempted" if result.preempted else ""
    above.set_title(f"a colour and a number: a request (free: light grey){times}", loc="left")
    for what, color, name in ((result.room, plots.PAPER_GREY, "room in blocks that are held"),
                              (result.filled, plots.BLUE, "tokens in them")):  # fmt: skip
        below.stairs(what, range(steps + 1), fill=True, color=color, label=name)
    below.set_ylim(0, 1.6 * result.room.max())
    below.set_title(f"{100 * result.wasted:.1f} % of the room held nothing", loc="left")
    below.set_ylabel("tokens", fontsize=9)
    below.set_xlabel("step", fontsize=9)
    below.legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
    return fig
