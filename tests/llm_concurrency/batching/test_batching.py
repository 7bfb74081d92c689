"""Whatever is cached, batched, forked or shared, the tokens are the same; and the counts are right.

A small random model computes; what depends on the schedule alone is compared with its formula.
"""

import pytest
import torch

from utils.core import plots
from utils.core.experiment import Cancelled, Control, controlled
from utils.llm import tokens
from utils.llm.generate import generate
from utils.llm.sampling import Sampling
from utils.llm_concurrency.batching import (
    drive,
    forking,
    passes,
    pool_map,
    prefix,
    race,
    reservation,
    with_cache,
)
from utils.llm_concurrency.engine.blocks import BlockPool
from utils.llm_concurrency.engine.core import Core, ModelRunner
from utils.llm_concurrency.engine.model import PagedModel
from utils.llm_concurrency.engine.scheduler import Scheduler

pytestmark = pytest.mark.usefixtures("small")


def alone(decoder, request) -> list[int]:
    """What the plain loop of chapter 5 says."""
    how, seed = request.sampling, request.seed
    return list(generate(decoder, list(request.prompt), request.limit, how, seed=seed))


def drawn(picture) -> bool:
    return len(plots.png(picture)) > 10_000


# ---------------------------------------------------------------- one answer


def test_with_and_without_cache_the_answer_is_the_same() -> None:
    result = with_cache.run(prompt=5, answer=7)
    assert result.answers["with cache"] == result.answers["without"]
    assert result.passed["with cache"] == [5, 1, 1, 1, 1, 1, 1]
    assert result.passed["without"] == [5, 6, 7, 8, 9, 10, 11]
    assert all(len(seconds) == 7 for seconds in result.seconds.values())
    assert drawn(with_cache.plot(result))


def test_the_bytes_of_a_token_are_those_that_are_allocated(small) -> None:
    result = with_cache.run(prompt=2, answer=2)
    assert result.cache_bytes == with_cache.bytes_a_token(small.config) == 2 * 2 * 2 * 8 * 4


def test_the_hook_that_counts_is_gone_after_cancel(small) -> None:
    control = Control()
    control.cancel()
    with controlled(control), pytest.raises(Cancelled):
        with_cache.run(answer=3)
    assert not small.embed_tokens._forward_hooks


# ---------------------------------------------------------------- passes and batches


def test_a_sequence_goes_on_alike_in_every_batch(small) -> None:
    result = passes.run(sequences=8, prompt=32, past=9, repeats=1)
    assert list(result.said) == list(result.decode) == [1, 2, 4, 8]
    assert list(result.prefill) == [1, 4, 16, 32]
    for count, said in result.said.items():
        assert said == result.said[8][:count]
    text = sum(passes.prompts(8), []) * 40
    expected = [
        small(torch.tensor([text[7 * number :][:9]]))[0, -1].argmax() for number in range(8)
    ]
    assert result.said[8] == expected
    assert result.rate("decode", 4) == 4 / result.decode[4].median
    assert drawn(passes.plot(result))


@pytest.mark.parametrize("sort", [False, True])
def test_both_ways_of_batching_give_the_answers_of_the_plain_loop(small, sort) -> None:
    result = race.run(requests=7, longest=12, slots=3, sort=sort, seed=1)
    requests = race.make_requests(7, 12, 1, sort=sort)
    for run in result.runs.values():
        assert run.answers == [alone(small, request) for request in requests]
        assert all(one.completed for one in run.served)
        assert run.works == sum(request.limit for request in requests)
    assert drawn(race.plot(result))


def test_the_schedule_needs_no_model() -> None:
    result = race.run(requests=9, longest=16, slots=4, seed=5)
    requests = race.make_requests(9, 16, 5)
    for policy, run in result.runs.items():
        counted = race.count(policy, requests, 4)
        assert (counted.steps, counted.works) == (run.steps, run.works)
        assert counted.utilisation == run.utilisation == run.works / (4 * run.steps)


def test_requests_can_be_sorted_by_length() -> None:
    asked, ordered = (race.make_requests(9, 40, 2, sort=sort) for sort in (False, True))
    assert [one.limit for one in ordered] == sorted(one.limit for one in asked)
    assert sorted(one.prompt for one in asked) == sorted(one.prompt for one in ordered)
    assert {2 <= one.limit <= 40 for one in asked} == {True}


@pytest.mark.parametrize("seed", range(5))
def test_static_batches_last_as_long_as_their_longest_answer(seed) -> None:
    requests = race.make_requests(10, 30, seed)
    limits = [request.limit for request in requests]
    batches = [limits[start : start + 4] for start in range(0, 10, 4)]
    assert race.count("static", requests, 4).steps == sum(map(max, batches))
    continuous = race.count("continuous", requests, 4)
    assert -(-sum(limits) // 4) <= continuous.steps <= sum(map(max, batches))


def test_nobody_joins_a_static_batch() -> None:
    requests = race.make_requests(12, 20, 8)
    begun = [
        min(span.start for span in run.trace.select(lane=f"request {n}").spans if span.args)
        for run in [race.count("static", requests, 4)]
        for n in range(12)
    ]
    assert [len(set(begun[start : start + 4])) for start in (0, 4, 8)] == [1, 1, 1]


def test_a_run_can_be_cancelled_between_steps(small) -> None:
    control = Control()
    pool = BlockPool(16, 16)
    core = Core(ModelRunner(PagedModel(small, 16, 16)), Scheduler(pool))
    with controlled(control), pytest.raises(Cancelled):
        drive.serve(core, race.make_requests(2, 20, 0), lambda _: control.cancel())
    assert core.steps == 1


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize(("blocks", "size"), [(48, 4), (16, 3), (96, 32)])
def test_the_map_shows_the_tables_of_the_run(blocks, size) -> None:
    result = pool_map.run(blocks=blocks, size=size, requests=9, slots=5)
    steps = result.owners.shape[0]
    assert result.owners.shape == (steps, blocks) and len(result.tokens) == steps
    for owners, held in zip(result.owners, result.tokens, strict=True):
        used = owners[owners != pool_map.NOBODY]
        assert len(used) == sum(-(-tokens // size) for tokens in held)
        assert len(set(used.tolist())) == len(held) <= 5
    assert (result.owners[-1] == pool_map.NOBODY).all()  # all are back
    assert set(result.owners.ravel().tolist()) == {*range(9), pool_map.NOBODY}
    assert (result.preempted > 0) == (blocks == 16)
    assert (result.room - result.filled <= 5 * (size - 1)).all() and 0 <= result.wasted < 1
    assert drawn(pool_map.plot(result))


@pytest.mark.parametrize("size", [1, 16, 100])
@pytest.mark.parametrize("seed", range(3))
def test_blocks_waste_less_than_a_block_each(size, seed) -> None:
    result = reservation.run(memory=4096, limit=512, size=size, seed=seed)
    gaps = [a - b for a, b in zip(result.paged.room, result.paged.tokens, strict=True)]
    assert max(gaps) <= size - 1 and min(gaps) >= 0
    assert sum(result.paged.room) <= result.paged.memory
    assert result.wasted[16] == reservation.page(4096, 16, 512, seed).wasted
    assert result.wasted[1] == 0 and (size > 1) == (result.paged.wasted > 0)
    assert drawn(reservation.plot(result))


def test_reserved_room_is_for_the_longest_answer() -> None:
    held = reservation.reserve(8192, 1024, 0)
    sequences = [reservation.in_flight(n, 1024, 0) for n in range(len(held.room) + 1)]
    assert held.room == [most for _, most in sequences[:-1]]
    assert held.tokens == [now for now, _ in sequences[:-1]]
    assert sum(held.room) <= 8192 < sum(held.room) + sequences[-1][1]
    paged = reservation.page(8192, 16, 1024, 0)
    assert paged.tokens[: len(held.tokens)] == held.tokens  # the same sequences, and more


# ---------------------------------------------------------------- sharing


@pytest.mark.parametrize("answers", [1, 3])
def test_forked_answers_are_those_of_requests_of_their_own(small, answers) -> None:
    result = forking.run(answers=answers, length=12)
    assert result.answers == result.alone
    assert len({tuple(answer) for answer in result.answers}) == answers  # they are not alike
    assert result.saved("forked") == (answers - 1) * len(result.moments["forked"][0])
    full = (result.prompt - 1) // forking.SIZE  # blocks in which nobody writes any more
    for tables in list(result.moments.values())[1:]:
        assert all(table[:full] == tables[0][:full] for table in tables)
        assert len(set().union(*tables)) == full + sum(len(table) - full for table in tables)
    assert drawn(forking.plot(result))


def test_greedy_forks_say_the_same(small) -> None:
    prompt = tokens.smollm2().chat(forking.QUESTION, system=forking.SYSTEM)
    result = forking.run(answers=3, length=5, temperature=0)
    assert result.answers == 3 * [list(generate(small, prompt, 5, Sampling()))]


@pytest.mark.parametrize("order", prefix.ORDERS)
def test_only_an_identical_beginning_is_found(small, order) -> None:
    result = prefix.run(questions=3, length=70, order=order)
    requests = [prefix.ask(number, 70, order) for number in range(3)]
    assert result.answers[True] == result.answers[False]
    assert result.answers[True] == [alone(small, request) for request in requests]
    assert [one.number for one in result.served[True]] == [0, 1, 2]
    assert all(one.cached == 0 for one in result.served[False])
    found = [one.cached for one in result.served[True]]
    first = requests[0].prompt
    for request, cached in zip(requests[1:], found[1:], strict=True):
        pairs = zip(first, request.prompt, strict=False)
        same = next(place for place, (a, b) in enumerate(pairs) if a != b)
        assert cached == same // prefix.SIZE * prefix.SIZE
    assert found == ([0, 64, 64] if order == prefix.ORDERS[0] else [0, 0, 0])
    assert prefix.count(order, 3, 70) == result.hit_rate
    assert drawn(prefix.plot(result))
