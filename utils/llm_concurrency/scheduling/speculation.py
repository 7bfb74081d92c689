"""Guessing on the real model: how many guesses come true, and what that is worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.core.trace import now
from utils.llm import tokens, weights
from utils.llm_concurrency.engine.blocks import BlockPool
from utils.llm_concurrency.engine.core import Core, ModelRunner, Proposer
from utils.llm_concurrency.engine.model import PagedModel
from utils.llm_concurrency.engine.request import Request
from utils.llm_concurrency.engine.scheduler import Scheduler
from utils.llm_concurrency.engine.sequence import Sequence
from utils.llm_concurrency.engine.speculate import DraftModel, PromptLookup, with_layers

LIST = "mutex, semaphore, barrier, condition, latch, event, pipe, queue, ring, pool"
QUESTIONS = {
    "copy": f"Repeat this list word for word, twice: {LIST}",
    "free": "Why is the sky blue?",
}
SIZE = 16


@dataclass(frozen=True)
class Guessing:
    """One answer with guesses, and the same without. `steps`: tokens that each pass gave."""

    way: str
    text: str
    steps: tuple[int, ...]
    drafted: int
    accepted: int
    seconds: float
    plain_seconds: float
    same: bool  # token for token

    @property
    def rate(self) -> float:
        """Acceptance rate: accepted ÷ drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def length(self) -> float:
        """Acceptance length: mean tokens of a pass."""
        return sum(self.steps) / len(self.steps)


@experiment
def guess(
    question: Literal["copy", "free"] = "copy",
    way: Literal["prompt lookup", "fewer layers"] = "prompt lookup",
    count: Annotated[int, Range(0, 7, label="guesses")] = 4,
    keep: Annotated[int, Range(1, 29, label="layers that guess")] = 24,
    limit: Annotated[int, Range(8, 96, 8, label="tokens")] = 32,
) -> Guessing:
    """Answer one question with guesses and without, greedily."""
    decoder, vocabulary = weights.smollm2(), tokens.smollm2()
    request = Request(tuple(vocabulary.chat(QUESTIONS[question])), limit, ignore_end=True)
    blocks = -(-request.length // SIZE) + 1
    proposer: Proposer = PromptLookup(count)
    if way == "fewer layers":
        # The first ones, and the last, which the head has learnt to listen to.
        few = with_layers(decoder, [*range(keep), decoder.config.layers - 1])
        proposer = DraftModel(PagedModel(few, blocks, SIZE), blocks, SIZE, count)
    plain, plain_seconds, _ = _answer(PagedModel(decoder, blocks, SIZE), blocks, request, None)
    core, seconds, steps = _answer(PagedModel(decoder, blocks, SIZE), blocks, request, proposer)
    sequence, reference = core[1], plain[1]
    return Guessing(
        way,
        vocabulary.decode(sequence.generated),
        steps,
        core[0].drafted,
        core[0].accepted,
        seconds,
        plain_seconds,
        sequence.generated == reference.generated,
    )


def _answer(
    model: PagedModel, blocks: int, request: Request, proposer: Proposer | None
) -> tuple[tuple[Core, Sequence], float, tuple[int, ...]]:
    """The engine's core after it has answered; seconds of decoding; tokens of each pass."""
    scheduler = Scheduler(BlockPool(blocks, SIZE, share=False), slots=1)
    core, sequence = Core(ModelRunner(model), scheduler, proposer=proposer), Sequence(0, request)
    core.add(sequence)
    core.step()
    start, steps = now(), []
    while not scheduler.idle:
        checkpoint(len(sequence.generated), request.limit, "tokens")
        steps += [len(advance.drawn.tokens) for advance in core.step()]
    return (core, sequence), (now() - start) / 1e9, tuple(steps)


def plot(result: Guessing) -> plots.Picture:
    """A bar a pass, as high as the tokens that it gave."""
    fig, ax = plots.figure(9, 2.6)
    colors = [plots.GREEN if tokens > 1 else plots.PAPER_GREY for tokens in result.steps]
    ax.bar(range(len(result.steps)), result.steps, color=colors, width=0.9)
    ax.axhline(1, color=plots.INK, linewidth=0.8)
    ax.set_xlabel("passes of the model", fontsize=9)
    ax.set_ylabel("tokens", fontsize=9)
    speed = result.plain_seconds / result.seconds
    rate = f"{100 * result.rate:.0f} % of {result.drafted} guesses accepted"
    ax.set_title(
        f"{result.way}: {rate}, {result.length:.2f} tokens a pass, {speed:.2f} × as fast",
        loc="left",
        fontsize=10,
    )
    return fig
