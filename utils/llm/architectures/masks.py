"""Encoder or decoder? Change the last word of a sentence and see whose vectors change.

In an encoder (BERT) every token sees all others; in a decoder only those before it. The difference
is one triangle of ones: SmolLM2 without its mask behaves like the encoder. Sources: Devlin et al.,
"BERT" (arXiv:1810.04805); Raffel et al., "T5" (arXiv:1910.10683, section 3.2.1, on masks).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from utils.core import plots
from utils.core.experiment import checkpoint, experiment
from utils.llm import tokens, weights
from utils.llm.architectures.inside import walk
from utils.overview.areas import nlp

Beginning = Literal[
    "He went to the bank to", "The bat was in the", "The answer to your question is"
]
ENDINGS: dict[Beginning, tuple[str, str]] = {  # each one token in both vocabularies
    "He went to the bank to": ("swim", "pay"),
    "The bat was in the": ("cave", "game"),
    "The answer to your question is": ("yes", "no"),
}


@dataclass(frozen=True)
class Changes:
    """How far each token's vector moved, relative to its length: by model, a number a token."""

    texts: tuple[str, str]
    tokens: dict[str, tuple[str, ...]]
    moved: dict[str, Tensor]


@experiment
def run(beginning: Beginning = "He went to the bank to") -> Changes:
    """Read the sentence with both endings; compare the vectors of each place."""
    one, other = (f"{beginning} {ending}" for ending in ENDINGS[beginning])
    model, vocabulary = weights.smollm2(), tokens.smollm2()
    readers = {
        "MiniLM, an encoder": minilm,
        "SmolLM2, a decoder": lambda text: walk(model, vocabulary.encode(text))[-1],
        "SmolLM2 without its mask": lambda text: walk(model, vocabulary.encode(text), causal=False)[
            -1
        ],
    }
    moved = {}
    for done, (name, read) in enumerate(readers.items()):
        checkpoint(done, len(readers), name)
        before, after = read(one), read(other)
        moved[name] = (before - after).norm(dim=-1) / before.norm(dim=-1)
    pieces = tuple(vocabulary.decode([token]).strip() for token in vocabulary.encode(one))
    shown = dict.fromkeys(readers, pieces) | {"MiniLM, an encoder": minilm_tokens(one)}
    return Changes((one, other), shown, moved)


def plot(result: Changes) -> plots.Picture:
    """A panel a model, a bar a token; the last token is the one that was changed."""
    fig, axes = plots.figure(11, 3, cols=len(result.moved), sharey=True)
    for ax, (name, moved) in zip(axes, result.moved.items(), strict=True):
        names = result.tokens[name]
        colors = [plots.ORANGE if index == _changed(names) else plots.BLUE
                  for index in range(len(names))]  # fmt: skip
        ax.bar(range(len(names)), moved.numpy(), color=colors)
        ax.set_xticks(range(len(names)), names, rotation=90)
        ax.set_title(name, loc="left")
    axes[0].set_ylabel("change of the vector ÷ its length", fontsize=9)
    return fig


def _changed(names: Sequence[str]) -> int:
    return len(names) - (2 if names[-1] == "[SEP]" else 1)


def minilm(text: str) -> Tensor:
    """The vector of each token of `text`, [CLS] and [SEP] included: (tokens, 384)."""
    tokenizer, model = nlp.minilm()
    with torch.inference_mode():
        ids = torch.tensor([tokenizer.encode(text).ids])
        return model(input_ids=ids).last_hidden_state[0]


def minilm_tokens(text: str) -> tuple[str, ...]:
    return tuple(nlp.minilm()[0].encode(text).tokens)


def alike(vectors: Tensor, names: Sequence[str]) -> plots.Picture:
    """The cosine of each two of the (n, size) vectors, as a table."""
    unit = functional.normalize(vectors, dim=-1)
    cosines = (unit @ unit.T).numpy()
    side = 2.6 + 0.5 * len(names)
    fig, ax = plots.figure(1.5 + side, 0.35 * len(names) + 1.2)
    cells = [[f"{value:.2f}" for value in row] for row in cosines]
    short = [name if len(name) < 14 else f"{name[:12]}…" for name in names]
    plots.heat_map(ax, cosines.clip(0), cells, names, short, top=1)
    ax.tick_params(axis="x", rotation=25)
    return fig
