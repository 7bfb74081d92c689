"""A decoder of the Llama architecture: what turns a row of tokens into scores for the next one.

Tokens become vectors (`embed_tokens`); each block adds to every vector what attention finds in the
vectors *before* it and what a small network (SwiGLU) makes of it alone; the head compares the last
result with the vector of each token of the vocabulary. Parameters are named as in the checkpoints.

Sources: Touvron et al., "LLaMA" (arXiv:2302.13971); Su et al., "RoFormer" (arXiv:2104.09864);
Ainslie et al., "GQA" (arXiv:2305.13245); Shazeer, "GLU variants" (arXiv:2002.05202); Zhang and
Sennrich, "Root Mean Square Layer Normalization" (arXiv:1910.07467).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Config:
    """The shape of a decoder: SmolLM2-135M unless told otherwise."""

    vocabulary: int = 49152
    layers: int = 30
    hidden: int = 576
    heads: int = 9
    kv_heads: int = 3  # heads // kv_heads query heads share one head of keys and values
    head_dim: int = 64
    intermediate: int = 1536
    context: int = 8192  # tokens the model was trained to see at once
    rope_theta: float = 100_000.0
    eps: float = 1e-5
    tied: bool = True  # the head is the embedding

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}")


class Cache:
    """Keys and values of the tokens so far, so that only new tokens need computing.

    Shape: (layers, batch, kv_heads, capacity, head_dim), twice; `length` tokens are there.
    """

    def __init__(
        self, config: Config, batch: int, capacity: int, dtype: torch.dtype = torch.float32
    ) -> None:
        shape = (config.layers, batch, config.kv_heads, capacity, config.head_dim)
        self.keys, self.values = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
        self.length = 0

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep what is new, (batch, kv_heads, new, head_dim); give back all there is.

        ValueError: the new tokens do not fit.
        """
        end = self.length + keys.shape[2]
        if end > self.keys.shape[3]:
            raise ValueError(f"{end} tokens do not fit into a cache of {self.keys.shape[3]}")
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


def rotation(positions: Tensor, config: Config, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine for each position and pair of numbers: (…, tokens) → (…, tokens, head_dim).

    Pair i of a head turns by position · theta^(−2i/head_dim): early pairs fast, late ones slowly.
    A product of a query and a key then depends on how far apart they are, not on where.
    """
    pairs = torch.arange(0, config.head_dim, 2, device=positions.device) / config.head_dim
    angles = positions[..., None].float() * config.rope_theta**-pairs
    angles = torch.cat([angles, angles], -1)  # number i and number i + head_dim/2 are a pair
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of (…, tokens, head_dim) by its angle."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class RMSNorm(nn.Module):
    """Each vector divided by its root mean square, times a learnt weight for every number."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Attention(nn.Module):
    """Every token asks all tokens up to itself, and takes a mean of what they offer."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden, bias=False)

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], visible: Tensor, cache: Cache | None
    ) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )  # (batch, heads, tokens, head_dim)
        q, k = rotate(q, *turn), rotate(k, *turn)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        mixed = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=visible, enable_gqa=True
        )  # softmax(q kᵀ / √head_dim) v, in one kernel
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU: one product is the gate of another, number by number."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden, config.intermediate, bias=False)
        self.up_proj = nn.Linear(config.hidden, config.intermediate, bias=False)
        self.down_proj = nn.Linear(config.intermediate, config.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention, then the small network; each *adds* to the stream of vectors."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden, config.eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden, config.eps)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], visible: Tensor, cache: Cache | None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), turn, visible, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """The whole model."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocabulary, config.hidden)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.hidden, config.eps)
        self.lm_head = nn.Linear(config.hidden, config.vocabulary, bias=False)
        if config.tied:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(
        self, tokens: Tensor, cache: Cache | None = None, real: Tensor | None = None
    ) -> Tensor:
        """Scores (logits) for the token after each of `tokens`: (batch, new) → (…, vocabulary).

        With a cache, `tokens` follow those in it. `real`, (batch, cached + new), says which tokens
        are no padding; padding stands on the left.
        """
        return self.lm_head(self.hidden(tokens, cache, real))

    def hidden(
        self, tokens: Tensor, cache: Cache | None = None, real: Tensor | None = None
    ) -> Tensor:
        """The vector of each token before the head compares it: (batch, new, hidden)."""
        return self.run(self.embed_tokens(tokens), cache, real)

    def run(self, x: Tensor, cache: Cache | None = None, real: Tensor | None = None) -> Tensor:
        """The same from vectors (batch, new, hidden), which need not be those of tokens."""
        past = cache.length if cache is not None else 0
        end = past + x.shape[1]
        if real is None:
            real = torch.ones(len(x), end, dtype=torch.bool, device=x.device)
        places = torch.arange(end, device=x.device)
        visible = (places <= places[past:, None]) & real[:, None, None, :]
        visible = visible | (places == places[past:, None])  # padding sees itself: no empty softmax
        positions = (real.long().cumsum(-1) - 1).clamp(min=0)[:, None, past:]
        turn = rotation(positions, self.config, x.dtype)
        for block in self.layers:
            x = block(x, turn, visible, cache)
        if cache is not None:
            cache.length = end
        return self.norm(x)
