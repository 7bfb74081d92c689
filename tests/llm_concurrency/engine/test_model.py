"""The decoder laid out for speed: the scores of chapter 5's, however the work is cut."""

import copy
import random

import pytest
import torch

from utils.llm_concurrency.engine.blocks import BlockPool
from utils.llm_concurrency.engine.model import FEW, PagedModel
from utils.llm_concurrency.engine.request import Request
from utils.llm_concurrency.engine.scheduler import Work
from utils.llm_concurrency.engine.sequence import Sequence


def work_on(pool: BlockPool, sequence: Sequence, count: int) -> Work:
    sequence.grow(pool, sequence.computed + count)
    return Work(sequence, sequence.computed, count)


@pytest.mark.parametrize("size", [1, 4, 16])
@pytest.mark.parametrize("seed", [0, 1])
def test_scores_are_the_decoder_s_for_any_cut(tiny, size, seed) -> None:
    """Sequences of many lengths, each step some of them, with chunks around the limit FEW."""
    rng, pool = random.Random(seed), BlockPool(-(-400 // size), size)
    model = PagedModel(tiny, pool.count, size)
    there = [
        Sequence(n, Request([rng.randrange(97) for _ in range(length)]))
        for n, length in enumerate((1, 5, 13, 30, 42))
    ]
    while left := [one for one in there if one.computed < len(one.tokens)]:
        works = [
            work_on(pool, one, min(rng.randrange(1, FEW + 5), len(one.tokens) - one.computed))
            for one in rng.sample(left, rng.randrange(1, len(left) + 1))
        ]
        scores = model.scores(works)
        assert len(scores) == sum(work.rows for work in works)
        row = 0
        for work in works:
            if work.rows:
                right = tiny(torch.tensor([work.sequence.tokens]))[0, -1]
                torch.testing.assert_close(scores[row], right, rtol=0, atol=1e-9)
                row += 1
            work.sequence.advance(pool, work.count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_fewer_bits_round_the_scores_and_no_more(tiny, dtype) -> None:
    pool, sequence = BlockPool(10, 4), Sequence(0, Request(range(40)))
    model = PagedModel(copy.deepcopy(tiny).to(dtype), 10, 4)
    scores = model.scores([work_on(pool, sequence, 40)])[0]
    right = tiny(torch.tensor([sequence.tokens]))[0, -1]
    assert scores.dtype == dtype
    # Each layer rounds a handful of times: some 30 roundings, which mostly cancel out.
    assert (scores - right).norm() < 30 * torch.finfo(dtype).eps * right.norm()


@pytest.mark.parametrize("guesses", [1, FEW - 1, FEW, FEW + 3])
def test_guesses_have_a_row_each(tiny, guesses) -> None:
    pool = BlockPool(40, 4)
    model, works = PagedModel(tiny, 40, 4), []
    for number, length in enumerate((9, 6)):
        one = Sequence(number, Request(range(length)))
        model.scores([work_on(pool, one, length - 1)])
        one.advance(pool, length - 1)
        one.draft = list(range(50, 50 + guesses))
        works.append(work_on(pool, one, 1 + guesses))
    scores = model.scores(works).split(1 + guesses)
    for work, rows in zip(works, scores, strict=True):
        text = [*work.sequence.tokens, *work.sequence.draft]
        right = tiny(torch.tensor([text]))[0, -1 - guesses :]
        torch.testing.assert_close(rows, right, rtol=0, atol=1e-9)


def test_blocks_of_two_tables_may_be_shared_and_lie_anywhere(tiny) -> None:
    pool = BlockPool(9, 4)
    model, scrap = PagedModel(tiny, 9, 4), [pool.allocate() for _ in range(7)]
    pool.release(random.Random(1).sample(scrap, 5))  # so that tables are no stretch of memory
    one = Sequence(0, Request(range(9)))
    model.scores([work_on(pool, one, 9)])
    one.advance(pool, 9)
    one.tokens.append(60)
    two = Sequence(1, Request([*range(8), 70]))
    two.find(pool)
    assert two.table == one.table[:2]
    works = [work_on(pool, one, 1), work_on(pool, two, 1)]
    for row, work in zip(model.scores(works), works, strict=True):
        right = tiny(torch.tensor([work.sequence.tokens]))[0, -1]
        torch.testing.assert_close(row, right, rtol=0, atol=1e-9)


def test_old_content_of_a_block_is_never_seen(tiny) -> None:
    pool = BlockPool(6, 4)
    model = PagedModel(tiny, 6, 4)
    model.cache.keys.fill_(1e4)
    model.cache.values.fill_(1e4)
    works = [work_on(pool, Sequence(n, Request(range(1, 2 + n))), 1 + n) for n in range(3)]
    for row, work in zip(model.scores(works), works, strict=True):
        right = tiny(torch.tensor([work.sequence.tokens]))[0, -1]
        torch.testing.assert_close(row, right, rtol=0, atol=1e-9)


def test_a_layout_decides_how_every_weight_is_multiplied(tiny) -> None:
    seen = []

    def half(weight):
        seen.append(tuple(weight.shape))
        return lambda x: torch.nn.functional.linear(x, weight) / 2

    model = PagedModel(tiny, 4, 4, half)
    assert len(seen) == 4 * tiny.config.layers + 1
    pool = BlockPool(4, 4)
    assert model.scores([work_on(pool, Sequence(0, Request([1])), 1)]).shape == (1, 97)
