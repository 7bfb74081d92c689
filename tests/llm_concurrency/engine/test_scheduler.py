"""What is in a step, and who has to give memory back."""

import pytest

from utils.llm_concurrency.engine.blocks import BlockPool
from utils.llm_concurrency.engine.request import Request, TooLong
from utils.llm_concurrency.engine.scheduler import Scheduler
from utils.llm_concurrency.engine.sequence import Sequence


def add(scheduler: Scheduler, *lengths: int, limit: int = 8) -> list[Sequence]:
    there = [Sequence(n, Request([n] * length, limit)) for n, length in enumerate(lengths)]
    for one in there:
        scheduler.add(one)
    return there


def go(scheduler: Scheduler) -> dict[int, int]:
    """One step without a model: how many tokens of each were in it."""
    plan = scheduler.plan()
    for work in plan.work:
        if work.rows:
            work.sequence.draft = []
            work.sequence.tokens.append(0)
            work.sequence.advance(scheduler.pool, len(work.sequence.tokens) - 1 - work.start)
        else:
            work.sequence.advance(scheduler.pool, work.count)
    return {work.sequence.number: work.count for work in plan.work}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"slots": 0}, "slots=0, budget=512"),
        ({"slots": 9, "budget": 8}, "slots=9, budget=8"),
        ({"chunk": 0}, "chunk=0 is not allowed: give at least 1"),
    ],
)
def test_settings_that_make_no_sense(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        Scheduler(BlockPool(4, 4), **settings)


def test_what_could_never_fit_is_refused() -> None:
    scheduler = Scheduler(BlockPool(4, 4))
    with pytest.raises(TooLong, match="17 tokens do not fit into a memory of 16"):
        scheduler.add(Sequence(0, Request([1] * 9, 8)))
    scheduler.add(Sequence(1, Request([1] * 8, 8)))
    assert len(scheduler.waiting) == 1


def test_a_prompt_comes_in_chunks_and_who_generates_goes_first() -> None:
    scheduler = Scheduler(BlockPool(60, 4, share=False), slots=4, budget=10, chunk=6)
    add(scheduler, 3, 20, 4)
    assert go(scheduler) == {0: 3, 1: 6, 2: 1}
    assert go(scheduler) == {0: 1, 1: 6, 2: 3}
    assert go(scheduler) == {0: 1, 2: 1, 1: 6}
    assert go(scheduler) == {0: 1, 2: 1, 1: 2}
    assert go(scheduler) == {0: 1, 1: 1, 2: 1}


def test_who_generates_gets_a_token_before_a_prompt_of_higher_rank() -> None:
    scheduler = Scheduler(BlockPool(60, 4, share=False), slots=4, budget=6)
    later = Sequence(1, Request([1] * 2, 8))
    scheduler.add(later)
    go(scheduler)
    scheduler.add(Sequence(0, Request([1] * 20, 8)))
    assert [go(scheduler) for _ in range(3)] == [{1: 1, 0: 5}] * 3


def test_who_is_in_the_plan_already_keeps_its_memory() -> None:
    """Even if its rank is lower than that of a prompt that comes after it in the step."""
    scheduler = Scheduler(BlockPool(5, 4, share=False), slots=4, chunk=4)
    reads, writes = add(scheduler, 16, 3, limit=4)
    assert [go(scheduler) for _ in range(3)] == [{0: 4, 1: 3}, {1: 1, 0: 4}, {1: 1, 0: 4}]
    assert go(scheduler) == {1: 1}
    assert (reads.preempted, writes.preempted) == (1, 0)


def test_a_chunk_is_of_a_prompt_and_not_of_guesses() -> None:
    scheduler = Scheduler(BlockPool(60, 4), slots=4, budget=10, chunk=2)
    (one,) = add(scheduler, 2)
    go(scheduler)
    one.draft = [0] * 4
    assert go(scheduler) == {0: 5}


def test_guesses_get_what_the_budget_and_the_answer_have_to_spare() -> None:
    scheduler = Scheduler(BlockPool(60, 4, share=False), slots=4, budget=9)
    there = add(scheduler, 1, 1, 1, 3, limit=5)
    go(scheduler)
    for one in there[:3]:
        one.draft = [0] * 9
    there[1].tokens += [0, 0]  # two more to come
    there[1].computed += 2
    plan = scheduler.plan()
    assert [len(one.draft) for one in there] == [3, 1, 1, 0]
    assert plan.tokens == scheduler.budget
    assert {work.sequence.number: work.count for work in plan.work} == {0: 4, 1: 2, 2: 2, 3: 1}


def test_a_guess_is_worth_nobody_s_memory() -> None:
    scheduler = Scheduler(BlockPool(4, 4, share=False), slots=4)
    one, other = add(scheduler, 6, 6, limit=2)
    go(scheduler)
    one.tokens += [0]
    one.computed += 1
    one.draft = [0] * 3
    one.request = Request([0] * 6, 9)
    assert scheduler.pool.free == 0
    assert go(scheduler) == {0: 1, 1: 1} and not other.preempted


def test_the_last_in_order_gives_its_memory_and_starts_over_later() -> None:
    scheduler = Scheduler(BlockPool(4, 4, share=False), slots=4)
    one, other = add(scheduler, 8, 8)
    go(scheduler)
    assert go(scheduler) == {0: 1}
    assert other.preempted == 1 and other in scheduler.waiting and not other.table
    assert other.tokens == [*other.request.prompt, 0]  # nothing said is lost
    scheduler.remove(one)
    assert go(scheduler) == {1: 9}


def test_who_needs_memory_and_is_last_gives_way_itself() -> None:
    scheduler = Scheduler(BlockPool(5, 4, share=False), slots=4)
    one, other = add(scheduler, 9, 8)
    go(scheduler)
    assert go(scheduler) == {0: 1} and other.preempted == 1


def test_slots_are_a_limit_and_places_become_free() -> None:
    scheduler = Scheduler(BlockPool(60, 4), slots=2)
    there = add(scheduler, 2, 2, 2)
    assert go(scheduler).keys() == {0, 1}
    scheduler.remove(there[0])
    assert go(scheduler).keys() == {1, 2}


def test_removing_gives_all_back_once() -> None:
    scheduler = Scheduler(BlockPool(60, 4), slots=2)
    there = add(scheduler, 9, 9, 9)
    go(scheduler)
    for one in [*there, *there]:
        scheduler.remove(one)
    assert scheduler.idle and scheduler.pool.used == 0


def test_a_prompt_waits_until_all_of_it_would_fit() -> None:
    scheduler = Scheduler(BlockPool(6, 4, share=False), slots=4, chunk=4)
    add(scheduler, 12, 16, limit=4)
    for _ in range(4):
        assert go(scheduler).keys() == {0}
