"""Training (S1.3-a): a batch is cut into shards, and every worker computes one shard's gradient.

The gradient of a batch's mean loss is the average of its shards' gradients, each weighted by
its share of the images. So workers change how fast a step is and not what it does: the loss
curve and the accuracy stay, up to the rounding of a different order of additions.

The weights are shared and only read while the workers compute, and each worker gets its
gradient back as a value: `torch.autograd.grad` touches no `.grad`, which is what makes threads
safe here. Then one thread averages and steps. Source: PyTorch, "Autograd mechanics",
section "Multithreaded Autograd".

What limits it: averaging and stepping is serial, the Python part of each shard holds the GIL,
and small shards use the arithmetic units badly. Look at batch 32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional

from utils.core import assets, plots
from utils.core.experiment import Range, experiment, gather
from utils.core.trace import now
from utils.core.workers import crew, intra_op, lanes
from utils.overview.areas.common import Contest, Team, contest, draw_rates

_TRAIN = 2048  # images of one epoch; the other 2952 measure the accuracy
_RATE, _MOMENTUM = 0.05, 0.9


@dataclass(frozen=True)
class TrainResult:
    """What one epoch gave with one worker and with all of them."""

    contest: Contest
    batch: int
    losses: tuple[float, ...]  # a step, all workers
    losses_one: tuple[float, ...]  # a step, one worker
    accuracy: float  # share of unseen digits recognised after the epoch, all workers
    accuracy_one: float
    gradient_error: float  # largest |sharded - full batch| of any weight, in float64


@experiment
def train(
    workers: Annotated[int, Range(1, 8)] = 2,
    batch: Annotated[int, Range(32, 512, 32, label="images in a batch")] = 128,
) -> TrainResult:
    """Train a small convolutional network on real digits for one epoch, sharded over `workers`."""
    images, labels, unseen, answers = _digits()
    starts = range(0, _TRAIN, batch)

    def epoch(team: Team) -> tuple[list[float], float]:
        model = _model()
        velocity = [torch.zeros_like(weight) for weight in model.parameters()]
        losses = []
        for start in starts:
            x, y = images[start : start + batch], labels[start : start + batch]
            losses.append(step(model, velocity, x, y, team))
        with torch.inference_mode():
            right = model(unseen).argmax(1) == answers
        return losses, right.float().mean().item()

    with intra_op(1):
        raced, (losses_one, accuracy_one), (losses, accuracy) = contest(
            epoch, workers, items=_TRAIN, unit="images", maps=len(starts)
        )
        error = gradient_error(images[:batch], labels[:batch], workers)
    return TrainResult(
        raced, batch, tuple(losses), tuple(losses_one), accuracy, accuracy_one, error
    )


def step(model: nn.Module, velocity: list[Tensor], x: Tensor, y: Tensor, team: Team) -> float:
    """One step of data-parallel gradient descent with momentum; the batch's mean loss."""
    shards = list(zip(x.tensor_split(team.workers), y.tensor_split(team.workers), strict=True))
    parts = team.map(lambda shard: gradient(model, *shard), shards, "gradient")
    start = now()
    with torch.no_grad():
        for weight, speed, mean in zip(model.parameters(), velocity, average(parts), strict=True):
            speed.mul_(_MOMENTUM).add_(mean)
            weight.sub_(_RATE * speed)
    team.recorder.add("main", "communicate", "average, step", start, now())
    return sum(loss * count for loss, count, _ in parts) / len(x)


def gradient(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, int, tuple[Tensor, ...]]:
    """Mean loss over a shard, its number of images, and the gradient of each parameter."""
    loss = functional.cross_entropy(model(x), y)
    return loss.item(), len(x), torch.autograd.grad(loss, tuple(model.parameters()))


def average(parts: list[tuple[float, int, tuple[Tensor, ...]]]) -> list[Tensor]:
    """The whole batch's gradient: shards weighted by their images, for they may be unequal."""
    images = sum(count for _, count, _ in parts)
    weights = [count / images for _, count, _ in parts]
    return [
        sum(weight * tensor for weight, tensor in zip(weights, tensors, strict=True))
        for tensors in zip(*(gradients for _, _, gradients in parts), strict=True)
    ]


def gradient_error(x: Tensor, y: Tensor, shards: int) -> float:
    """Largest difference between the averaged and the full-batch gradient, in float64.

    Each shard is computed by a thread of its own, all at once. In double precision only rounding
    is left (about 1e-16), so neither a wrong weight nor a mixed-up thread can hide.
    """
    model, x = _model().double(), x.double()
    with crew(shards) as pool:
        futures = [
            pool.submit(gradient, model, *shard)
            for shard in zip(x.tensor_split(shards), y.tensor_split(shards), strict=True)
        ]
        sharded = average(gather(futures, timeout=60))
    _, _, whole = gradient(model, x, y)
    return max((a - b).abs().max().item() for a, b in zip(sharded, whole, strict=True))


def _model() -> nn.Module:
    """A convolutional network of 28 938 weights, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 12, 5, stride=2, padding=2), nn.ReLU(),
            nn.Conv2d(12, 24, 5, stride=2, padding=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(24 * 7 * 7, 10),
        )  # fmt: skip
        for layer in (model[0], model[2]):
            nn.init.kaiming_normal_(layer.weight)  # He et al., 2015: made for ReLU
    return model


def _digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images `[n, 1, 28, 28]` and labels `[n]`, then those kept for the test."""
    images, labels = assets.mnist()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(images)[order].unsqueeze(1).float() / 255
    x, y = (x - 0.13) / 0.31, torch.from_numpy(labels)[order]  # mean 0, deviation 1
    return x[:_TRAIN], y[:_TRAIN], x[_TRAIN:], y[_TRAIN:]


def plot(result: TrainResult) -> plots.Picture:
    """Who computed when, the rates, and the two loss curves on top of each other."""
    fig, (left, middle, right) = plots.figure(11, 3.4, cols=3, width_ratios=[2.4, 1, 1.15])
    contest = result.contest
    plots.timeline(
        left,
        contest.trace,
        lanes=["main", *lanes(contest.workers)],
        title="One epoch, shard by shard",
    )
    draw_rates(middle, contest)
    one = f"1 worker: {result.accuracy_one:.1%} right"
    right.plot(result.losses_one, color=plots.PAPER_GREY, linewidth=5, label=one)
    if contest.workers > 1:
        many = f"{contest.workers} workers: {result.accuracy:.1%} right"
        right.plot(result.losses, color=plots.color("measured"), linewidth=1.4, label=many)
    right.set_title("Loss: the same curve", loc="left")
    right.set_xlabel("step", fontsize=9)
    right.set_ylim(bottom=0)
    right.legend(frameon=False, fontsize=8)
    plots.legend(
        fig, ["compute", "communicate"],
        {"compute": "gradient of a shard", "communicate": "average, step (one thread)"},
    )  # fmt: skip
    return fig
