"""A request inside the engine: its tokens, what of them is computed, and where."""

from __future__ import annotations

import torch

from utils.llm_concurrency.engine.blocks import BlockPool, OutOfBlocks
from utils.llm_concurrency.engine.request import Request


class Sequence:
    """One answer in the making. Only the engine's loop changes it."""

    def __init__(self, number: int, request: Request) -> None:
        self.number, self.request = number, request
        self.tokens = list(request.prompt)  # and what was generated
        self.computed = 0  # tokens whose keys and values are in the cache
        self.table: list[int] = []  # blocks: token i is in table[i // size], at i % size
        self.draft: list[int] = []  # guesses of the next tokens, computed and checked together
        self.known = 0  # blocks that the prefix cache was told of
        self.cached = 0  # tokens of the prompt that it had
        self.preempted = 0  # times its memory was taken away
        self.arrived = self.busy = 0  # ns of the engine's clock: submitted; last step that had it
        self.times: list[int] = []  # ns at which each generated token was there
        self.dice = torch.Generator().manual_seed(request.seed)

    @property
    def generated(self) -> list[int]:
        return self.tokens[len(self.request.prompt) :]

    @property
    def left(self) -> int:
        """Tokens that may still be generated."""
        return self.request.length - len(self.tokens)

    @property
    def decoding(self) -> bool:
        """Only the newest token is not computed yet."""
        return self.computed == len(self.tokens) - 1

    def find(self, pool: BlockPool) -> None:
        """Share the blocks that hold the beginning of the tokens already."""
        for block in pool.find(self.tokens):
            pool.hold(block)
            self.table.append(block)
        self.known = len(self.table)
        self.computed = len(self.table) * pool.size
        if not self.preempted:  # then it finds what it computed itself
            self.cached = self.computed

    def grow(self, pool: BlockPool, end: int) -> list[tuple[int, int]]:
        """Make room for the tokens from `computed` to `end`; the blocks to copy, (from, to).

        A block that others hold as well must not be written: it is copied first (copy on write).
        OutOfBlocks: nothing was taken.
        """
        index = self.computed // pool.size
        shared = index < len(self.table) and pool.holders[self.table[index]] > 1
        new = max(0, pool.needed(end) - len(self.table))
        if new + shared > pool.free:
            pool_is = f"{pool.free} of {pool.count} blocks are free"
            raise OutOfBlocks(f"request {self.number} needs {new + shared}, {pool_is}")
        copies = []
        if shared:
            old, self.table[index] = self.table[index], pool.allocate()
            pool.release([old])
            copies = [(old, self.table[index])]
        self.table += [pool.allocate() for _ in range(new)]
        return copies

    def advance(self, pool: BlockPool, count: int) -> None:
        """`count` more tokens are in the cache; blocks beyond them go back, full ones are told."""
        self.computed += count
        keep = pool.needed(self.computed)
        pool.release(reversed(self.table[keep:]))
        del self.table[keep:]
        for index in range(self.known, self.computed // pool.size):
            self.table[index] = pool.remember(self.table, self.tokens, index)
            self.known = index + 1

    def leave(self, pool: BlockPool) -> None:
        """Give all memory back; what was computed has to be computed again, or found."""
        pool.release(reversed(self.table))
        self.table, self.computed, self.known, self.draft = [], 0, 0, []

    def fork(self, number: int, request: Request, pool: BlockPool) -> Sequence:
        """Another answer to the same prompt, which shares all blocks for now."""
        twin = Sequence(number, request)
        twin.computed = min(self.computed, len(twin.tokens) - 1)  # the last one's scores it needs
        twin.table = self.table[: pool.needed(twin.computed)]
        twin.known = min(self.known, twin.computed // pool.size)
        for block in twin.table:
            pool.hold(block)
        return twin
