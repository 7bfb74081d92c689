"""The same decoder as in chapter 5, laid out for speed: the work of many sequences in one pass.

All tokens of a step, whosesoever they are, stand in one row, (tokens, hidden): a linear layer does
not ask to whom a token belongs. Only attention does. Queries, keys and values come from one matrix,
gate and up from another; the weights of a norm are multiplied into the matrix behind it; and the
numbers that rotation pairs lie side by side, so that it is one product of complex numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Row
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional

from utils.llm.decoder import Block, Config, Decoder, rotation
from utils.llm_concurrency.engine.cache import Few, Many, PagedCache
from utils.llm_concurrency.engine.scheduler import Work

Linear = Callable[[Tensor], Tensor]
Layout = Callable[[Tensor], Linear]  # from a weight (out, in) to the layer that multiplies with it
FEW = 8  # queries of a sequence in a step, up to which its blocks are not copied together


def plain(weight: Tensor) -> Linear:
    """The weight as it is."""
    return lambda x: functional.linear(x, weight)


class _Layer:
    def __init__(self, block: Block, config: Config, layout: Layout) -> None:
        attention, mlp = block.self_attn, block.mlp
        before = block.input_layernorm.weight
        queries, keys = (
            _side_by_side(linear.weight, config) for linear in (attention.q_proj, attention.k_proj)
        )
        self.qkv = layout(torch.cat([queries, keys, attention.v_proj.weight]) * before)
        self.out = layout(attention.o_proj.weight)
        before = block.post_attention_layernorm.weight
        self.gate_up = layout(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]) * before)
        self.down = layout(mlp.down_proj.weight)


def _side_by_side(weight: Tensor, config: Config) -> Tensor:
    """Rows (heads · dim, in) with number i of a head next to number i + dim/2."""
    heads = weight.unflatten(0, (-1, 2, config.head_dim // 2))
    return heads.transpose(1, 2).reshape(weight.shape)


class PagedModel:
    """Computes a step's work with a paged cache. Not to be called by two threads at once."""

    def __init__(
        self,
        decoder: Decoder,
        count: int,
        size: int,
        layout: Layout = plain,
    ) -> None:
        config, embedding = decoder.config, decoder.embed_tokens.weight
        self.config, self._embedding = config, embedding
        self._layers = [_Layer(block, config, layout) for block in decoder.layers]
        self._head = layout(decoder.lm_head.weight * decoder.norm.weight)
        self.cache = PagedCache(config, count, size, embedding.dtype, embedding.device)
        exact = torch.promote_types(embedding.dtype, torch.float32)  # no complex number has 16 bits
        cos, sin = rotation(torch.arange(config.context), config, exact)
        half = config.head_dim // 2
        self._turns = torch.complex(cos[:, :half], sin[:, :half]).to(embedding.device)

    @torch.inference_mode()
    def scores(self, works: Row[Work]) -> Tensor:
        """Scores for the next token, (rows, vocabulary): `Work.rows` rows for each work."""
        step = _Step(works, self.cache, self.config)
        return self._head(self._norm(self._run(step)[step.wanted]))

    def _run(self, step: _Step) -> Tensor:
        heads = self.config.heads, self.config.kv_heads, self.config.kv_heads
        turns = self._turns[step.places, None]
        x = self._embedding[step.tokens]
        for layer, keys, values in zip(
            self._layers, self.cache.keys, self.cache.values, strict=True
        ):
            qkv = layer.qkv(self._norm(x)).view(len(x), -1, self.config.head_dim)
            q, k, v = qkv.split(heads, dim=1)
            _turn(qkv[:, : -heads[2]], turns)
            keys[step.blocks, :, step.offsets] = k
            values[step.blocks, :, step.offsets] = v
            mixed = [part.attend(q[part.rows], keys, values) for part in step.parts]
            x += layer.out(mixed[0] if len(mixed) == 1 else torch.cat(mixed))
            gate, up = layer.gate_up(self._norm(x)).chunk(2, dim=-1)
            x += layer.down(functional.silu(gate).mul_(up))
        return x

    def _norm(self, x: Tensor) -> Tensor:
        # `functional.rms_norm` does the same in twice as many operations, here.
        squares = x.float().square() if x.itemsize == 2 else x.square()
        return x * squares.mean(-1, keepdim=True).add_(self.config.eps).rsqrt_().to(x.dtype)


def _turn(x: Tensor, turns: Tensor) -> None:
    """Rotate queries and keys where they are: (tokens, heads, head_dim), pairs side by side."""
    wide = x.float() if x.itemsize == 2 else x
    pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2))).mul_(turns)
    if wide is not x:
        x.copy_(torch.view_as_real(pairs).flatten(-2))


class _Step:
    """Where the tokens of a step stand: who has few in front, those with equally many together."""

    def __init__(self, works: Row[Work], cache: PagedCache, config: Config) -> None:
        tokens: list[int] = []
        places: list[int] = []
        blocks: list[int] = []
        ends: dict[int, int] = {}  # of a sequence's rows
        self.parts: list[Few | Many] = []
        for count, group in groupby(sorted(works, key=_count), key=_count):
            together = list(group)
            if count < 1:
                number = together[0].sequence.number
                raise ValueError(f"request {number}: no token to compute, so no scores either")
            for one in together:
                sequence, end = one.sequence, one.start + count
                tokens += (sequence.tokens[one.start :] + sequence.draft)[:count]
                places += range(one.start, end)
                blocks += [sequence.table[place // cache.size] for place in range(one.start, end)]
                ends[sequence.number] = len(tokens)
                if count > FEW or len(together) == 1:
                    self.parts.append(Many(one, slice(len(tokens) - count, len(tokens)), cache))
            if count <= FEW and len(together) > 1:
                rows = slice(len(tokens) - count * len(together), len(tokens))
                self.parts.append(Few(together, rows, cache, config))
        wanted = [  # in the order of `works` again
            ends[one.sequence.number] - back for one in works for back in range(one.rows, 0, -1)
        ]
        self.tokens, self.places, self.blocks, self.wanted = (
            torch.tensor(numbers, dtype=torch.long, device=cache.keys.device)
            for numbers in (tokens, places, blocks, wanted)
        )
        self.offsets = self.places % cache.size


def _count(work: Work) -> int:
    return work.count
