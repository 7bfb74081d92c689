"""Train several models in turns, step by step, and write down what each has learnt when.

In turns, because a machine is not equally fast at all times; and only the steps are timed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn
from torch.nn import functional

from utils.core.experiment import checkpoint
from utils.llm.architectures.characters import HIDDEN

Loss = Callable[[], Tensor]  # of one step, or of the exam: a scalar, in nats


@dataclass(frozen=True)
class Pupil:
    """A model, the loss of its next step, and the exam by which it is judged."""

    model: nn.Module
    lesson: Loss
    exam: Loss


@dataclass(frozen=True)
class Curve:
    """Exam results in bits, and after how many steps and seconds of training each was had."""

    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    bits: list[float] = field(default_factory=list)


def learn(
    pupils: Mapping[str, Pupil], steps: int, exams: int = 10, rate: float = 4e-3
) -> dict[str, Curve]:
    """Train every pupil in place for `steps` steps, with `exams` exams on the way and one before.

    The learning rate climbs to `rate` and falls again. ValueError: fewer steps than exams.
    """
    if not 0 < exams <= steps:
        raise ValueError(f"steps={steps} is not allowed: give at least {exams}, one an exam")
    curves = {name: Curve() for name in pupils}
    spent = dict.fromkeys(pupils, 0.0)
    trainers = {
        name: torch.optim.AdamW(pupil.model.parameters(), rate, fused=True)
        for name, pupil in pupils.items()
    }
    rates = [torch.optim.lr_scheduler.OneCycleLR(t, rate, steps + 1) for t in trainers.values()]
    marks = {round(exam * steps / exams) for exam in range(exams + 1)}
    for step in range(steps + 1):
        for name, pupil in pupils.items():
            checkpoint(step, steps, f"learning: {name}")
            if step in marks:
                with torch.no_grad():
                    curves[name].bits.append(pupil.exam().item() / math.log(2))
                curves[name].steps.append(step)
                curves[name].seconds.append(spent[name])
            began = time.perf_counter()
            if step < steps:
                trainers[name].zero_grad()
                pupil.lesson().backward()
                trainers[name].step()
            spent[name] += time.perf_counter() - began
        for schedule in rates:
            schedule.step()
    return curves


def next_character(model: nn.Module, windows: Tensor) -> Tensor:
    """Predict every character from those before it: (batch, length) → loss."""
    scores = model(windows[:, :-1])
    return functional.cross_entropy(scores.flatten(0, 1), windows[:, 1:].flatten())


def hidden_character(model: nn.Module, windows: Tensor, dice: torch.Generator) -> Tensor:
    """Hide 15 % of the characters; predict those from all others (arXiv:1810.04805, 3.1).

    BERT leaves a fifth of the chosen ones unhidden or replaced, for tasks where nothing is hidden.
    """
    hide = torch.rand(windows.shape, generator=dice) < 0.15
    hide[:, windows.shape[1] // 2] = True  # never none at all
    scores = model(windows.masked_fill(hide, HIDDEN))
    return functional.cross_entropy(scores[hide], windows[hide])


def draw(ax: Axes, curves: Mapping[str, Curve], colors: Mapping[str, str], by: str) -> None:
    """Bits a character against "steps" or "seconds"."""
    for name, curve in curves.items():
        ax.plot(getattr(curve, by), curve.bits, marker=".", color=colors[name], label=name)
    ax.set_xlabel("training steps" if by == "steps" else "seconds of training", fontsize=9)
    ax.set_xlim(left=0)
