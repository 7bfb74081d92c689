"""Two of the three "accumulated errors": the order of float sums, and fewer bits.

The same tokens go through SmolLM2 in different ways: token by token, all at once, in company, and
with int8 weights. All but the last compute the same sums in another order. A token is chosen by
the *largest* score, so nothing changes while the difference of two scores is smaller than the
margin between the two best; and the next step starts from a token, which is whole again. Source:
He et al., "Defeating Nondeterminism in LLM Inference", Thinking Machines Lab, 2025.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.llm import tokens, weights
from utils.llm.decoder import Cache, Decoder
from utils.llm_concurrency.hardware.bits import int8

QUESTION = "Why does the moon have phases?"
STYLES = {
    "all at once": (plots.BLUE, "s"),
    "in a batch of 4": (plots.SKY, "o"),
    "int8 weights": (plots.VERMILION, "^"),
}


@dataclass(frozen=True)
class Noise:
    """For each of the `chosen` tokens: the margin, and by way the largest change of a score.

    `kl`: mean divergence of the next token's distribution, in nats; `other`: tokens for which
    another one would have been chosen.
    """

    chosen: tuple[int, ...]
    margin: Tensor
    change: dict[str, Tensor]
    kl: dict[str, float]
    other: dict[str, int]


@torch.inference_mode()
def token_by_token(model: Decoder, prompt: list[int], count: int) -> tuple[list[int], Tensor]:
    """The `count` likeliest tokens after `prompt`, and the scores that chose them."""
    cache = Cache(model.config, 1, len(prompt) + count)
    chosen, scores, new = [], [], prompt
    for _ in range(count):
        checkpoint(len(chosen), count, "token by token")
        scores.append(model.lm_head(model.hidden(torch.tensor([new]), cache)[0, -1]))
        new = [int(scores[-1].argmax())]
        chosen += new
    return chosen, torch.stack(scores)


@torch.inference_mode()
def all_at_once(model: Decoder, prompt: list[int], chosen: list[int], batch: int = 1) -> Tensor:
    """The scores for each of `chosen`, from one pass; in company of `batch − 1` other rows."""
    row = torch.tensor([prompt + chosen[:-1]])
    company = row.roll(7, 1).expand(batch - 1, -1)
    hidden = model.hidden(torch.cat([row, company]))[0, len(prompt) - 1 :]
    return model.lm_head(hidden)


@experiment
def run(count: Annotated[int, Range(8, 128, 8, label="tokens of the answer")] = 24) -> Noise:
    """Answer once, then look at the same answer in other ways."""
    checkpoint(0, note="loading the model")
    model = weights.smollm2()
    prompt = tokens.smollm2().chat(QUESTION)
    chosen, reference = token_by_token(model, prompt, count)
    ways = {
        "all at once": lambda: all_at_once(model, prompt, chosen),
        "in a batch of 4": lambda: all_at_once(model, prompt, chosen, 4),
        "int8 weights": lambda: all_at_once(int8(), prompt, chosen),
    }
    change, kl, other = {}, {}, {}
    sure = reference.log_softmax(-1)
    for name, compute in ways.items():
        checkpoint(count, count, name)
        scores = compute()
        change[name] = (scores - reference).abs().amax(1)
        found = scores.log_softmax(-1)
        kl[name] = functional.kl_div(found, sure, reduction="batchmean", log_target=True).item()
        other[name] = int((scores.argmax(1) != reference.argmax(1)).sum())
    best = reference.topk(2, dim=1).values
    return Noise(tuple(chosen), best[:, 0] - best[:, 1], change, kl, other)


def plot(result: Noise) -> plots.Picture:
    """Margins and changes over the tokens, on a logarithmic scale."""
    fig, ax = plots.figure(9, 3.4)
    places = range(1, len(result.chosen) + 1)
    ax.bar(places, result.margin.tolist(), color=plots.PAPER_GREY, label="margin: best − second")
    for name, change in result.change.items():
        color, marker = STYLES[name]
        ax.plot(places, change.clamp(min=1e-7).tolist(), marker=marker, color=color, markersize=4,
                linewidth=0.8, label=name)  # fmt: skip
    ax.set_yscale("log")
    ax.set_ylim(bottom=1e-6)
    ax.set_xlabel("token of the answer", fontsize=9)
    ax.set_ylabel("score", fontsize=9)
    ax.set_title("largest change of any score, beside the margin that decides", loc="left")
    fig.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return fig
