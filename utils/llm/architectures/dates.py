"""A task for an encoder–decoder: "September 3, 1987" in, "1987-09-03" out, letter by letter.

A tenth of all days is held out in every way of writing. So an exact answer in the exam was never
seen: the rule was learnt, not the pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional

from utils.core import plots
from utils.core.experiment import Range, experiment
from utils.core.workers import intra_op
from utils.llm.architectures.learning import Curve, Pupil, draw, learn
from utils.llm.architectures.networks import EncoderDecoder, make
from utils.llm.decoder import Config

MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
PAD, START = 0, 1
LETTERS = "\0\1" + "".join(sorted(set("".join(MONTHS) + "0123456789-,. ")))
WIDTH, ISO = len("September 30, 1987"), len("1987-09-30")
FIRST_DAY = date(1900, 1, 1)
DAYS = (date(2050, 1, 1) - FIRST_DAY).days
CONFIG = Config(
    len(LETTERS), layers=2, hidden=64, heads=4, kv_heads=4, head_dim=16, intermediate=64
)


def spellings(day: date) -> tuple[str, ...]:
    month, short = MONTHS[day.month - 1], MONTHS[day.month - 1][:3]
    return (
        f"{day.day} {month} {day.year}",
        f"{month} {day.day}, {day.year}",
        f"{short} {day.day} {day.year}",
        f"{day.day}.{day.month}.{day.year}",
    )


@dataclass(frozen=True)
class Pairs:
    """Spelt days and what they mean: (n, WIDTH) with padding at the right, and (n, ISO)."""

    source: Tensor
    target: Tensor

    @property
    def real(self) -> Tensor:
        return self.source != PAD

    def loss(self, model: EncoderDecoder) -> Tensor:
        """Each letter of the answer from the source and the true letters before it."""
        start = torch.full((len(self.target), 1), START)
        scores, _ = model(self.source, self.real, torch.cat([start, self.target[:, :-1]], 1))
        return functional.cross_entropy(scores.flatten(0, 1), self.target.flatten())


def encode(texts: list[str], width: int) -> Tensor:
    """(n, width) tokens. ValueError: a letter that is not in `LETTERS`, or too many of them."""
    for text in texts:
        if len(text) > width or not set(text) <= set(LETTERS):
            raise ValueError(f"text={text!r} is not allowed: give up to {width} of {LETTERS[2:]!r}")
    rows = [[LETTERS.index(letter) for letter in text.ljust(width, LETTERS[PAD])] for text in texts]
    return torch.tensor(rows)


def decode(tokens: Tensor) -> str:
    return "".join(LETTERS[token] for token in tokens.tolist() if token != PAD)


def pairs(count: int, dice: torch.Generator, held_out: bool = False) -> Pairs:
    """Random days in random spellings; each tenth day is for the exam only."""
    numbers = torch.randint(DAYS // 10, (count,), generator=dice) * 10
    if not held_out:
        numbers += torch.randint(1, 10, (count,), generator=dice)
    ways = torch.randint(4, (count,), generator=dice).tolist()
    days = [FIRST_DAY + timedelta(days=number) for number in numbers.tolist()]
    texts = [spellings(day)[way] for day, way in zip(days, ways, strict=True)]
    return Pairs(encode(texts, WIDTH), encode([day.isoformat() for day in days], ISO))


@dataclass(frozen=True)
class Learnt:
    """A trained model, its way there, and its answers to `exam`; `weights` show where it looked."""

    model: EncoderDecoder
    curve: Curve
    exam: Pairs
    answers: Tensor
    weights: Tensor  # (n, heads, ISO, WIDTH)
    shown: int

    @property
    def exact(self) -> float:
        """Share of held-out days with every letter right."""
        return self.answers.eq(self.exam.target).all(1).double().mean().item()


@experiment
def run(
    steps: Annotated[int, Range(20, 2000, 20, label="training steps")] = 160,
    shown: Annotated[int, Range(1, 200, label="shown example")] = 1,
) -> Learnt:
    """Train a two-layer encoder–decoder on one thread, and let it write 200 held-out days."""
    dice, exam = (
        torch.Generator().manual_seed(0),
        pairs(200, torch.Generator().manual_seed(1), True),
    )
    model = make(EncoderDecoder, CONFIG)
    with intra_op(1):
        pupil = Pupil(model, lambda: pairs(48, dice).loss(model), lambda: exam.loss(model))
        curve = learn({"dates": pupil}, steps, rate=0.01)["dates"]
        answers, weights = model.write(exam.source, exam.real, START, ISO)
    return Learnt(model, curve, exam, answers, weights, shown - 1)


def plot(result: Learnt) -> plots.Picture:
    """Where each letter of one answer came from (mean of the heads), and how training went."""
    fig, (ax, curve) = plots.figure(10.5, 3.9, cols=2, width_ratios=[1.8, 1])
    source, answer = decode(result.exam.source[result.shown]), decode(result.answers[result.shown])
    looked = result.weights[result.shown].mean(0)[:, : len(source)]
    ax.imshow(looked.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    ax.set_xticks(range(len(source)), list(source))
    ax.set_yticks(range(len(answer)), list(answer))
    ax.grid(visible=False)
    ax.set_xlabel("read by the encoder", fontsize=9)
    ax.set_ylabel("written by the decoder", fontsize=9)
    ax.set_title(f"{source} → {answer}", loc="left")
    draw(curve, {"held-out days": result.curve}, {"held-out days": plots.BLUE}, "steps")
    curve.set_ylabel("bits a letter", fontsize=9)
    curve.set_ylim(bottom=0)
    curve.set_title(f"{100 * result.exact:.0f} % of held-out days exact", loc="left")
    return fig
