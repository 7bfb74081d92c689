"""What must hold in every step, whatever the scheduler does; a bug of the memory breaks one first.

Three of them compare the engine with itself. The last two need a witness: the `Shadow` notes for
which text each place of the memory was really computed, as a tool like Valgrind's Memcheck keeps a
shadow of a program's memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from utils.llm_concurrency.engine.blocks import BlockPool
from utils.llm_concurrency.engine.core import ModelRunner
from utils.llm_concurrency.engine.model import PagedModel
from utils.llm_concurrency.engine.sampler import Drawn
from utils.llm_concurrency.engine.scheduler import Plan, Scheduler, Work

Text = tuple[int, ...]  # all tokens from the first to one whose key lies at a place


class Shadow(ModelRunner):
    """The real model; and for each place (block, offset) the text for which it was computed."""

    def __init__(self, model: PagedModel, look: Callable[[Plan], None]) -> None:
        super().__init__(model)
        self.texts: dict[tuple[int, int], Text] = {}
        self._look = look  # is called once a step, when it is known what will be read

    def run(self, plan: Plan) -> list[Drawn]:
        size = self.model.cache.size
        for source, target in plan.copies:
            for offset in range(size):
                self.texts[target, offset] = self.texts.get((source, offset), ())
        for work in plan.work:
            tokens, table = work.sequence.tokens + work.sequence.draft, work.sequence.table
            for place in range(work.start, work.start + work.count):
                self.texts[table[place // size], place % size] = tuple(tokens[: place + 1])
        self._look(plan)
        return super().run(plan)

    def foreign(self, work: Work) -> list[int]:
        """Blocks in which a sequence would read something else than its own text."""
        tokens, table, size = work.sequence.tokens, work.sequence.table, self.model.cache.size
        return [
            table[place // size]
            for place in range(work.start)
            if self.texts.get((table[place // size], place % size)) != tuple(tokens[: place + 1])
        ]


def computes(plan: Plan) -> None:
    """Who is in a step has at least one token to compute."""
    assert all(work.count >= 1 for work in plan.work)


def not_free(scheduler: Scheduler) -> None:
    """No table points at a free block."""
    held = {block for one in scheduler.running for block in one.table}
    assert not held & scheduler.pool._free.keys()


def counted(scheduler: Scheduler) -> None:
    """A block has as many holders as there are tables with it."""
    held = Counter(block for one in scheduler.running for block in one.table)
    assert all(held[block] == count for block, count in enumerate(scheduler.pool.holders))


def entries(pool: BlockPool, texts: dict[tuple[int, int], Text]) -> None:
    """A block that the prefix cache knows holds the tokens that it is known for."""
    for block, known in pool._known.items():
        assert texts[block, pool.size - 1][-pool.size :] == known.content.tokens


def own(plan: Plan, shadow: Shadow) -> None:
    """What a sequence reads was computed for its own text."""
    assert not any(shadow.foreign(work) for work in plan.work)
