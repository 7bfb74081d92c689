"""The memory of the engine, in blocks: who holds which, and which hold a text seen before.

Keys and values of a sequence lie in blocks of `size` tokens, anywhere in memory; a *table* says
where. So memory is given out when it is needed and not for the longest possible answer, and at most
`size` − 1 tokens of it lie waste in each sequence. A full block never changes again: it is known by
its tokens *and* by the block before it, and whoever has the same beginning shares it.

Sources: Kwon et al., "Efficient Memory Management for Large Language Model Serving with
PagedAttention" (arXiv:2309.06180); Zheng et al., "SGLang" (arXiv:2312.07104, reuse of prefixes).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

NOTHING = 0  # the content before the first block


class OutOfBlocks(MemoryError):
    """All blocks are held by somebody."""


class Content(NamedTuple):
    """What a full block holds: the `identity` of all that is before it, and its own tokens.

    Compared in full and not by a hash alone: two prompts with the same hash are not the same.
    """

    before: int
    tokens: tuple[int, ...]


class Known(NamedTuple):
    """A content and a number for it, never used twice: what the content behind it names."""

    content: Content
    identity: int


class BlockPool:
    """Blocks with a count of their holders; those that nobody holds are given out again.

    A block whose count falls to 0 is free, yet keeps its content until it is given out: the free
    blocks are the prefix cache, and the one that has been free for longest goes first.
    """

    def __init__(self, count: int, size: int, share: bool = True) -> None:
        if count < 1 or size < 1:
            raise ValueError(f"count={count}, size={size}: give at least 1 of each")
        self.count, self.size, self._sharing = count, size, share
        self.holders = [0] * count
        self._free = dict.fromkeys(range(count))  # in the order in which they became free
        self._known: dict[int, Known] = {}  # of a block
        self._block: dict[Content, int] = {}  # the other way round
        self._identities = NOTHING

    @property
    def free(self) -> int:
        """How many blocks could be given out."""
        return len(self._free)

    @property
    def used(self) -> int:
        return self.count - len(self._free)

    def needed(self, tokens: int) -> int:
        """Blocks for so many tokens."""
        return -(-tokens // self.size)

    def allocate(self) -> int:
        """A block for a new holder, its old content forgotten. OutOfBlocks."""
        if not self._free:
            raise OutOfBlocks(f"all {self.count} blocks are in use")
        block = next(iter(self._free))
        self._forget(block)
        self.hold(block)
        return block

    def hold(self, block: int) -> None:
        """One more holder of a block, which may have been free."""
        self._free.pop(block, None)
        self.holders[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """One holder less of each. Give a table's last block first: its beginning stays longest."""
        for block in blocks:
            if not self.holders[block]:
                raise ValueError(f"block={block} is free already")
            self.holders[block] -= 1
            if not self.holders[block]:
                self._free[block] = None

    # ── The prefix cache ──────────────────────────────────────────────────────────────────────

    def remember(self, table: Sequence[int], tokens: Sequence[int], index: int) -> int:
        """Make block `index` of a table known, all of its tokens are computed; the block to use.

        That is another one if somebody has computed the same meanwhile: the table's own goes back.
        """
        block = table[index]
        if not self._sharing or self.known(block):
            return block
        if index and not self.known(table[index - 1]):
            return block
        before = self._known[table[index - 1]].identity if index else NOTHING
        start = index * self.size
        content = Content(before, tuple(tokens[start : start + self.size]))
        if (twin := self._block.get(content)) is not None:
            self.hold(twin)
            self.release([block])
            return twin
        self._identities += 1
        self._known[block], self._block[content] = Known(content, self._identities), block
        return block

    def find(self, tokens: Sequence[int]) -> list[int]:
        """The blocks that hold a beginning of `tokens`, as far as they are known.

        At least one token is left over: somebody has to compute the scores for the next one.
        """
        found: list[int] = []
        before = NOTHING
        for start in range(0, len(tokens) - self.size, self.size):
            block = self._block.get(Content(before, tuple(tokens[start : start + self.size])))
            if block is None:
                break
            before = self._known[block].identity
            found.append(block)
        return found

    def known(self, block: int) -> bool:
        """Whether the block's content could be found."""
        return block in self._known

    def _forget(self, block: int) -> None:
        if (known := self._known.pop(block, None)) is not None:
            del self._block[known.content]

    # ── The invariants ────────────────────────────────────────────────────────────────────────

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """AssertionError: a count is wrong, a held block is free, or a known one is not known."""
        held = Counter(block for table in tables for block in table)
        for block, count in enumerate(self.holders):
            assert held[block] == count, f"block {block}: {held[block]} tables, {count} holders"
            assert (count == 0) == (block in self._free), f"block {block} is both held and free"
        assert self.free + self.used == self.count
        assert self._block == {known.content: block for block, known in self._known.items()}
        assert all(len(content.tokens) == self.size for content in self._block)
