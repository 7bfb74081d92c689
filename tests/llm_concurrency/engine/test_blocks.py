"""The pool: counts, the order in which blocks are given out, and what is found again."""

import random

import pytest

from utils.llm_concurrency.engine.blocks import BlockPool, OutOfBlocks

SIZE = 3


def fill(pool: BlockPool, tokens) -> list[int]:
    """A table of what can be found and of new blocks, all of them made known if full."""
    table = pool.find(tokens)
    for block in table:
        pool.hold(block)
    while len(table) < pool.needed(len(tokens)):
        table.append(pool.allocate())
    for index in range(len(tokens) // pool.size):
        table[index] = pool.remember(table, tokens, index)
    return table


def test_blocks_are_given_out_until_none_is_left_and_come_back() -> None:
    pool = BlockPool(3, SIZE)
    table = [pool.allocate() for _ in range(3)]
    assert sorted(table) == [0, 1, 2] and (pool.free, pool.used) == (0, 3)
    with pytest.raises(OutOfBlocks, match="all 3 blocks"):
        pool.allocate()
    pool.check([table])
    pool.release(table)
    assert pool.free == 3
    with pytest.raises(ValueError, match="block=0 is free already"):
        pool.release([0])
    pool.check([])


@pytest.mark.parametrize("count, size", [(0, 1), (1, 0), (-1, 4)])
def test_a_pool_has_blocks_and_a_block_has_room(count, size) -> None:
    with pytest.raises(ValueError, match=f"count={count}, size={size}: give at least 1 of each"):
        BlockPool(count, size)


@pytest.mark.parametrize("tokens, blocks", [(0, 0), (1, 1), (3, 1), (4, 2), (6, 2)])
def test_needed(tokens, blocks) -> None:
    assert BlockPool(9, SIZE).needed(tokens) == blocks


@pytest.mark.parametrize("length", range(1, 14))
def test_all_full_blocks_before_the_last_token_are_found(length) -> None:
    pool, text = BlockPool(9, SIZE), list(range(20))
    pool.release(fill(pool, text[:9]))
    assert len(pool.find(text[:length])) == min(3, (length - 1) // SIZE)
    other = [*text[:4], 99, *text[5:]]
    assert len(pool.find(other)) == 1  # the first difference ends it
    assert pool.find([0, *text]) == []  # the same tokens at another place are others


def test_the_same_tokens_after_another_beginning_are_another_content() -> None:
    pool = BlockPool(9, SIZE)
    one, two = fill(pool, [1, 1, 1, 5, 5, 5]), fill(pool, [2, 2, 2, 5, 5, 5])
    assert not {*one} & {*two}
    assert pool.find([2, 2, 2, 5, 5, 5, 0]) == two
    pool.check([one, two])


def test_the_longest_free_goes_first_and_a_beginning_stays_longest() -> None:
    pool = BlockPool(4, SIZE)
    early, late = fill(pool, range(6)), fill(pool, range(50, 56))
    pool.release(reversed(early))
    pool.release(reversed(late))
    assert [pool.allocate() for _ in range(4)] == [early[1], early[0], late[1], late[0]]
    assert pool.find(range(7)) == [] and not pool._known


def test_a_free_block_is_found_until_it_is_given_out_and_its_successors_with_it() -> None:
    pool = BlockPool(3, SIZE)
    table = fill(pool, range(9))
    pool.release(table)  # its beginning first: so this one is given out first
    assert pool.find(range(10)) == table
    taken = pool.allocate()
    assert taken == table[0] and pool.find(range(10)) == []
    pool.remember([taken], [7, 7, 7], 0)
    assert pool.find([7, 7, 7, 3, 4, 5, 6]) == [taken]  # not what followed the old content
    pool.check([[taken]])


def test_who_computed_the_same_gets_the_block_of_the_first() -> None:
    pool = BlockPool(4, SIZE)
    first, second = [pool.allocate()], [pool.allocate()]
    assert pool.remember(first, [1, 2, 3], 0) == first[0]
    assert pool.remember(second, [1, 2, 3], 0) == first[0]
    assert pool.holders[first[0]] == 2 and pool.holders[second[0]] == 0
    pool.check([first, first])


def test_a_twin_may_be_a_free_block() -> None:
    pool = BlockPool(4, SIZE)
    first = fill(pool, [1, 2, 3])
    pool.release(first)
    mine = [pool.allocate()]
    assert mine != first and pool.remember(mine, [1, 2, 3], 0) == first[0]
    pool.check([first])


def test_without_sharing_nothing_is_known() -> None:
    pool = BlockPool(4, SIZE, share=False)
    fill(pool, range(6))
    assert pool.find(range(7)) == []


@pytest.mark.parametrize("seed", range(5))
def test_random_lives_keep_the_books(seed) -> None:
    rng, pool = random.Random(seed), BlockPool(12, SIZE)
    tables: list[list[int]] = []
    for _ in range(400):
        tokens = [rng.randrange(2) for _ in range(rng.randrange(1, 14))]
        fits = pool.needed(len(tokens)) <= pool.free
        if fits and rng.random() < 0.6:
            tables.append(fill(pool, tokens))
        elif tables:
            pool.release(reversed(tables.pop(rng.randrange(len(tables)))))
        pool.check(tables)
        content = [known.content for known in pool._known.values()]
        assert len({*content}) == len(content)


@pytest.mark.parametrize(
    "harm",
    [
        lambda pool, table: pool.holders.__setitem__(table[0], 2),
        lambda pool, table: pool._free.update({table[0]: None}),
        lambda pool, table: pool._free.pop(3),
        lambda pool, table: pool._known.pop(table[0]),
        lambda pool, table: pool._block.clear(),
        lambda pool, table: table.append(table[0]),
        lambda pool, table: table.pop(),
    ],
)
def test_the_check_sees_every_harm(harm) -> None:
    pool = BlockPool(4, SIZE)
    table = fill(pool, range(6))
    pool.check([table])
    harm(pool, table)
    with pytest.raises(AssertionError):
        pool.check([table])
