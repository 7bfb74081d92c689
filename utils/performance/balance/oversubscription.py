"""Too many threads: a pool of Python threads, each of which has torch threads of its own.

A library that computes in parallel starts a team of threads for each thread that calls it. p Python
threads with t torch threads each are p × t that want to run, on so many cores. With more than that,
threads of one team wait for a member that has no core, and the system switches between them; with
fewer, cores idle. Which split of the cores is best depends on the size of an operation: a small one
is not worth dividing, and is so short that Python threads queue for the GIL between two of them.

torch has two thread counts: `torch.set_num_threads` is the size of a team (intra-op), and that is
the one meant here (PyTorch documentation, "torch.set_num_threads").
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import Annotated

import torch
from matplotlib.patches import Rectangle

from utils.core import machine, plots
from utils.core.experiment import Range, checkpoint, current, experiment, gather
from utils.core.workers import crew, intra_op

COUNTS = tuple(sorted({1, 2, 4, min(16, machine.cores())}))  # threads of a kind
ROWS = 64  # samples in a batch
SECONDS = 0.06  # of one measurement
ROUNDS = 3
DEADLINE = 30.0  # seconds for anything that blocks

Split = tuple[int, int]  # Python threads, torch threads of each


@dataclass(frozen=True)
class Cell:
    """One split: samples a second, and context switches for 1000 of them (None: not counted)."""

    rate: float
    switches: float | None


@dataclass(frozen=True)
class Grid:
    """All splits of `COUNTS` × `COUNTS`, for a layer of `size` × `size`."""

    size: int
    cores: int
    cells: dict[Split, Cell]

    @property
    def best(self) -> Split:
        """The split with the highest rate."""
        return max(self.cells, key=lambda split: self.cells[split].rate)


@experiment
def split_cores(
    size: Annotated[int, Range(64, 1024, 64, label="units of a layer")] = 512,
) -> Grid:
    """Run two layers of `size` units on batches, with every split, in turns."""
    layers = torch.full((size, size), 1 / size)
    splits = [(python, inside) for python in COUNTS for inside in COUNTS]
    taken: dict[Split, list[Cell]] = {split: [] for split in splits}
    for round_ in range(ROUNDS):
        for done, (python, inside) in enumerate(splits):
            note = f"{python} Python × {inside} torch threads"
            checkpoint(round_ * len(splits) + done, ROUNDS * len(splits), note)
            taken[python, inside].append(_measure(layers, python, inside))
    return Grid(size, machine.cores(), {split: _median(cells) for split, cells in taken.items()})


def _measure(layer: torch.Tensor, python: int, inside: int) -> Cell:
    control = current()

    def serve() -> int:
        # A new thread takes over the number set last, but not before it asks for it, and a matrix
        # product may come first: then it uses all cores. So each says so itself.
        torch.set_num_threads(inside)
        batch, count = torch.ones(ROWS, len(layer)), 0
        end = time.perf_counter() + SECONDS
        while time.perf_counter() < end and not control.cancelled:
            torch.relu(batch @ layer) @ layer
            count += ROWS
        return count

    with intra_op(inside), crew(python) as pool:
        before, start = machine.switches(), time.perf_counter()
        samples = sum(gather([pool.submit(serve) for _ in range(python)], timeout=DEADLINE))
        rate = samples / (time.perf_counter() - start)
        after = machine.switches()
    if before is None or after is None:
        return Cell(rate, None)
    return Cell(rate, 1000 * (sum(after) - sum(before)) / max(1, samples))


def _median(cells: list[Cell]) -> Cell:
    counted = [cell.switches for cell in cells if cell.switches is not None]
    return Cell(median(cell.rate for cell in cells), median(counted) if counted else None)


def plot(result: Grid) -> plots.Picture:
    """Rate and switches of every split; a frame around the best, a dot where p × t = cores."""
    fig, axes = plots.figure(9, 3.2, cols=2)
    cells, names = result.cells, [str(count) for count in COUNTS]
    best = cells[result.best].rate
    rates = [[cells[p, t].rate / best for t in COUNTS] for p in COUNTS]
    texts = [
        [f"{100 * cells[p, t].rate / best:.0f}{' •' * (p * t == result.cores)}" for t in COUNTS]
        for p in COUNTS
    ]
    plots.heat_map(axes[0], rates, texts, names, names, top=1)
    axes[0].set_title(f"% of the best split's {best:,.0f} samples a second", loc="left")
    counted = [[cells[p, t].switches for t in COUNTS] for p in COUNTS]
    counts = [[count or 0.0 for count in row] for row in counted]
    texts = [["?" if c is None else f"{c:,.{0 if c >= 100 else 1}f}" for c in r] for r in counted]
    most = max(map(max, counts)) or 1.0
    plots.heat_map(axes[1], counts, texts, names, names, top=most, cmap="Oranges")
    axes[1].set_title("switches for 1000 samples", loc="left")
    for ax in axes:
        ax.set_xlabel("torch threads of each", fontsize=9)
    axes[0].set_ylabel("Python threads", fontsize=9)
    p, t = result.best
    corner = COUNTS.index(t) - 0.48, COUNTS.index(p) - 0.48
    axes[0].add_patch(Rectangle(corner, 0.96, 0.96, fill=False, edgecolor=plots.VERMILION, lw=3))
    fig.supxlabel(
        f"frame: the best split; •: as many threads as cores ({result.cores})", fontsize=9
    )
    return fig
