"""The engine's heart: schedule, compute, note what came. No threads, and no clock of its own.

The same steps run on a real model and, in `virtual`, on one that only knows what a step costs.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Row
from typing import NamedTuple, Protocol

from utils.core.trace import Recorder, now
from utils.llm_concurrency.engine.model import PagedModel
from utils.llm_concurrency.engine.request import Reason
from utils.llm_concurrency.engine.sampler import Drawn, draw
from utils.llm_concurrency.engine.scheduler import Plan, Scheduler, Work
from utils.llm_concurrency.engine.sequence import Sequence


class Runner(Protocol):
    """Computes a plan: first its copies, then its work. What was drawn, for each work."""

    def run(self, plan: Plan) -> list[Drawn]: ...


class Proposer(Protocol):
    """Guesses how sequences go on, into their `draft`."""

    def propose(self, sequences: Row[Sequence]) -> None: ...


class Advance(NamedTuple):
    """What a step did for one sequence; `ended` says why if it was the last."""

    sequence: Sequence
    drawn: Drawn
    ended: Reason | None


class ModelRunner:
    """A plan on the real model."""

    def __init__(self, model: PagedModel) -> None:
        self.model = model

    def run(self, plan: Plan) -> list[Drawn]:
        for source, target in plan.copies:
            self.model.cache.copy(source, target)
        return draw(plan.work, self.model.scores(plan.work))


class Core:
    """Requests in, tokens out, a step at a time.

    `end` is the token that ends an answer. With a `recorder`, every request is a lane: waiting for
    its turn, then each chunk of its prompt, then each step that gave it tokens.
    """

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        *,
        end: int | None = None,
        proposer: Proposer | None = None,
        clock: Callable[[], int] = now,
        recorder: Recorder | None = None,
    ) -> None:
        self.runner, self.scheduler, self.end, self.proposer = runner, scheduler, end, proposer
        self.clock, self.recorder = clock, recorder
        self.steps = self.drafted = self.accepted = 0

    def add(self, sequence: Sequence) -> None:
        """A new request. TooLong: the memory could never hold it."""
        sequence.arrived = self.clock()
        self.scheduler.add(sequence)

    def step(self) -> list[Advance]:
        """Compute one step. If that raises, its sequences are gone and their memory is back.

        If there is no plan yet, nobody knows whose fault it is: then all are gone.
        """
        start = self.clock()
        concerned = [*self.scheduler.running, *self.scheduler.waiting]
        try:
            if self.proposer is not None:
                self.proposer.propose([one for one in self.scheduler.running if one.decoding])
            plan = self.scheduler.plan()
            concerned = [work.sequence for work in plan.work]
            drawn = self.runner.run(plan)
            self.steps += 1
            end = self.clock()
            for work in plan.work:
                self._record(work, start, end)
            return [self._advance(*pair, end) for pair in zip(plan.work, drawn, strict=True)]
        except BaseException:
            for sequence in concerned:
                self.scheduler.remove(sequence)
            raise

    def _advance(self, work: Work, drawn: Drawn, time: int) -> Advance:
        sequence, pool = work.sequence, self.scheduler.pool
        if not drawn.tokens:  # more of the prompt is to come
            sequence.advance(pool, work.count)
            self.scheduler.policy.computed(sequence, work.count)
            return Advance(sequence, drawn, None)
        right = len(drawn.tokens) - 1  # guesses; the last token is the model's own
        drawn = self._until_end(sequence, drawn)
        self.drafted += len(sequence.draft)
        self.accepted += min(right, len(drawn.tokens))
        sequence.draft = []
        sequence.tokens += drawn.tokens
        sequence.times += [time] * len(drawn.tokens)
        sequence.advance(pool, len(sequence.tokens) - 1 - work.start)  # wrong guesses are void
        self.scheduler.policy.computed(sequence, work.count)
        ended = self._ended(sequence)
        if ended:
            self.scheduler.remove(sequence)
        return Advance(sequence, drawn, ended)

    def _until_end(self, sequence: Sequence, drawn: Drawn) -> Drawn:
        if sequence.request.ignore_end or self.end not in drawn.tokens:
            return drawn
        count = drawn.tokens.index(self.end) + 1
        return Drawn(drawn.tokens[:count], drawn.logprobs[:count])

    def _ended(self, sequence: Sequence) -> Reason | None:
        if sequence.tokens[-1] == self.end and not sequence.request.ignore_end:
            return "stop"
        return "length" if sequence.left == 0 else None

    def _record(self, work: Work, start: int, end: int) -> None:
        if self.recorder is None:
            return
        sequence, lane = work.sequence, f"request {work.sequence.number}"
        since = max(sequence.arrived, sequence.busy)
        if start > since:
            self.recorder.add(lane, "queue", "waits", since, start)
        category = "decode" if sequence.decoding else "prefill"
        self.recorder.add(lane, category, f"{work.count} tokens", start, end, tokens=work.count)
        sequence.busy = end
