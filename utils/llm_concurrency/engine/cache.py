"""The keys and values of all sequences, in blocks, and attention to them where they lie.

Who generates has a few queries (one, or some guesses as well) and hundreds of keys. To bring the
keys of each sequence together would copy the whole cache, in every step and layer. Instead the
*queries* go to the blocks: each block is multiplied with its owner's queries where it lies, and a
softmax over all blocks of a sequence joins the parts: its sums may be formed in any order.

Sources: Kwon et al. (arXiv:2309.06180); Dao et al., "Flash-Decoding for long-context inference",
2023 (parts of one softmax).
"""

from __future__ import annotations

from collections.abc import Sequence as Row

import torch
from torch import Tensor
from torch.nn import functional

from utils.llm.decoder import Config
from utils.llm_concurrency.engine.scheduler import Work


class PagedCache:
    """Keys and values: (layers, blocks, kv_heads, size, head_dim), twice."""

    def __init__(
        self, config: Config, count: int, size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (config.layers, count, config.kv_heads, size, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.size = size

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def copy(self, source: int, target: int) -> None:
        """All layers of one block to another."""
        for part in (self.keys, self.values):
            part[:, target] = part[:, source]


class Few:
    """Several sequences that have the same small number of queries; attention block by block.

    `rows` is their place among the step's tokens: sequences · queries of them.
    """

    def __init__(self, work: Row[Work], rows: slice, cache: PagedCache, config: Config) -> None:
        self.rows, self._queries = rows, work[0].count
        self._heads, self._groups = config.kv_heads, config.heads // config.kv_heads
        device, size = cache.keys.device, cache.size
        tables = [one.sequence.table for one in work]
        longest = max(map(len, tables))
        pairs = sorted(  # in the order of memory
            (block, owner, index)
            for owner, table in enumerate(tables)
            for index, block in enumerate(table)
        )
        blocks, owners, indices = torch.tensor(pairs, device=device).unbind(1)
        first, last = pairs[0][0], pairs[-1][0]
        together = len(pairs) == last - first + 1 and len({pair[0] for pair in pairs}) == len(pairs)
        self._blocks = slice(first, last + 1) if together else blocks
        self._owners, self._sequences = owners, len(work)
        self._place, self._places = owners * longest + indices, longest
        # What a query may see of a block: places up to its own.
        ends = torch.tensor([one.start for one in work], device=device)[owners, None]
        ends = ends + torch.arange(self._queries, device=device)  # (pairs, queries)
        places = indices[:, None] * size + torch.arange(size, device=device)  # (pairs, size)
        hidden = places[:, None, :] > ends[:, :, None]  # (pairs, queries, size)
        mask = torch.zeros(hidden.shape, dtype=cache.keys.dtype, device=device)
        mask.masked_fill_(hidden, -torch.inf)
        per_head = mask[:, None, None].expand(-1, self._heads, self._groups, -1, -1)
        self._mask = per_head.reshape(len(pairs) * self._heads, -1, size)
        self._scale = config.head_dim**-0.5

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(rows, heads, dim), one layer's cache → (rows, heads · dim)."""
        dim = queries.shape[-1]
        shape = (self._sequences, self._queries, self._heads, self._groups, dim)
        queries = queries.view(shape).permute(0, 2, 3, 1, 4).reshape(self._sequences, -1)
        pairs, lines = len(self._owners), self._heads * self._groups * self._queries
        keys, values = keys[self._blocks].flatten(0, 1), values[self._blocks].flatten(0, 1)
        asked = queries.index_select(0, self._owners).view(len(keys), -1, dim)
        scores = torch.baddbmm(self._mask, asked, keys.transpose(1, 2), alpha=self._scale)
        # The largest score of each sequence: exp never overflows, and no line is all zero.
        largest = scores.new_full((self._sequences * self._places, lines), -torch.inf)
        largest.index_copy_(0, self._place, scores.amax(-1).view(pairs, lines))
        largest = largest.view(self._sequences, self._places, lines).amax(1)
        scores = scores.view(pairs, lines, -1)
        shares = scores.sub_(largest.index_select(0, self._owners)[..., None]).exp_()
        parts = torch.bmm(shares.view(len(keys), -1, shares.shape[-1]), values)
        total = queries.new_zeros(self._sequences, lines)
        total.index_add_(0, self._owners, shares.sum(-1))
        mixed = queries.new_zeros(self._sequences, lines * dim)
        mixed.index_add_(0, self._owners, parts.view(pairs, -1))
        mixed = mixed.view(self._sequences, lines, dim) / total[..., None]
        mixed = mixed.view(self._sequences, self._heads, self._groups, self._queries, dim)
        return mixed.permute(0, 3, 1, 2, 4).reshape(self._sequences * self._queries, -1)


class Many:
    """One sequence alone: a chunk of its prompt, or the next token of the only one there is.

    Hundreds of queries are worth a copy of the keys; and for a single sequence it is a small one.
    """

    def __init__(self, work: Work, rows: slice, cache: PagedCache) -> None:
        self.rows = rows
        device, end = cache.keys.device, work.start + work.count
        table = work.sequence.table[: -(-end // cache.size)]
        row = table == list(range(table[0], table[0] + len(table)))  # next to each other already
        self._blocks = slice(table[0], table[-1] + 1) if row else torch.tensor(table, device=device)
        self._end, self._single = end, work.count == 1
        places = torch.arange(end, device=device)
        self._mask = places <= places[work.start :, None] if work.start else None

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(rows, heads, dim), one layer's cache → (rows, heads · dim)."""
        keys, values = (
            part[self._blocks].transpose(0, 1).flatten(1, 2)[None, :, : self._end]
            for part in (keys, values)
        )  # (1, kv_heads, end, dim)
        if self._single:  # it sees everything, so the heads of a group can be a group's queries
            queries = queries.reshape(1, keys.shape[1], -1, keys.shape[3])
            return functional.scaled_dot_product_attention(queries, keys, values).view(1, -1)
        mixed = functional.scaled_dot_product_attention(
            queries.transpose(0, 1)[None],
            keys,
            values,
            attn_mask=self._mask,
            is_causal=self._mask is None,
            enable_gqa=True,
        )
        return mixed[0].transpose(0, 1).flatten(1)
