"""Teach a frozen language model to read digits: only the projector before it is trained.

The gradient comes back through all layers of the language model, which stay as they are: they are
the route and not the goal. That is two thirds of the arithmetic of training the whole model, for
less than a thousandth of the parameters to store, send and update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.deep_learning import digits
from utils.llm import tokens as vocabularies
from utils.llm import weights
from utils.llm.multimodal.seeing import DIGITS, Projector, Seeing, encoder, share_right

PROMPT = "the digit{}, the digit"
BATCH = 16  # digits a step
HELD_OUT = 40  # digits that are asked before and after
RATE = 0.005  # of Adam; falls in a straight line to zero


def train(
    seeing: Seeing,
    projector: Projector,
    features: Tensor,
    targets: Tensor,
    *,
    steps: int,
    seed: int = 0,
) -> list[float]:
    """Train in place on (n, features) and the tokens to say, (n,); the loss of each step."""
    optimizer = torch.optim.Adam(projector.parameters(), lr=RATE, betas=(0.9, 0.99))
    dice = torch.Generator().manual_seed(seed)
    losses = []
    for step in range(steps):
        checkpoint(step, steps, "training")
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / steps)
        which = torch.randint(len(targets), (BATCH,), generator=dice)
        scores = seeing.scores(PROMPT, projector(features[which]))
        loss = functional.cross_entropy(scores, targets[which])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@dataclass(frozen=True)
class Learnt:
    """The losses, what was said of held-out digits before and after, and the projector itself."""

    losses: list[float]
    before: list[str]
    after: list[str]
    right: tuple[float, float]  # share of the held-out digits, before and after
    sees: Literal["network", "pixels"]
    projector: Projector


@experiment
def learn(
    steps: Annotated[int, Range(1, 40)] = 10,
    soft_tokens: Annotated[int, Range(1, 4, label="soft tokens")] = 2,
    sees: Literal["network", "pixels"] = "network",
) -> Learnt:
    """Train a projector with 16 digits a step; ask it about 40 others before and after."""
    seeing = Seeing(weights.smollm2(), vocabularies.smollm2())
    words = [seeing.token(word) for word in DIGITS]
    practice, held_out = digits.load()
    look = encoder() if sees == "network" else nn.Flatten()
    features, shown = look(practice.images), look(held_out[:HELD_OUT].images)
    origin = seeing.model.embed_tokens.weight[words].mean(0)  # where the vectors of numbers are
    projector = Projector(features.shape[1], soft_tokens, origin)
    answers, right = [], []
    losses: list[float] = []
    targets = torch.tensor(words)[practice.labels]
    for more in (0, steps):
        losses += train(seeing, projector, features, targets, steps=more)
        checkpoint(more, steps, "asking")
        with torch.inference_mode():
            scores = seeing.scores(PROMPT, projector(shown))
        answers.append([seeing.vocabulary.decode([token]) for token in scores.argmax(1)])
        right.append(share_right(scores, held_out.labels[:HELD_OUT], words))
    return Learnt(losses, *answers, tuple(right), sees, projector)


def plot(result: Learnt) -> plots.Picture:
    """The loss, and the first held-out digits with what the model says they are."""
    fig, (left, right) = plots.figure(10, 3, cols=2, width_ratios=[1, 1.6])
    left.plot(range(1, len(result.losses) + 1), result.losses, "o-", color=plots.color("measured"))
    left.set_ylim(0)
    left.set_xlabel("step", fontsize=9)
    left.set_title("Loss: −log of the right word's probability", loc="left")
    held_out = digits.load()[1]
    across, down = 9, 3
    for number in range(across * down):
        x, y = number % across, number // across
        right.imshow(
            held_out.images[number, 0],
            cmap="gray_r",
            extent=(x + 0.1, x + 0.9, -1.3 * y - 0.8, -1.3 * y),
        )
        said = result.after[number]
        good = said == DIGITS[held_out.labels[number]]
        colour = plots.color("measured") if good else plots.VERMILION
        right.text(x + 0.5, -1.3 * y - 1, repr(said), ha="center", fontsize=9, color=colour)
    right.set_xlim(0, across)
    right.set_ylim(-1.3 * down, 0.05)
    right.set_axis_off()
    before, after = (100 * share for share in result.right)
    right.set_title(f"held-out digits said rightly: {before:.0f} % → {after:.0f} %", loc="left")
    return fig
