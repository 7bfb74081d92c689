"""Attention where the blocks lie, against attention to keys brought together."""

import pytest
import torch
from torch.nn import functional

from utils.llm.decoder import Config
from utils.llm_concurrency.engine.cache import Few, Many, PagedCache
from utils.llm_concurrency.engine.request import Request
from utils.llm_concurrency.engine.scheduler import Work
from utils.llm_concurrency.engine.sequence import Sequence

CONFIG = Config(layers=1, heads=6, kv_heads=2, head_dim=8)
SIZE = 4


@pytest.fixture
def cache() -> PagedCache:
    torch.manual_seed(0)
    cache = PagedCache(CONFIG, 12, SIZE, torch.float64, torch.device("cpu"))
    cache.keys.normal_()
    cache.values.normal_()
    return cache


def work(table: list[int], start: int, count: int) -> Work:
    one = Sequence(0, Request(range(start + count)))
    one.table = table
    return Work(one, start, count)


def dense(queries, cache: PagedCache, one: Work):
    end = one.start + one.count
    keys, values = (
        part[0, one.sequence.table].transpose(0, 1).flatten(1, 2)[:, :end].repeat_interleave(3, 0)
        for part in (cache.keys, cache.values)
    )
    visible = torch.arange(end) <= torch.arange(one.start, end)[:, None]
    mixed = functional.scaled_dot_product_attention(
        queries.transpose(0, 1), keys, values, attn_mask=visible
    )
    return mixed.transpose(0, 1).flatten(1)


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize(
    "tables",
    [
        [[3, 4, 5], [6, 7, 8]],  # one stretch of memory
        [[5, 1, 9], [2, 0, 11]],
        [[5, 1, 9], [5, 1, 4]],  # shared
        [[7], [3, 2, 6, 10]],
    ],
)
def test_few_queries_block_by_block(cache, tables, count) -> None:
    works = [work(table, len(table) * SIZE - count - n % 2, count) for n, table in enumerate(tables)
             if len(table) * SIZE > count + n % 2]  # fmt: skip
    queries = 3 * torch.randn(len(works) * count, CONFIG.heads, 8, dtype=torch.float64)
    rows = slice(0, len(queries))
    found = Few(works, rows, cache, CONFIG).attend(queries, cache.keys[0], cache.values[0])
    right = torch.cat(
        [dense(q, cache, one) for q, one in zip(queries.split(count), works, strict=False)]
    )
    torch.testing.assert_close(found, right, rtol=0, atol=1e-12)


def test_scores_too_large_for_exp(cache) -> None:
    one = work([5, 1, 9], 11, 1)
    queries = 1e4 * torch.randn(1, CONFIG.heads, 8, dtype=torch.float64)
    found = Few([one], slice(0, 1), cache, CONFIG).attend(queries, cache.keys[0], cache.values[0])
    torch.testing.assert_close(found, dense(queries, cache, one), rtol=0, atol=1e-9)


@pytest.mark.parametrize("start, count", [(0, 11), (4, 7), (1, 9)])
def test_many_queries_of_one_sequence(cache, start, count) -> None:
    one = work([5, 1, 9], start, count)
    queries = torch.randn(count, CONFIG.heads, 8, dtype=torch.float64)
    found = Many(one, slice(0, count), cache).attend(queries, cache.keys[0], cache.values[0])
    torch.testing.assert_close(found, dense(queries, cache, one), rtol=0, atol=1e-12)


def test_a_copy_is_of_all_layers_and_of_nothing_else(cache) -> None:
    before = cache.keys.clone(), cache.values.clone()
    cache.copy(2, 7)
    for part, old in zip((cache.keys, cache.values), before, strict=False):
        assert part[:, 7].equal(old[:, 2])
        others = [block for block in range(12) if block != 7]
        assert part[:, others].equal(old[:, others])
    assert cache.nbytes == 2 * cache.keys.nbytes
