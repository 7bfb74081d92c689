"""Two threads, three operations each: all 20 orders in which they can happen, one by one.

Each thread zeroes the gradients, runs backward on its own batch, and steps. In real threads, but
taking turns at a baton, so that nothing is torn: what goes wrong here goes wrong without any two
operations ever overlapping. The model is the tracer of `program`: thread 0's loss is its element 0,
thread 1's its element 1, so that a gradient says whose it is, and minus the parameter counts how
often it was applied.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from matplotlib.patches import Rectangle
from torch import nn

from utils.core import plots
from utils.core.experiment import checkpoint, experiment, gather
from utils.core.workers import crew

Gradients = Literal["shared, freed", "shared, zeroed in place", "own of each thread"]
OPERATIONS = ("zero", "backward", "step")
DEADLINE = 10.0  # seconds for anything that blocks


def orders() -> list[tuple[int, ...]]:
    """All orders of two threads' three operations: whose turn it is, six times."""
    places = combinations(range(6), 3)
    return [tuple(int(turn not in mine) for turn in range(6)) for mine in places]


def interleave(order: tuple[int, ...], gradients: Gradients) -> tuple[int, int]:
    """How often each thread's gradient is applied if they take turns in `order`."""
    weights = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weights], lr=1.0)
    batons = [threading.Semaphore(0) for _ in order]  # released when turn k may begin

    def shared(thread: int) -> Iterator[None]:
        optimizer.zero_grad(set_to_none=gradients == "shared, freed")
        yield
        weights[thread].backward()
        yield
        optimizer.step()
        yield

    def own(thread: int) -> Iterator[None]:
        yield  # there is nothing to zero
        (gradient,) = torch.autograd.grad(weights[thread], weights)
        yield
        with torch.no_grad():
            weights.sub_(gradient)
        yield

    def work(thread: int) -> None:
        operations = (own if gradients == "own of each thread" else shared)(thread)
        for turn in (turn for turn, whose in enumerate(order) if whose == thread):
            if not batons[turn].acquire(timeout=DEADLINE):
                raise TimeoutError(f"turn {turn} of {order} never came")
            next(operations)
            if turn + 1 < len(order):
                batons[turn + 1].release()

    batons[0].release()
    with crew(2, "thread") as pool:
        gather([pool.submit(work, thread) for thread in (0, 1)], timeout=2 * DEADLINE)
    first, second = (round(-weight) for weight in weights.tolist())
    return first, second


@dataclass(frozen=True)
class Interleavings:
    """For each order, how often the gradients of threads 0 and 1 were applied: (1, 1) is right."""

    gradients: Gradients
    applied: dict[tuple[int, ...], tuple[int, int]]

    @property
    def right(self) -> int:
        return sum(counts == (1, 1) for counts in self.applied.values())


@experiment
def interleavings(gradients: Gradients = "shared, zeroed in place") -> Interleavings:
    """Go through all orders."""
    applied = {}
    for done, order in enumerate(orders()):
        checkpoint(done, 20, "orders")
        applied[order] = interleave(order, gradients)
    return Interleavings(gradients, applied)


def plot(result: Interleavings) -> plots.Picture:
    """A column an order, from top to bottom; below it, how often each gradient was applied."""
    fig, ax = plots.figure(9.5, 3.9)
    shade = (plots.SKY, plots.ORANGE)
    kinds = Counter(result.applied.values())
    columns = sorted(result.applied.items(), key=lambda item: (item[1] != (1, 1), item[1]))
    for x, (order, counts) in enumerate(columns):
        steps = [iter(OPERATIONS), iter(OPERATIONS)]
        for y, whose in enumerate(order):
            ax.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, color=shade[whose]))
            ax.text(x, y, next(steps[whose])[0].upper(), ha="center", va="center", fontsize=10)
        for thread, count in enumerate(counts):
            color = plots.GREEN if count == 1 else plots.VERMILION
            ax.text(x, 6.2 + thread, count, ha="center", va="center", color=color, weight="bold")
    ax.set_xlim(-0.6, len(columns) - 0.4)
    ax.set_ylim(7.7, -0.6)
    ax.set_xticks([])
    ax.set_yticks([0, 5, 6.2, 7.2], ["first", "last", "blue applied", "orange applied"])
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    title = f"{result.gradients}: {result.right} of {kinds.total()} orders are right"
    ax.set_title(f"{title}   (Z zero, B backward, S step)", loc="left")
    return fig
