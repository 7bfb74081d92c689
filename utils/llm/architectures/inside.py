"""A look into a decoder: the stream of vectors between its blocks, and who attends to whom.

Every block only *adds* to the vectors it is given, so after any of them one may ask the head what
it would say now ("logit lens": nostalgebraist, "interpreting GPT: the logit lens", 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.llm import tokens, weights
from utils.llm.decoder import Decoder, rotate, rotation

Prompt = Literal[
    "The capital of France is",
    "Monday, Tuesday, Wednesday,",
    "The opposite of hot is",
    "The cat sat on the mat. The cat sat on the",
    "When Mary and John went to the store, John gave a drink to",
]


@torch.inference_mode()
def walk(
    model: Decoder, prompt: Sequence[int], *, causal: bool = True, rotated: bool = True
) -> Tensor:
    """The vectors before the first block and after each: (layers + 1, tokens, hidden).

    The blocks are those of `Decoder.hidden`. What they are told about order can be taken away: the
    mask that hides later tokens, and the rotation that says how far apart two tokens are.
    """
    count = len(prompt)
    visible = torch.ones(count, count, dtype=torch.bool)
    places = torch.arange(count) if rotated else torch.zeros(count)
    stream = [model.embed_tokens(torch.tensor([prompt]))]
    turn = rotation(places, model.config, stream[0].dtype)
    for block in model.layers:
        stream.append(block(stream[-1], turn, visible.tril() if causal else visible, None))
    return torch.cat(stream)


@torch.inference_mode()
def attention_weights(model: Decoder, x: Tensor, layer: int) -> Tensor:
    """How much each token takes from each other: (heads, tokens, tokens), rows that add up to 1.

    `x` are the vectors that enter the block, (tokens, hidden). The kernel that `Attention` calls
    computes the same numbers and keeps none of them.
    """
    block, config = model.layers[layer], model.config
    x, attention = block.input_layernorm(x), block.self_attn
    turn = rotation(torch.arange(len(x)), config, x.dtype)
    q, k = (
        rotate(project(x).unflatten(-1, (-1, config.head_dim)).transpose(0, 1), *turn)
        for project in (attention.q_proj, attention.k_proj)
    )
    k = k.repeat_interleave(config.heads // config.kv_heads, 0)  # what GQA shares
    later = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    scores = q @ k.mT / config.head_dim**0.5
    return scores.masked_fill(later, -torch.inf).softmax(-1)


@dataclass(frozen=True)
class Attended:
    """`weights[head, asking, asked]` of the heads of one group, numbered from `first`."""

    tokens: tuple[str, ...]
    layer: int
    first: int
    weights: Tensor


@experiment
def attend(
    prompt: Prompt = "The cat sat on the mat. The cat sat on the",
    layer: Annotated[int, Range(1, 30)] = 18,
    group: Annotated[int, Range(1, 3, label="group of heads")] = 2,
) -> Attended:
    """Who attends to whom in the three heads of SmolLM2 that share one head of keys and values."""
    model, vocabulary = weights.smollm2(), tokens.smollm2()
    checkpoint(0, 1, "reading")
    ids = vocabulary.encode(prompt)
    shared = model.config.heads // model.config.kv_heads
    first = (group - 1) * shared
    heads = attention_weights(model, walk(model, ids)[layer - 1], layer - 1)
    texts = tuple(vocabulary.decode([token]) for token in ids)
    return Attended(texts, layer, first, heads[first : first + shared])


def plot_attended(result: Attended) -> plots.Picture:
    """A square a head: the row asks, the column is asked, darker is more."""
    fig, axes = plots.figure(11, 4.3, cols=len(result.weights), sharey=True)
    places = range(len(result.tokens))
    for number, (ax, head) in enumerate(zip(axes, result.weights, strict=True), result.first + 1):
        image = ax.imshow(head.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
        ax.set_xticks(places, result.tokens, rotation=90)
        ax.set_yticks(places, result.tokens)
        ax.grid(visible=False)
        ax.set_title(f"layer {result.layer}, head {number}", loc="left")
    axes[0].set_ylabel("takes …", fontsize=9)
    fig.colorbar(image, ax=axes, shrink=0.8, label="… this part from the token below")
    return fig


@dataclass(frozen=True)
class Lens:
    """What the head would say after each block: `best[layer][place]`, and how likely it is.

    `answer` is what the model says in the end after the last token.
    """

    tokens: tuple[str, ...]
    best: list[list[str]]
    chances: Tensor  # of `best`
    answer: str
    ranks: Tensor  # (layers + 1,): place of `answer` among all tokens, 1 is the likeliest


@experiment
def lens(prompt: Prompt = "The capital of France is") -> Lens:
    """Ask SmolLM2's head after every block what the next token is."""
    model, vocabulary = weights.smollm2(), tokens.smollm2()
    ids = vocabulary.encode(prompt)
    checkpoint(0, 1, "reading")
    with torch.inference_mode():
        chances = model.lm_head(model.norm(walk(model, ids))).softmax(-1)
    highest, best = chances.max(-1)
    rows = [[vocabulary.decode([token]) for token in row] for row in best.tolist()]
    answer = int(best[-1, -1])
    texts = tuple(vocabulary.decode([token]) for token in ids)
    ranks = (chances[:, -1] > chances[:, -1, answer, None]).sum(-1) + 1
    return Lens(texts, rows, highest, vocabulary.decode([answer]), ranks)


def plot_lens(result: Lens) -> plots.Picture:
    """The likeliest next token after every third block; the final answer's rank after each."""
    fig, (table, curve) = plots.figure(11.5, 4.6, cols=2, width_ratios=[2.6, 1])
    shown = range(0, len(result.best), 3)
    plots.heat_map(
        table, result.chances[shown].tolist(), [[_short(t) for t in result.best[i]] for i in shown],
        [f"after {layer}" if layer else "tokens only" for layer in shown],
        [_short(token) for token in result.tokens], top=1,
    )  # fmt: skip
    table.tick_params(axis="x", top=True, labeltop=True, bottom=False, labelbottom=False)
    for text in table.texts:
        text.set_fontsize(8 if len(result.tokens) < 10 else 6)
    table.tick_params(axis="x", rotation=0 if len(result.tokens) < 10 else 60)
    curve.semilogy(result.ranks.numpy(), color=plots.BLUE, marker=".")
    curve.invert_yaxis()
    curve.set_xlabel("blocks passed", fontsize=9)
    curve.set_title(f"Rank of “{_short(result.answer)}” (1: said)", loc="left")
    return fig


def _short(text: str) -> str:
    """Drawable: letters a font may lack, line breaks and long tokens would spoil the table."""
    plain = text.encode("ascii", "replace").decode().replace("\n", r"\n").replace("$", r"\$")
    return (plain[:9] + "…" if len(plain) > 10 else plain).strip() or "␣"
