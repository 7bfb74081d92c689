"""Four bugs of the memory, each a few lines away from our own `BlockPool`.

Each has been in a public engine; the address says where. What is shown here is the idea of the bug
in *our* classes, not the code of that project.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from utils.llm_concurrency.engine.blocks import NOTHING, BlockPool, Content
from utils.llm_concurrency.museum.visitors import Visitor, text


class NothingLeft(BlockPool):
    """Finds *all* blocks of a prompt: then no token is left whose scores say what comes next.

    https://github.com/GeeeekExplorer/nano-vllm/issues/114 (and pull request 199)
    """

    def find(self, tokens: Sequence[int]) -> list[int]:
        found, before = [], NOTHING
        for start in range(0, len(tokens) - self.size + 1, self.size):  # right: without the + 1
            block = self._block.get(Content(before, tuple(tokens[start : start + self.size])))
            if block is None:
                break
            before = self._known[block].identity
            found.append(block)
        return found


class FreedTwice(BlockPool):
    """Two paths free the memory of a request that ends, and whoever finds a block free is silent.

    https://github.com/vllm-project/vllm/issues/1556 (pull request 3347, and issue 1584, where
    silence is the workaround); https://github.com/sgl-project/sglang/pull/18694
    """

    def release(self, blocks: Iterable[int]) -> None:
        blocks = list(blocks)
        super().release(blocks)
        super().release(block for block in blocks if self.holders[block])  # right: not at all


class NeverForgets(BlockPool):
    """A block is given out again, and the prefix cache still says what it held before.

    https://github.com/GeeeekExplorer/nano-vllm/issues/163
    """

    def _forget(self, block: int) -> None:
        pass  # right: take the block out of `_known`, and its content out of `_block`


class HashOnly(BlockPool):
    """Contents are the same if their hashes are, and the hash is one that can be worked out.

    https://github.com/vllm-project/vllm/security/advisories/GHSA-rm76-4mrf-v9r8 (pull request
    12621); the hash is that of https://github.com/NVIDIA/Megatron-LM/pull/4158
    """

    def __init__(self, count: int, size: int, share: bool = True) -> None:
        super().__init__(count, size, share)
        self._block = ByHash()  # right: a dict, which compares what has the same hash


class ByHash(dict):
    """A dict that believes its keys to be equal if their hashes are."""

    def get(self, content: Content, default: int | None = None) -> int | None:
        return super().get(polynomial(content), default)

    def __setitem__(self, content: Content, block: int) -> None:
        super().__setitem__(polynomial(content), block)

    def __delitem__(self, content: Content) -> None:
        super().__delitem__(polynomial(content))


def polynomial(content: Content) -> int:
    """The tokens as the coefficients of a polynomial in 31."""
    value = sum(token * 31**power for power, token in enumerate(content.tokens))
    return (content.before * 31 ** len(content.tokens) + value) % 2**64


def collide(tokens: Sequence[int]) -> list[int]:
    """Other tokens with the same hash: 31 more at one place are 1 less at the next."""
    first, second, *rest = tokens
    return [first + 31, second - 1, *rest]


class Exhibit(NamedTuple):
    """A bug, and requests that meet it in a memory of `blocks`; both depend on a block's size."""

    pool: type[BlockPool]
    blocks: int
    visitors: Callable[[int], list[Visitor]]


EXHIBITS = {
    "fully cached prompt": Exhibit(
        NothingLeft,
        8,
        lambda size: [
            Visitor("A", text(1, 2 * size), 4),
            Visitor("B", text(2, size + 1), 12),
            Visitor("C", text(1, 2 * size), 4, arrives=6),  # what A has asked
        ],
    ),
    "freed twice": Exhibit(
        FreedTwice,
        5,
        lambda size: [
            Visitor("A", [*text(1, 2 * size), 7], 2 * size + 2),
            Visitor("B", [*text(1, 2 * size), 8], 2, arrives=1),  # shares two blocks with A
            Visitor("C", text(3, 3 * size), 3, arrives=4),
        ],
    ),
    "stale entry": Exhibit(
        NeverForgets,
        5,
        lambda size: [
            Visitor("A", [*text(1, 2 * size), 7], 2),
            Visitor("B", text(3, 4 * size), 3, arrives=3),  # needs all blocks
            Visitor("C", [*text(1, 2 * size), 7], 6, arrives=7),  # what A has asked
        ],
    ),
    "hash only": Exhibit(
        HashOnly,
        10,
        lambda size: [
            Visitor("A", [*text(1, 2 * size), 7], 6),
            Visitor("B", [*text(2, 2 * size), 7], 6, arrives=1),
            Visitor("C", [*collide(text(1, 2 * size)), 7], 6, arrives=4),
        ],
    ),
}
