"""How parameters get better: every position of a text asks for a small change, all in one pass.

The model sees the real text before each position, not what it would have said itself (teacher
forcing; Williams and Zipser, "A learning algorithm for continually running fully recurrent neural
networks", Neural Computation 1, 1989). As no position sees what follows, T positions are T
exercises, and one pass forward and back does them all.

For a small enough learning rate η, a step against the gradient g changes the loss by −η‖g‖²: the
first term of its Taylor series.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.core.workers import intra_op
from utils.llm.decoder import Config, Decoder
from utils.llm.language import coloured, texts

SMALL = Config(
    vocabulary=256, layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=192
)  # its tokens are bytes
SENTENCE = "The value of the expression is the object."
ROWS, LENGTH = 8, 64  # of a batch, in bytes
RATES = np.logspace(-3, 1, 17)  # learning rates to try


def fresh(config: Config, seed: int) -> Decoder:
    """A model that knows nothing: small random matrices, so each token is about as likely."""
    dice, model = torch.Generator().manual_seed(seed), Decoder(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.02, generator=dice)
    return model


def loss_of(model: Decoder, rows: Tensor) -> Tensor:
    """Mean loss in nats of all tokens of (rows, tokens) but the first of each: a scalar."""
    scores = model(rows[:, :-1])  # (rows, tokens − 1, vocabulary)
    return cross_entropy(scores.flatten(0, 1), rows[:, 1:].flatten())


def gradient(model: Decoder, rows: Tensor) -> tuple[float, float]:
    """Leave in each parameter the gradient of the loss; that loss, and the gradient's ‖g‖²."""
    model.zero_grad()
    loss = loss_of(model, rows)
    loss.backward()
    return loss.item(), sum(float(p.grad.square().sum()) for p in model.parameters())


@dataclass(frozen=True)
class Step:
    """One step from the same parameters by each learning rate; the loss is in nats a byte."""

    steps: int  # trained before
    before: float
    slope: float  # ‖g‖²
    change: np.ndarray  # of the batch's loss
    elsewhere: np.ndarray  # of another batch's loss
    chances: tuple[float, ...]  # the model's probability of each byte of SENTENCE, before the step


@experiment
def run(
    steps: Annotated[int, Range(0, 300, 25, label="steps trained before")] = 150,
    seed: Annotated[int, Range(0, 20)] = 0,
) -> Step:
    """Train a little, then try one step of plain gradient descent with many learning rates."""
    data = torch.frombuffer(bytearray(texts.documentation().encode()), dtype=torch.uint8).long()
    dice = torch.Generator().manual_seed(seed)

    def batch() -> Tensor:
        starts = torch.randint(len(data) - LENGTH, (ROWS,), generator=dice)
        return torch.stack([data[start : start + LENGTH] for start in starts])

    with intra_op(1):  # operations this small are over before a second thread has begun
        model = fresh(SMALL, seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for step in range(steps):
            checkpoint(step, steps + len(RATES), "training")
            gradient(model, batch())
            optimizer.step()
        rows, other, after, elsewhere = batch(), batch(), [], []
        other_before, _ = gradient(model, other)
        before, slope = gradient(model, rows)
        for done, rate in enumerate(RATES):
            checkpoint(steps + done, steps + len(RATES), "one step")
            moved = copy.deepcopy(model)
            with torch.no_grad():
                for new, old in zip(moved.parameters(), model.parameters(), strict=True):
                    new -= rate * old.grad
                after.append(loss_of(moved, rows).item())
                elsewhere.append(loss_of(moved, other).item())
        with torch.no_grad():
            known = torch.tensor([[*f"\n{SENTENCE}".encode()]])
            chances = model(known[:, :-1])[0].softmax(-1)
            chances = chances.gather(1, known[0, 1:, None])[:, 0].tolist()
    return Step(
        steps,
        before,
        slope,
        np.array(after) - before,
        np.array(elsewhere) - other_before,
        tuple(chances),
    )


def plot(result: Step) -> plots.Picture:
    """The sentence as the model finds it now; the loss after one step of each size."""
    fig, (text, ax) = plots.figure(9, 4.6, rows=2, gridspec_kw={"height_ratios": [1, 3.4]})
    coloured.draw(text, [coloured.visible(bytes([b])) for b in SENTENCE.encode()],
                  result.chances, 8.7)  # fmt: skip
    coloured.legend(text)
    text.set_title(f"after {result.steps} steps, byte by byte", loc="left")
    ax.axhline(0, color=plots.INK, linewidth=0.8)
    theory = -RATES * result.slope
    ax.plot(RATES, theory, color=plots.color("theory"), linestyle="--", label="theory: −η‖g‖²")
    ax.plot(RATES, result.change, "o-", color=plots.BLUE, label="this batch")
    ax.plot(RATES, result.elsewhere, ".-", color=plots.GREEN, label="another batch")
    room = -min(result.change.min(), result.elsewhere.min(), -0.01)
    ax.set(xscale="log", ylim=(-1.5 * room, 1.5 * room))
    ax.set_xlabel("learning rate η of one more step", fontsize=9)
    ax.set_ylabel("change of loss (nats a byte)", fontsize=9)
    before = f"loss before: {result.before:.2f} nats a byte"
    ax.legend(title=before, title_fontsize=9, fontsize=9, frameon=False, loc="upper left")
    return fig
