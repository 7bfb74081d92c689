"""Several answers to one prompt: they share its blocks until they write (copy on write).

The prompt is computed once. Every answer has a table of its own, and all tables name the same
blocks. A full block never changes; who has to write into the last, unfinished one, copies it first
unless nobody else holds it any more.

Source: Kwon et al. (arXiv:2309.06180), section 4.4: parallel sampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.llm import tokens, weights
from utils.llm.sampling import Sampling
from utils.llm_concurrency.batching import drive
from utils.llm_concurrency.engine.blocks import BlockPool
from utils.llm_concurrency.engine.core import Core, ModelRunner
from utils.llm_concurrency.engine.model import PagedModel
from utils.llm_concurrency.engine.request import Request
from utils.llm_concurrency.engine.scheduler import Scheduler
from utils.llm_concurrency.engine.sequence import Sequence

SIZE = 8  # tokens of a block
QUESTION, SYSTEM = "Invent a name for my cat.", "Be brief, please."
Tables = list[list[int]]


@dataclass(frozen=True)
class Forked:
    """The tables at three moments; the answers, forked and as requests of their own."""

    prompt: int
    moments: dict[str, Tables]
    answers: list[list[int]]
    alone: list[list[int]]

    def saved(self, moment: str) -> int:
        """Blocks that it would take in addition if nobody shared."""
        tables = self.moments[moment]
        return sum(map(len, tables)) - len(set().union(*tables))


@experiment
def run(
    answers: Annotated[int, Range(1, 8)] = 4,
    length: Annotated[int, Range(3, 48, label="tokens an answer")] = 10,
    temperature: Annotated[float, Range(0, 2, 0.1)] = 0.9,
) -> Forked:
    """One question, several answers: with the prompt shared, and each as a request of its own."""
    prompt = tokens.smollm2().chat(QUESTION, system=SYSTEM)
    how = Sampling(temperature)
    requests = [Request(prompt, length, how, seed=n, ignore_end=True) for n in range(answers)]
    count = answers * -(-requests[0].length // SIZE)
    pool = BlockPool(count, SIZE, share=False)  # by fork alone, not by finding
    model = PagedModel(weights.smollm2(), count, SIZE)
    core = Core(ModelRunner(model), Scheduler(pool, slots=answers))
    parent = Sequence(0, requests[0])
    core.add(parent)
    core.step()  # computes the prompt
    everybody = [parent, *(parent.fork(n, requests[n], pool) for n in range(1, answers))]
    for twin in everybody[1:]:
        core.add(twin)
    moments = {"forked": _tables(everybody)}
    while not core.scheduler.idle:
        checkpoint(len(parent.generated), 2 * length, "forked")
        core.step()
        pool.check(_tables(everybody))
        moments.setdefault("after a step", _tables(everybody))
        if parent.left:
            moments["near the end"] = _tables(everybody)
    alone = drive.serve(core, requests)
    said, again = ([one.generated for one in row] for row in (everybody, alone))
    return Forked(len(prompt), moments, said, again)


def _tables(everybody: list[Sequence]) -> Tables:
    return [list(one.table) for one in everybody]


def plot(result: Forked) -> plots.Picture:
    """A row an answer: its table, with the number of each block; blue if others hold it as well."""
    rows = len(result.answers)
    fig, axes = plots.figure(10.5, 1.2 + 0.35 * rows, cols=len(result.moments), sharey=True)
    longest = max(map(len, result.moments["near the end"]))
    for ax, (moment, tables) in zip(axes, result.moments.items(), strict=True):
        for row, table in enumerate(tables):
            for place, block in enumerate(table):
                shared = sum(block in other for other in tables) > 1
                color = plots.color("running" if shared else "decode")
                ax.barh(row, 0.92, 0.84, place - 0.46, color=color)
                ax.text(place, row, str(block), ha="center", va="center", color="w", fontsize=8)
        ax.set_xlim(-0.6, longest - 0.4)
        ax.set_xticks(range(longest))
        ax.set_xlabel(f"place in the table ({SIZE} tokens each)", fontsize=9)
        ax.set_title(f"{moment}: {result.saved(moment)} blocks saved", loc="left")
        ax.grid(visible=False)
    axes[0].set_ylim(rows - 0.4, -0.6)
    axes[0].set_yticks(range(rows), [f"answer {number}" for number in range(rows)])
    names = {"running": "shared by several", "decode": "of this answer alone"}
    plots.legend(fig, list(names), names)
    return fig
