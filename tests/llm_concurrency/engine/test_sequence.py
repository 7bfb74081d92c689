"""A sequence takes blocks, gives them back, and copies what others hold before it writes."""

import pytest

from utils.llm_concurrency.engine.blocks import BlockPool, OutOfBlocks
from utils.llm_concurrency.engine.core import Core, ModelRunner
from utils.llm_concurrency.engine.model import PagedModel
from utils.llm_concurrency.engine.request import Request
from utils.llm_concurrency.engine.scheduler import Scheduler
from utils.llm_concurrency.engine.sequence import Sequence


def computed(pool: BlockPool, tokens, limit: int = 8) -> Sequence:
    """With all of its prompt in the cache and one token generated."""
    one = Sequence(0, Request(tokens, limit))
    one.grow(pool, len(one.tokens))
    one.advance(pool, len(one.tokens))
    one.tokens.append(90)
    return one


def test_growing_takes_all_or_nothing() -> None:
    pool = BlockPool(3, 4)
    one = Sequence(0, Request(range(17)))
    with pytest.raises(OutOfBlocks, match="request 0 needs 5, 3 of 3 blocks are free"):
        one.grow(pool, 17)
    assert one.table == [] and pool.used == 0
    assert one.grow(pool, 5) == [] and len(one.table) == 2
    one.leave(pool)
    assert one.table == [] and one.computed == 0 and pool.used == 0


def test_advancing_gives_back_what_wrong_guesses_had_taken() -> None:
    pool = BlockPool(8, 4)
    one = computed(pool, range(7))
    one.grow(pool, 7 + 6)
    assert len(one.table) == 4
    one.advance(pool, 1)
    assert len(one.table) == 2 and one.computed == 8 and one.known == 2
    pool.check([one.table])


def test_tokens_found_again_after_a_preemption_were_not_cached_by_others() -> None:
    pool = BlockPool(8, 4)
    one = computed(pool, range(9))
    one.leave(pool)
    one.preempted += 1
    one.find(pool)
    assert one.computed == 8 and one.cached == 0
    other = Sequence(1, Request(range(9)))
    other.find(pool)
    assert other.cached == 8


@pytest.mark.parametrize("length", [3, 4, 5, 7, 8, 9])
def test_a_fork_has_its_last_token_to_compute(length) -> None:
    pool = BlockPool(9, 4)
    one = computed(pool, range(length))
    twin = one.fork(1, Request(range(length)), pool)
    assert twin.computed == length - 1 and twin.decoding
    pool.check([one.table, twin.table])
    before = list(one.table)
    copies = twin.grow(pool, length)
    assert one.table == before  # the original's stay where they are
    if length % 4 == 1:  # its last token begins a block of its own
        assert copies == []
    else:
        assert copies == [(one.table[-1], twin.table[-1])] and copies[0][0] != copies[0][1]
    pool.check([one.table, twin.table])


def test_copying_on_write_needs_memory_too() -> None:
    pool = BlockPool(2, 4)
    one = computed(pool, range(6))
    twin = one.fork(1, Request(range(6)), pool)
    with pytest.raises(OutOfBlocks):
        twin.grow(pool, 6)
    pool.check([one.table, twin.table])
    one.leave(pool)  # now it has them alone, and may write
    assert twin.grow(pool, 6) == []


@pytest.mark.parametrize("length", [5, 6, 8, 9])
@pytest.mark.parametrize("blocks", [8, 40])
def test_a_fork_s_answer_is_a_fresh_one_s(tiny, alone, memory_check, length, blocks) -> None:
    requests = [Request(range(length), 10), Request(range(length), 12, seed=1)]
    scheduler = Scheduler(BlockPool(blocks, 4), budget=40, slots=4)
    model = PagedModel(tiny, blocks, 4)
    core, one = Core(ModelRunner(model), scheduler), Sequence(0, requests[0])
    core.add(one)
    core.step()
    core.step()
    shared = [model.cache.keys[:, block].clone() for block in one.table[:-1]]
    twin = one.fork(1, requests[1], scheduler.pool)
    core.add(twin)
    assert twin in scheduler.running
    memory_check(scheduler)
    core.step()
    for block, content in zip(one.table, shared, strict=False):
        assert model.cache.keys[:, block].equal(content)
    while not scheduler.idle:
        core.step()
        memory_check(scheduler)
    assert [one.generated, twin.generated] == [alone(request) for request in requests]


def test_a_fork_for_which_no_slot_is_free_waits_without_memory(tiny, alone) -> None:
    scheduler = Scheduler(BlockPool(20, 4), slots=1)
    core, one = Core(ModelRunner(PagedModel(tiny, 20, 4)), scheduler), Sequence(0, Request([1], 3))
    core.add(one)
    core.step()
    twin = one.fork(1, Request([1], 4), scheduler.pool)
    core.add(twin)
    assert twin in scheduler.waiting and not twin.table
    while not scheduler.idle:
        core.step()
    assert twin.generated == alone(twin.request)
