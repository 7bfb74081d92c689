"""Three relatives of the decoder: an encoder, a recurrent network, and an encoder–decoder.

Sources: Devlin et al., "BERT" (arXiv:1810.04805); Cho et al. (arXiv:1406.1078, the GRU); Vaswani
et al., "Attention Is All You Need" (arXiv:1706.03762).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from utils.llm.decoder import Block, Cache, Config, Decoder, RMSNorm, rotation


def make(kind: type[nn.Module], config: Config, seed: int = 0) -> nn.Module:
    """A new network with parameters drawn from `seed`; the caller's random numbers stay."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = kind(config)
        for weight in network.parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        if isinstance(network, Decoder):  # a tied head: scores of about 1, not of √hidden
            nn.init.normal_(network.embed_tokens.weight, std=0.1)
    return network


class Encoder(Decoder):
    """The decoder without its mask: every token sees all real ones, later ones too."""

    def hidden(
        self, tokens: Tensor, cache: Cache | None = None, real: Tensor | None = None
    ) -> Tensor:
        """(batch, tokens) → (…, hidden). There is no cache: a new token changes all vectors."""
        if cache is not None:
            raise ValueError("cache is not allowed: in an encoder a new token changes all vectors")
        if real is None:
            real = torch.ones(tokens.shape, dtype=torch.bool)
        x = self.embed_tokens(tokens)
        turn = rotation(torch.arange(tokens.shape[1]), self.config, x.dtype)
        for block in self.layers:
            x = block(x, turn, real[:, None, None, :], None)
        return self.norm(x)


class Recurrent(nn.Module):
    """One vector a layer remembers all that was read; each new token makes the next from it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocabulary, config.hidden)
        self.gru = nn.GRU(config.hidden, config.hidden, config.layers, batch_first=True)
        self.lm_head = nn.Linear(config.hidden, config.vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores for the token after each: (batch, tokens) → (…, vocabulary)."""
        return self.read(tokens)[0]

    def read(self, tokens: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scores, and the (layers, batch, hidden) state to go on from."""
        vectors, state = self.gru(self.embed_tokens(tokens), state)
        return self.lm_head(vectors), state


class CrossAttention(nn.Module):
    """Tokens of one text ask those of another. No mask, no rotation: that text is complete."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.head_dim, size = config.head_dim, config.heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden, size, bias=False)
        self.k_proj = nn.Linear(config.hidden, size, bias=False)
        self.v_proj = nn.Linear(config.hidden, size, bias=False)
        self.o_proj = nn.Linear(size, config.hidden, bias=False)

    def forward(self, x: Tensor, source: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """What is found for `x`, and the weights: (…, heads, tokens of x, tokens of source)."""
        q, k, v = (
            project(vectors).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project, vectors in ((self.q_proj, x), (self.k_proj, source), (self.v_proj, source))
        )
        scores = q @ k.mT / self.head_dim**0.5
        weights = scores.masked_fill(~real[:, None, None, :], -torch.inf).softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).flatten(2)), weights


class CrossBlock(nn.Module):
    """A decoder's block with a third part between its two: a look at the source."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.block = Block(config, layer)
        self.cross_layernorm = RMSNorm(config.hidden, config.eps)
        self.cross_attn = CrossAttention(config)

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], visible: Tensor, source: Tensor, real: Tensor
    ) -> tuple[Tensor, Tensor]:
        block = self.block
        x = x + block.self_attn(block.input_layernorm(x), turn, visible, None)
        found, weights = self.cross_attn(self.cross_layernorm(x), source, real)
        x = x + found
        return x + block.mlp(block.post_attention_layernorm(x)), weights


class EncoderDecoder(nn.Module):
    """The Transformer of 2017: an encoder reads the source, a decoder writes and looks at it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.layers = nn.ModuleList(CrossBlock(config, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.hidden, config.eps)

    def forward(self, source: Tensor, real: Tensor, written: Tensor) -> tuple[Tensor, Tensor]:
        """Scores for the token after each written one, (batch, written, vocabulary); and where the
        last layer looked, (batch, heads, written, source). Padding, not `real`, is never seen."""
        memory = self.encoder.hidden(source, real=real)
        x = self.encoder.embed_tokens(written)
        count = written.shape[1]
        turn = rotation(torch.arange(count), self.config, x.dtype)
        visible = torch.ones(count, count, dtype=torch.bool).tril()
        for layer in self.layers:
            x, weights = layer(x, turn, visible, memory, real)
        return self.encoder.lm_head(self.norm(x)), weights

    @torch.inference_mode()
    def write(self, source: Tensor, real: Tensor, start: int, count: int) -> tuple[Tensor, Tensor]:
        """The likeliest next token, `count` times: (batch, count); and where it looked."""
        written = torch.full((len(source), 1), start)
        for _ in range(count):
            scores, weights = self(source, real, written)
            written = torch.cat([written, scores[:, -1:].argmax(-1)], 1)
        return written[:, 1:], weights
