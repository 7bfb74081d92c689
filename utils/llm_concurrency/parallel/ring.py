"""Ring attention: each rank has some tokens; blocks of keys and values go round to all queries.

Softmax needs the sum over all keys, and here they come one block after another. It is enough to
keep, beside the mean so far, the logarithm of the sum so far (log-sum-exp): two means merge into
one, weighted by their sums. While a rank computes with a block, its wire passes that block on.

Sources: Liu et al., "Ring Attention with Blockwise Transformers for Near-Infinite Context"
(arXiv:2310.01889); Milakov and Gimelshein, "Online normalizer calculation for softmax"
(arXiv:1805.02867); Dao et al., "FlashAttention" (arXiv:2205.14135, backward from log-sum-exp).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from utils.core import trace
from utils.deep_learning.collectives.mesh import MeshGroup


def ring_attention(
    group: MeshGroup, q: Tensor, k: Tensor, v: Tensor, positions: Sequence[Tensor],
    causal: bool = True,
) -> Tensor:  # fmt: skip
    """This rank's rows of softmax(q kᵀ / √head_dim) v over the tokens of all ranks.

    q: (batch, heads, own, head_dim); k and v with kv_heads, which divide the heads.
    `positions[r]`, ascending, says where rank r's tokens stand in the text. ValueError.
    """
    if len(positions) != group.size or not all(len(places) for places in positions):
        raise ValueError(
            f"positions for {[len(places) for places in positions]} tokens are not allowed: give "
            f"each of {group.size} ranks at least 1"
        )
    return _Ring.apply(q, k, v, group, positions, causal)


class _Wire:
    """To the next rank and from the one before; a thread carries, so that the rank can compute."""

    def __init__(self, group: MeshGroup, positions: Sequence[Tensor]) -> None:
        self.group, self.lengths = group, [len(places) for places in positions]
        self.thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))

    def __enter__(self) -> _Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.shutdown(cancel_futures=True)

    def hop(self, block: Tensor, owner: int) -> Future[Tensor]:
        """Pass `block` (…, tokens, head_dim) on; what comes belongs to `owner`."""
        return self.thread.submit(self._hop, block.contiguous(), owner)

    def _hop(self, block: Tensor, owner: int) -> Tensor:
        rank, size = self.group.rank, self.group.size
        if size == 1:
            return block
        into = block.new_empty(*block.shape[:-2], self.lengths[owner], block.shape[-1])
        with trace.span("communicate", "hop", lane=f"{self.group.lane} wire", bytes=block.nbytes):
            self.group.exchange(block, (rank + 1) % size, into, (rank - 1) % size)
        return into

    def circulate(self, block: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Every rank's block and its number: the own first, then as they come round."""
        rank, size = self.group.rank, self.group.size
        for step in range(size):
            if step + 1 < size:
                coming = self.hop(block, (rank - step - 1) % size)
            yield (rank - step) % size, block
            if step + 1 < size:
                with trace.span("queue", "waits for a block", lane=self.group.lane):
                    block = coming.result()


def in_sight(mine: Tensor, theirs: Tensor, causal: bool) -> tuple[int, int]:
    """My queries from the first number on see something of theirs, and only keys up to the second.

    The rest of the block need not be computed.
    """
    if not causal:
        return 0, len(theirs)
    first = torch.searchsorted(mine, theirs[0])
    return int(first), int(torch.searchsorted(theirs, mine[-1], right=True))


def _scores(q: Tensor, k: Tensor, mine: Tensor, theirs: Tensor, causal: bool) -> Tensor:
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return scores.masked_fill(theirs > mine[:, None], -math.inf) if causal else scores


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, group: MeshGroup,
        positions: Sequence[Tensor], causal: bool,
    ) -> Tensor:  # fmt: skip
        mine, shape = positions[group.rank], q.shape
        q = q.unflatten(1, (k.shape[1], -1))  # (batch, kv_heads, heads that share one, own, dim)
        pair = torch.stack([k, v])[:, :, :, None]
        out, sums = torch.zeros_like(q), q.new_full(q.shape[:-1], -math.inf)  # log-sum-exp
        with _Wire(group, positions) as wire:
            for owner, (keys, values) in wire.circulate(pair):
                a, b = in_sight(mine, positions[owner], causal)
                if a == len(mine):
                    continue
                with trace.span("compute", f"block {owner}", lane=group.lane, block=owner):
                    theirs = positions[owner][:b]
                    scores = _scores(q[..., a:, :], keys[..., :b, :], mine[a:], theirs, causal)
                    # finite: the own block came first, and there each query sees itself
                    both = torch.logaddexp(sums[..., a:], scores.logsumexp(-1))
                    out[..., a:, :] *= (sums[..., a:] - both).exp()[..., None]
                    out[..., a:, :] += (scores - both[..., None]).exp() @ values[..., :b, :]
                    sums[..., a:] = both
        ctx.group, ctx.positions, ctx.causal = group, positions, causal
        ctx.save_for_backward(q, pair, out, sums)
        return out.reshape(shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Blocks go round once more, and with each the gradient of its keys and values."""
        group, positions, causal = ctx.group, ctx.positions, ctx.causal
        q, pair, out, sums = ctx.saved_tensors
        mine, gradient = positions[group.rank], gradient.reshape(q.shape)
        along = (gradient * out).sum(-1, keepdim=True)  # what softmax takes off each score's
        dq, collected = torch.zeros_like(q), torch.zeros_like(pair)
        with _Wire(group, positions) as wire:
            for owner, (keys, values) in wire.circulate(pair):
                if owner != group.rank:
                    collected = wire.hop(collected, owner).result()
                a, b = in_sight(mine, positions[owner], causal)
                if a == len(mine):
                    continue
                with trace.span("compute", f"block {owner}", lane=group.lane, block=owner):
                    some, keys, values = q[..., a:, :], keys[..., :b, :], values[..., :b, :]
                    theirs, down = positions[owner][:b], gradient[..., a:, :]
                    scores = _scores(some, keys, mine[a:], theirs, causal)
                    weights = (scores - sums[..., a:, None]).exp()
                    inner = weights * (down @ values.mT - along[..., a:, :])
                    inner = inner / math.sqrt(q.shape[-1])
                    dq[..., a:, :] += inner @ keys
                    dk, dv = inner.mT @ some, weights.mT @ down
                    # a head of keys and values gets the sum over the queries that share it
                    collected[..., :b, :] += torch.stack([dk, dv]).sum(3, keepdim=True)
            dk, dv = wire.hop(collected, group.rank).result().squeeze(3)  # home
        return dq.flatten(1, 2), dk, dv, None, None, None


def spread_attention(group: MeshGroup, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One token's attention over the keys of all ranks, (batch, heads, 1, head_dim): the same q
    everywhere, each with its own k and v. Two small all-reduces, however many keys there are."""
    q = q.unflatten(1, (k.shape[1], -1))
    scores = q @ k[:, :, None].mT / math.sqrt(q.shape[-1])
    sums = scores.logsumexp(-1, keepdim=True)
    top = sums.clone()
    group.all_reduce(top, "max")
    share = scores.softmax(-1) @ v[:, :, None]
    both = torch.cat([share, torch.ones_like(sums)], -1) * (sums - top).exp()
    group.all_reduce(both)
    return (both[..., :-1] / both[..., -1:]).flatten(1, 2)


def deal(tokens: int, ranks: int, zigzag: bool) -> list[Tensor]:
    """The positions of each rank's tokens: a stretch each; or, in zigzag, one of 2N short
    stretches from the front and one from the back. ValueError: too few tokens."""
    stretches = 2 * ranks if zigzag else ranks
    if tokens < stretches:
        raise ValueError(f"tokens={tokens} is not allowed: give at least {stretches}")
    parts = torch.arange(tokens).tensor_split(stretches)
    if not zigzag:
        return list(parts)
    return [torch.cat([parts[rank], parts[-1 - rank]]) for rank in range(ranks)]
