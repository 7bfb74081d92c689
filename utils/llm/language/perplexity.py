"""How well a model predicts a text that is there already: the loss of every token, in one pass.

    loss of a token   −log p(token | those before it), in nats
    loss of a text    their sum, which is −log p(text), for probabilities multiply
    perplexity        exp(loss / tokens): so many equally likely tokens would be as hard to guess
    bits per byte     loss / log 2 / bytes: what a perfect packer needs with this model. It does not
                      depend on how the text is cut into tokens, so models can be compared by it

Sources: Jelinek et al., "Perplexity — a measure of the difficulty of speech recognition tasks"
(J. Acoust. Soc. Am. 62, 1977); Hugging Face Transformers, "Perplexity of fixed-length models", for
the windows; Gao et al., "The Pile" (arXiv:2101.00027), for bits per byte.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.llm import tokens, weights
from utils.llm.decoder import Decoder
from utils.llm.language import texts
from utils.llm.tokens import Tokens

BEGIN = "<|endoftext|>"  # stood between two texts when the model was trained


@torch.inference_mode()
def losses(
    model: Decoder, row: Sequence[int], context: int | None = None, stride: int | None = None
) -> Tensor:
    """−log p of each token but the first, in nats: (n,) tokens → (n − 1,).

    If the row is longer than `context` (the model's own, unless told), it goes through the model
    in windows of so many tokens, and each next window scores only its last `stride` (half of the
    context, unless told): the smaller, the more each token has before it, and the more work it is.
    ValueError: less than two tokens, or a stride that is not from 1 to `context`.
    """
    context = model.config.context if context is None else context
    stride = -(-context // 2) if stride is None else stride
    if len(row) < 2 or not 1 <= stride <= context:
        raise ValueError(
            f"{len(row)} tokens, stride={stride}: give at least 2 tokens, and a stride from 1 to "
            f"context={context}"
        )
    ids, targets, done, found = torch.tensor(row), len(row) - 1, 0, []
    for end in chain(range(context, targets, stride), [targets]):
        checkpoint()
        begin = max(0, end - context)
        hidden = model.hidden(ids[None, begin:end])[0, done - begin :]
        found.append(
            cross_entropy(model.lm_head(hidden), ids[done + 1 : end + 1], reduction="none")
        )
        done = end
    return torch.cat(found)


@dataclass(frozen=True)
class Score:
    """A text of so many tokens and bytes, and its loss, −log p(text), in nats."""

    tokens: int
    bytes: int
    loss: float

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        return self.loss / math.log(2) / self.bytes


def score(model: Decoder, vocabulary: Tokens, row: Sequence[int]) -> Score:
    """How well the model predicts the tokens of a whole text."""
    loss = losses(model, [*vocabulary.encode(BEGIN), *row]).double().sum()
    return Score(len(row), sum(len(vocabulary.spell(token)) for token in row), float(loss))


@experiment
def run(
    length: Annotated[int, Range(16, 160, 16, label="tokens of each text")] = 64,
    seed: Annotated[int, Range(0, 20)] = 0,
) -> dict[str, Score]:
    """The first tokens of texts of every kind, as the real model finds them."""
    model, vocabulary, found = weights.smollm2(), tokens.smollm2(), {}
    corpus = texts.corpus(seed)
    for done, (kind, text) in enumerate(corpus.items()):
        checkpoint(done, len(corpus), kind)
        found[kind] = score(model, vocabulary, vocabulary.encode(text)[:length])
    return found


def plot(result: dict[str, Score]) -> plots.Picture:
    """Three measures of the same texts: they do not rank them alike."""
    fig, axes = plots.figure(9.5, 3.6, cols=3, sharey=True)
    columns = (
        ("perplexity", "{:.3g}", [score.perplexity for score in result.values()]),
        ("bytes a token", "{:.2f}", [score.bytes / score.tokens for score in result.values()]),
        ("bits per byte", "{:.2f}", [score.bits_per_byte for score in result.values()]),
    )
    for ax, (name, form, values), color in zip(
        axes, columns, (plots.BLUE, plots.GREY, plots.GREEN), strict=True
    ):
        bars = ax.barh(list(result), values, color=color)
        ax.bar_label(bars, [form.format(value) for value in values], fontsize=9, padding=3)
        ax.grid(visible=False)
        ax.set_title(name, loc="left")
        ax.margins(x=0.22)
        ax.set_xticks([])
    axes[0].set(xscale="log", xlim=(1, 20 * max(columns[0][2])))
    axes[0].set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1000"])
    axes[0].minorticks_off()
    axes[0].invert_yaxis()
    return fig
