"""What the next step computes: the engine's only decision, made anew for every step.

Everybody who generates needs one token (or a few, if some were guessed); what is left of the step's
budget goes to prompts, in chunks. If memory runs out, whoever is last in the policy's order gives
all of it back and starts over later: nothing is lost but time.

Sources: Yu et al., "Orca" (OSDI 2022); Kwon et al. (arXiv:2309.06180, preemption by recomputation);
Agrawal et al., "Sarathi-Serve" (arXiv:2403.02310, chunked prefill within a token budget).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from utils.llm_concurrency.engine.blocks import BlockPool, OutOfBlocks
from utils.llm_concurrency.engine.policies import FirstCome
from utils.llm_concurrency.engine.request import Request, TooLong
from utils.llm_concurrency.engine.sequence import Sequence


class Work(NamedTuple):
    """Compute the tokens (and after them the draft) of a sequence from `start`, `count` of them."""

    sequence: Sequence
    start: int
    count: int

    @property
    def rows(self) -> int:
        """Of how many of the last positions scores are wanted: none if more prompt is to come."""
        missing = len(self.sequence.tokens) - self.start
        return max(0, self.count - missing + 1)


@dataclass
class Plan:
    """One step: the work, and blocks to copy before it (from, to)."""

    work: list[Work] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(work.count for work in self.work)


class Scheduler:
    """Requests that wait and requests that run, and the memory they share.

    `budget`: the most tokens of a step. `slots`: the most sequences that run. `chunk`: the most
    tokens of one prompt in a step.
    """

    def __init__(
        self,
        pool: BlockPool,
        policy: FirstCome | None = None,
        *,
        slots: int = 32,
        budget: int = 512,
        chunk: int | None = None,
    ) -> None:
        self.chunk = budget if chunk is None else chunk
        if not 1 <= slots <= budget:
            raise ValueError(f"slots={slots}, budget={budget}: give 1 ≤ slots ≤ budget")
        if self.chunk < 1:
            raise ValueError(f"chunk={chunk} is not allowed: give at least 1")
        self.pool, self.policy = pool, policy or FirstCome()
        self.slots, self.budget = slots, budget
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.running)

    def check(self, request: Request) -> None:
        """TooLong: the memory could never hold it. Any thread may ask."""
        if request.length > (most := self.pool.count * self.pool.size):
            raise TooLong(f"{request.length} tokens do not fit into a memory of {most}")

    def add(self, sequence: Sequence) -> None:
        """TooLong: it would not fit into the memory even alone."""
        self.check(sequence.request)
        self.policy.arrived(sequence)
        if sequence.table and len(self.running) < self.slots:  # a fork: it has memory, so it runs
            self.running.append(sequence)
        else:
            sequence.leave(self.pool)
            self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """It has ended, however: its memory goes back. Nothing happens if it is not here."""
        for row in (self.running, self.waiting):
            if sequence in row:
                row.remove(sequence)
                sequence.leave(self.pool)
                self.policy.ended(sequence)

    def plan(self) -> Plan:
        """The next step. Memory for it is taken; nothing else has happened yet."""
        plan, rank = Plan(), self.policy.rank
        self._limit_drafts()
        # Who generates goes first: a chunk of somebody's prompt must not make others stutter.
        for sequence in sorted(self.running, key=lambda one: (not one.decoding, rank(one))):
            if sequence in self.running:  # and not preempted for one before it
                self._compute(sequence, plan)
        while self.waiting and len(self.running) < self.slots and plan.tokens < self.budget:
            sequence = min(self.waiting, key=rank)
            if not self.policy.joins(sequence, self.running) or not self._start(sequence, plan):
                break
        return plan

    def _limit_drafts(self) -> None:
        """Guesses get what the budget has to spare when everybody has a token of their own."""
        spare = self.budget - len(self.running)
        for sequence in self.running:
            longest = min(spare, sequence.left - 1) if sequence.decoding else 0
            del sequence.draft[longest:]
            spare -= len(sequence.draft)

    def _count(self, sequence: Sequence, plan: Plan) -> int:
        """How many tokens of a sequence fit into the step."""
        missing = len(sequence.tokens) - sequence.computed
        return min(self.budget - plan.tokens, min(missing, self.chunk) + len(sequence.draft))

    def _compute(self, sequence: Sequence, plan: Plan) -> None:
        """Put a running sequence into the plan, at the cost of others' memory if it must be."""
        planned = {work.sequence for work in plan.work}
        while count := self._count(sequence, plan):
            try:
                plan.copies += sequence.grow(self.pool, sequence.computed + count)
            except OutOfBlocks:
                if sequence.draft:  # a guess is not worth anybody's memory
                    sequence.draft.clear()
                    continue
                candidates = [one for one in self.running if one not in planned]
                victim = max(candidates, key=self.policy.rank)
                self._preempt(victim)
                if victim is sequence:
                    return
            else:
                plan.work.append(Work(sequence, sequence.computed, count))
                return

    def _start(self, sequence: Sequence, plan: Plan) -> bool:
        """Let a waiting sequence run if there is memory for all of its tokens so far."""
        sequence.find(self.pool)
        count = self._count(sequence, plan)
        promised = sum(map(self._missing, self.running))  # to those whose prompt comes in chunks
        try:
            if self._missing(sequence) + promised > self.pool.free:
                raise OutOfBlocks
            plan.copies += sequence.grow(self.pool, sequence.computed + count)
        except OutOfBlocks:
            sequence.leave(self.pool)
            return False
        self.waiting.remove(sequence)
        self.running.append(sequence)
        plan.work.append(Work(sequence, sequence.computed, count))
        return True

    def _missing(self, sequence: Sequence) -> int:
        """Blocks that a sequence still needs for its tokens so far."""
        return self.pool.needed(len(sequence.tokens)) - len(sequence.table)

    def _preempt(self, sequence: Sequence) -> None:
        sequence.leave(self.pool)
        sequence.preempted += 1
        self.running.remove(sequence)
        self.waiting.append(sequence)
