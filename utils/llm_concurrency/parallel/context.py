"""Sequence (context) parallelism: a rank has all weights, but only some of the tokens.

Only attention mixes tokens, so only attention changes: a ring while the question is read, two small
all-reduces a layer for each token of the answer. Keys and values stay where they were made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from utils.deep_learning.collectives.mesh import MeshGroup
from utils.llm.decoder import Attention, Cache, Decoder, rotate, rotation
from utils.llm.sampling import GREEDY, choose
from utils.llm_concurrency.parallel.parts import Said, assemble, parameters
from utils.llm_concurrency.parallel.ring import deal, ring_attention, spread_attention


class SpreadAttention(nn.Module):
    """Attention of one layer over the tokens of all ranks; it keeps this rank's keys and values."""

    def __init__(self, own: Attention, group: MeshGroup, positions: Sequence[Tensor]) -> None:
        super().__init__()
        self.own, self.group, self.positions = own, group, positions
        self.length = sum(map(len, positions))  # of the text, on all ranks
        self.pair: Tensor | None = None  # keys and values

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], visible: Tensor, cache: Cache | None
    ) -> Tensor:
        """x: (1, own tokens, hidden) at first; later the one new token, the same on all ranks."""
        reading = self.pair is None
        places = self.positions[self.group.rank] if reading else torch.tensor([self.length])
        turn = rotation(places, self.own.config, x.dtype)  # not those of a text that begins here
        q, k, v = (
            project(x).unflatten(-1, (-1, self.own.config.head_dim)).transpose(1, 2)
            for project in (self.own.q_proj, self.own.k_proj, self.own.v_proj)
        )
        q, k = rotate(q, *turn), rotate(k, *turn)
        if reading:
            self.pair = torch.stack([k, v])
            mixed = ring_attention(self.group, q, k, v, self.positions)
        else:
            if self.length % self.group.size == self.group.rank:  # new tokens in turns
                self.pair = torch.cat([self.pair, torch.stack([k, v])], -2)
            self.length += 1
            mixed = spread_attention(self.group, q, *self.pair)
        return self.own.o_proj(mixed.transpose(1, 2).flatten(2))


def spread(model: Decoder, group: MeshGroup, positions: Sequence[Tensor]) -> Decoder:
    """`model`, shared and not copied, for the tokens at `positions[rank]` of a text."""
    part = assemble(model.config, model.state_dict())
    for block in part.layers:
        block.self_attn = SpreadAttention(block.self_attn, group, positions)
    return part


@torch.inference_mode()
def be_reader(
    group: MeshGroup, source: Callable[[], Decoder], prompt: Sequence[int], limit: int,
    zigzag: bool = True,
) -> Said:  # fmt: skip
    """Read a share of the prompt, then answer together; everybody finds the same tokens."""
    model, positions = source(), deal(len(prompt), group.size, zigzag)
    part = spread(model, group, positions)
    end = len(prompt) - 1
    holder = next(rank for rank, places in enumerate(positions) if places[-1] == end)
    tokens, sent = [], []
    new = torch.tensor([prompt])[:, positions[group.rank]]
    for step in range(limit):
        last = part.hidden(new)[0, -1]
        token = torch.tensor([choose(part.lm_head(last), GREEDY)])
        if step == 0:  # only who has the prompt's last token knows what follows
            group.broadcast(token, holder)
        tokens.append(int(token))
        new = token[None]
        sent.append(group.bytes_sent)
    return Said(tuple(tokens), tuple(sent), parameters(part))
