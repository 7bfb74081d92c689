"""Several questions about one document: what has been computed for one need not be for the next.

A block is known by its tokens and by all before them. So two prompts share what is identical *from
the beginning*: one other word in front, and nothing is.

Sources: Zheng et al., "SGLang" (arXiv:2312.07104); Kwon et al. (arXiv:2309.06180), section 4.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Annotated, Literal

from utils.core import plots
from utils.core.experiment import Range, experiment
from utils.llm import tokens, weights
from utils.llm.language.texts import documentation
from utils.llm_concurrency.batching import drive
from utils.llm_concurrency.engine import metrics
from utils.llm_concurrency.engine.blocks import BlockPool
from utils.llm_concurrency.engine.core import Core, ModelRunner, Runner
from utils.llm_concurrency.engine.metrics import Served
from utils.llm_concurrency.engine.model import PagedModel
from utils.llm_concurrency.engine.request import Request
from utils.llm_concurrency.engine.scheduler import Scheduler
from utils.llm_concurrency.parallel.prompts import QUESTIONS
from utils.llm_concurrency.scheduling.virtual import Cost, VirtualRunner

SIZE = 16  # tokens of a block
Order = Literal["document, question", "question, document", "time, document, question"]
ORDERS: tuple[Order, ...] = Order.__args__  # type: ignore[attr-defined]


def ask(number: int, length: int, order: Order) -> Request:
    """A question about the first `length` tokens of Python's manual; the answer has two tokens."""
    vocabulary = tokens.smollm2()
    parts = {
        "document": vocabulary.encode(documentation()[: 16 * length])[:length],
        "question": vocabulary.encode(f"\n{QUESTIONS[number % len(QUESTIONS)]}\n"),
        "time": vocabulary.encode(f"It is {number + 10}:00.\n"),
    }
    prompt = [token for part in order.split(", ") for token in parts[part]]
    return Request(tuple(prompt), 2, ignore_end=True)


@dataclass(frozen=True)
class Asked:
    """Requests one after another, with the prefix cache and without."""

    order: Order
    served: dict[bool, list[Served]]
    answers: dict[bool, list[list[int]]]

    @property
    def hit_rate(self) -> float:
        """Cached ÷ prompt tokens."""
        return metrics.prefix_hit_rate(self.served[True])

    @property
    def ratio(self) -> float:
        """TTFT without ÷ with: medians, the first request (nothing is known yet) left out."""
        without, known = (median(metrics.ttft(self.served[share][1:])) for share in (False, True))
        return without / known


def memory(requests: list[Request]) -> int:
    """Blocks for all of them, nothing shared: no content is ever given up."""
    return sum(-(-request.length // SIZE) for request in requests)


def one_by_one(
    runner: Runner, requests: list[Request], *, share: bool
) -> tuple[list[Served], list[list[int]]]:
    """Each is sent when the one before is answered, so nobody waits in a queue."""
    pool = BlockPool(memory(requests), SIZE, share)
    core = Core(runner, Scheduler(pool, budget=2048))
    everybody = [drive.serve(core, [one], first=n)[0] for n, one in enumerate(requests)]
    return [Served.of_sequence(one) for one in everybody], [one.generated for one in everybody]


def count(order: Order, questions: int, length: int) -> float:
    """The hit rate alone, without a model: the engine's own prefix cache."""
    requests = [ask(number, length, order) for number in range(questions)]
    served, _ = one_by_one(VirtualRunner(Cost(1, 0)), requests, share=True)
    return metrics.prefix_hit_rate(served)


@experiment
def run(
    questions: Annotated[int, Range(2, 8)] = 3,
    length: Annotated[int, Range(16, 1024, label="tokens of the document")] = 500,
    order: Order = "document, question",
) -> Asked:
    """The real model: all questions without a prefix cache, then all with it."""
    requests = [ask(number, length, order) for number in range(questions)]
    runner = ModelRunner(PagedModel(weights.smollm2(), memory(requests), SIZE))
    runs = {share: one_by_one(runner, requests, share=share) for share in (False, True)}
    served, answers = ({share: run[part] for share, run in runs.items()} for part in (0, 1))
    return Asked(order, served, answers)


def plot(result: Asked) -> plots.Picture:
    """Left TTFT of each request; right what of each prompt was found."""
    fig, (left, right) = plots.figure(9.5, 3.2, cols=2)
    rows = range(len(result.served[True]))
    for share, color in ((False, plots.GREY), (True, plots.ORANGE)):
        values = [1e3 * one.ttft for one in result.served[share]]
        places = [row + 0.4 * (share - 0.5) for row in rows]
        name = "with prefix cache" if share else "without"
        bars = left.bar(places, values, 0.38, color=color, label=name)
        left.bar_label(bars, fmt="%.0f", fontsize=8)
    cached = [one.cached for one in result.served[True]]
    computed = [one.prompt - one.cached for one in result.served[True]]
    right.bar(rows, cached, 0.6, color=plots.BLUE, label="found")
    right.bar(rows, computed, 0.6, bottom=cached, color=plots.ORANGE, label="computed")
    left.set_title("time to first token [ms]", loc="left")
    rate = f"prefix hit rate {100 * result.hit_rate:.0f} %"
    right.set_title(f"tokens of the prompt: {rate}", loc="left")
    for ax in (left, right):
        ax.set_xticks(rows, [f"{row + 1}" for row in rows])
        ax.set_xlabel(f"request ({result.order})", fontsize=9)
        ax.margins(y=0.25)
        ax.legend(frameon=False, fontsize=9, ncols=2, loc="upper right")
    return fig
