"""What may come next: the model's probability for every token, and what the rules leave of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Literal

import torch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from utils.core import plots
from utils.core.experiment import Range, experiment
from utils.llm import tokens, weights
from utils.llm.language.coloured import FONT, words
from utils.llm.sampling import Sampling, probabilities

SHOWN = 18  # of the likeliest tokens
RULES = {
    "repetition_penalty": "repetition penalty", "temperature": "temperature",
    "top_k": "top-k", "top_p": "top-p", "min_p": "min-p",
}  # fmt: skip
Text = Literal[
    "The capital of France is",
    "The best way to learn is to",
    "Once upon a time there was a",
    "One, two, three, four, five,",
    "A rose is a rose is a",
    "def square(x): return x",
    "Das Wetter ist heute",
]


@dataclass(frozen=True)
class Stage:
    """`chances`: the probability of each token after one more rule, (vocabulary,)."""

    rule: str
    chances: Tensor

    @property
    def left(self) -> int:
        """How many tokens may still be chosen."""
        return int((self.chances > 0).sum())

    @property
    def bits(self) -> float:
        """Entropy: how many bits the choice is worth on average. 0 bits: there is none."""
        return float(torch.special.entr(self.chances.double()).sum()) / math.log(2)


@dataclass(frozen=True)
class Next:
    """The stages from what the model says to what the dice see."""

    text: str
    stages: tuple[Stage, ...]

    @property
    def likeliest(self) -> list[int]:
        """Tokens, by the model's own probability."""
        return self.stages[0].chances.topk(SHOWN).indices.tolist()

    def cut(self, token: int) -> str:
        """The rule that forbids a token; "" if it may be chosen."""
        return next((stage.rule for stage in self.stages if stage.chances[token] == 0), "")


@lru_cache(64)
@torch.inference_mode()
def scores(text: str) -> Tensor:
    """The model's scores for what follows `text`, (vocabulary,). Only the last token needs some.

    ValueError: there is no text.
    """
    prompt = tokens.smollm2().encode(text)
    if not prompt:
        raise ValueError("text='' is not allowed: give at least one letter")
    model = weights.smollm2()
    return model.lm_head(model.hidden(torch.tensor([prompt]))[0, -1])


def after(text: str, how: Sampling) -> Next:
    """Rule by rule, in the order in which `probabilities` applies them."""
    given, said = scores(text), tokens.smollm2().encode(text)
    so_far = Sampling(temperature=1)
    stages = [Stage("the model", probabilities(given, so_far))]
    for rule, name in RULES.items():
        so_far = replace(so_far, **{rule: getattr(how, rule)})
        stages.append(Stage(name, probabilities(given, so_far, said)))
    return Next(text, tuple(stages))


@experiment
def run(
    text: Text = "The best way to learn is to",
    temperature: Annotated[float, Range(0, 2, 0.1)] = 1,
    top_k: Annotated[int, Range(0, 50, label="top-k (0: all)")] = 0,
    top_p: Annotated[float, Range(0.05, 1, 0.05, label="top-p")] = 1,
    min_p: Annotated[float, Range(0, 0.5, 0.01, label="min-p")] = 0,
    repetition_penalty: Annotated[float, Range(1, 2, 0.1)] = 1,
) -> Next:
    """The model is asked once for a text; a slider changes only what is made of its answer."""
    return after(text, Sampling(temperature, top_k, top_p, min_p, repetition_penalty))


def plot(result: Next) -> plots.Picture:
    """The likeliest tokens before and after the rules; how much choice each rule leaves."""
    fig, (ax, right) = plots.figure(9.5, 4.6, cols=2, gridspec_kw={"width_ratios": [3, 2]})
    first, last = result.stages[0], result.stages[-1]
    likeliest = result.likeliest
    rows = range(len(likeliest))
    ax.barh(rows, first.chances[likeliest].tolist(), 0.8, color=plots.PAPER_GREY, label="the model")
    ax.barh(rows, last.chances[likeliest].tolist(), 0.44, color=plots.BLUE, label="after all rules")
    for row, token in enumerate(likeliest):
        if rule := result.cut(token):
            x = float(first.chances[token])
            ax.annotate(
                f"cut by {rule}", (x, row), (4, 0), textcoords="offset points",
                va="center", fontsize=8, color=plots.VERMILION,
            )  # fmt: skip
    ax.set_yticks(rows, words(tokens.smollm2(), likeliest), family=FONT)
    ax.invert_yaxis()
    ax.margins(x=0.2, y=0.01)
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter("{x:.0%}")
    ax.set_xlabel("probability to come next", fontsize=9)
    ax.set_title(f"“{result.text} …”", loc="left")
    ax.legend(frameon=False, fontsize=9, loc="lower right")
    ax.grid(axis="y", visible=False)
    left = [stage.left for stage in result.stages]
    bars = right.barh([stage.rule for stage in result.stages], left, color=plots.SKY)
    labels = [f"{stage.left}, {stage.bits:.1f} bits" for stage in result.stages]
    right.bar_label(bars, labels, fontsize=9, padding=3)
    right.set(xscale="log", xlim=(0.7, 5e7))
    right.set_xticks([1, 100, 10_000], ["1", "100", "10 000"])
    right.minorticks_off()
    right.invert_yaxis()
    right.grid(visible=False)
    right.set_xlabel("tokens that may be chosen", fontsize=9)
    right.set_title("what each rule leaves", loc="left")
    return fig
