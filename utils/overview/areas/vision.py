"""Vision (S1.3-b): find real handwritten digits on noisy canvases, tile by tile.

A small convolutional network looks through a 28 × 28 window at every fourth pixel and names
the digit in it, or "nothing". Being convolutional it slides by itself: give it a large image
and it returns a grid of answers, one a window (Sermanet et al., "OverFeat", 2013). Tiles are
cut with an overlap of one window, so no digit is lost at a seam, and they share nothing: any
worker may take any tile.

More tiles feed more workers and finish one canvas sooner, but cost overlap that is computed
twice and a trip through Python for each tile. Workers change the speed only: the boxes stay.
"""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torch.nn import functional

from utils.core import assets, plots
from utils.core.experiment import Range, experiment
from utils.core.workers import intra_op, lanes
from utils.overview.areas.common import Contest, Team, contest, draw_rates

SIDE, WINDOW, STRIDE = 380, 28, 4  # pixels; the grid has (380 - 28) / 4 + 1 = 89 windows a side
GRID = (SIDE - WINDOW) // STRIDE + 1
_CANVASES = 8
_NOTHING = 10  # the class of a window without a digit in its middle
_KNOWN = 4000  # digits the network learns from; the other 1000 are pasted on the canvases


class Box(NamedTuple):
    """A digit and the upper left corner of its 28 × 28 box, in pixels."""

    digit: int
    row: int
    column: int


@dataclass(frozen=True)
class DetectResult:
    """What was found on each canvas, and how fast."""

    contest: Contest
    canvases: np.ndarray  # float32 [n, SIDE, SIDE]
    truth: tuple[tuple[Box, ...], ...]  # a tuple a canvas
    found: tuple[tuple[Box, ...], ...]
    found_one: tuple[tuple[Box, ...], ...]  # by one worker
    precision: float  # share of the found boxes that are right
    recall: float  # share of the digits that were found


@experiment
def detect(
    workers: Annotated[int, Range(1, 8)] = 2,
    digits: Annotated[int, Range(10, 40, label="digits on a canvas")] = 30,
    tiles: Literal[1, 4, 16, 64] = 4,
) -> DetectResult:
    """Find every digit on eight canvases, each cut into `tiles` tiles."""
    model = detector()
    generator = np.random.default_rng(1)
    canvases, truth = zip(
        *(_canvas(generator, digits, unseen=True) for _ in range(_CANVASES)), strict=True
    )
    images = torch.from_numpy(np.stack(canvases))
    cuts = _cuts(round(tiles**0.5))
    tasks = [(image, *cut) for image in images for cut in cuts]

    def look(team: Team) -> list[tuple[Box, ...]]:
        grids = team.map(lambda task: scores(model, *task), tasks, "tile")
        return [
            boxes(_joined(grids[start : start + tiles])) for start in range(0, len(grids), tiles)
        ]

    with intra_op(1):
        raced, alone, found = contest(look, workers, items=_CANVASES, unit="canvases")
    right = sum(_hits(*pair) for pair in zip(found, truth, strict=True))
    return DetectResult(
        raced,
        images.numpy(),
        tuple(truth),
        tuple(found),
        tuple(alone),
        precision=right / max(1, sum(map(len, found))),
        recall=right / (digits * _CANVASES),
    )


def scores(model: nn.Module, image: Tensor, rows: range, columns: range) -> Tensor:
    """Probabilities `[11, rows, columns]` of the windows of a part of the grid of `image`."""
    top, left = rows.start * STRIDE, columns.start * STRIDE
    bottom, right = (rows.stop - 1) * STRIDE + WINDOW, (columns.stop - 1) * STRIDE + WINDOW
    with torch.inference_mode():  # it holds for one thread only, so each task enters it
        return model(_centred(image[None, None, top:bottom, left:right]))[0].softmax(0)


def boxes(grid: Tensor, threshold: float = 0.5) -> tuple[Box, ...]:
    """The digits in a grid of probabilities: best first, none within half a window of a better."""
    best, digit = grid[:_NOTHING].max(0)
    rows, columns = torch.nonzero(best > threshold, as_tuple=True)
    order = best[rows, columns].argsort(descending=True, stable=True)
    kept: list[Box] = []
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        box = Box(int(digit[row, column]), row * STRIDE, column * STRIDE)
        if not any(_near(box, other, WINDOW // 2) for other in kept):
            kept.append(box)
    return tuple(kept)


def _centred(pixels: Tensor) -> Tensor:
    return (pixels - 0.2) / 0.3  # about mean 0, deviation 1: training needs half the steps


def _near(a: Box, b: Box, pixels: int) -> bool:
    return abs(a.row - b.row) <= pixels and abs(a.column - b.column) <= pixels


def _hits(found: tuple[Box, ...], truth: tuple[Box, ...]) -> int:
    """Digits that have a found box of their class within one stride of theirs."""
    return sum(
        any(box.digit == digit.digit and _near(box, digit, STRIDE) for box in found)
        for digit in truth
    )


def _cuts(per_side: int) -> list[tuple[range, range]]:
    """Parts of the grid, row by row; tiles of windows overlap in pixels, not in windows."""
    edges = [GRID * part // per_side for part in range(per_side + 1)]
    parts = [range(a, b) for a, b in zip(edges, edges[1:], strict=False)]
    return [(rows, columns) for rows in parts for columns in parts]


def _joined(tiles: list[Tensor]) -> Tensor:
    per_side = round(len(tiles) ** 0.5)
    rows = [torch.cat(tiles[i : i + per_side], 2) for i in range(0, len(tiles), per_side)]
    return torch.cat(rows, 1)


def _canvas(
    generator: np.random.Generator, digits: int, unseen: bool
) -> tuple[np.ndarray, tuple[Box, ...]]:
    """A noisy image with `digits` real digits that do not overlap, and where they are."""
    images, labels = _digits()
    pool = np.arange(_KNOWN, len(images)) if unseen else np.arange(_KNOWN)
    canvas = np.abs(generator.normal(0, 0.15, (SIDE, SIDE))).astype(np.float32)
    placed: list[Box] = []
    while len(placed) < digits:
        row, column = generator.integers(0, SIDE - WINDOW + 1, 2).tolist()
        index = generator.choice(pool)
        box = Box(int(labels[index]), row, column)
        if not any(_near(box, other, WINDOW - 1) for other in placed):
            canvas[row : row + WINDOW, column : column + WINDOW] += images[index]
            placed.append(box)
    return canvas.clip(0, 1), tuple(placed)


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    images, labels = assets.mnist()
    order = np.random.default_rng(0).permutation(len(images))
    return images[order].astype(np.float32) / 255, labels[order]


_training = threading.Lock()


def detector() -> nn.Module:
    """The network, trained for about a second at the first call of this process."""
    with _training:
        return _trained()


@functools.cache
def _trained() -> nn.Module:
    """Learn from windows of canvases made of other digits; about half hold nothing."""
    with torch.random.fork_rng(devices=[]), intra_op(1):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2), nn.ReLU(),
            nn.Conv2d(16, 32, 5, stride=2), nn.ReLU(),
            nn.Conv2d(32, 11, 4),
        )  # fmt: skip
        for layer in (model[0], model[2]):
            nn.init.kaiming_normal_(layer.weight)
        windows, labels = _windows()
        windows = _centred(windows)
        velocity = [torch.zeros_like(weight) for weight in model.parameters()]
        batches = torch.randperm(len(windows)).split(64)
        for done, batch in enumerate(batches):
            loss = functional.cross_entropy(model(windows[batch]).flatten(1), labels[batch])
            slopes = torch.autograd.grad(loss, tuple(model.parameters()))
            rate = 0.05 * (1 - done / len(batches))
            with torch.no_grad():
                for weight, speed, slope in zip(model.parameters(), velocity, slopes, strict=True):
                    speed.mul_(0.9).add_(slope)
                    weight.sub_(rate * speed)
    return model.eval()


def _windows(canvases: int = 60, digits: int = 50, looks: int = 4) -> tuple[Tensor, Tensor]:
    """Windows `[n, 1, 28, 28]` and classes `[n]`: `looks` at each digit, about as many beside.

    A digit counts if the window is within half a stride of it, so that some window of the grid
    always does; the windows about it that see it a bit too far off are left out.
    """
    generator = np.random.default_rng(0)
    windows, classes = [], []
    for _ in range(canvases):
        canvas, placed = _canvas(generator, digits, unseen=False)
        every = np.lib.stride_tricks.sliding_window_view(canvas, (WINDOW, WINDOW))
        corners = np.array([(box.row, box.column) for box in placed])
        for reach in (STRIDE // 2, WINDOW):
            shift = generator.integers(-reach, reach + 1, (looks, digits, 2))
            at = (corners + shift).clip(0, SIDE - WINDOW).reshape(-1, 2)
            offset = np.abs(at[:, None] - corners).max(2)
            nearest, off = offset.argmin(1), offset.min(1)
            clear = (off <= STRIDE // 2) | (off > STRIDE)
            digit = np.array([box.digit for box in placed])[nearest]
            windows.append(every[at[clear, 0], at[clear, 1]])
            classes.append(np.where(off <= STRIDE // 2, digit, _NOTHING)[clear])
    return torch.from_numpy(np.concatenate(windows))[:, None], torch.tensor(np.concatenate(classes))


def plot(result: DetectResult) -> plots.Picture:
    """The first canvas with what was found, who looked at which tile when, and the rates."""
    fig, (canvas, middle, right) = plots.figure(11, 3.6, cols=3, width_ratios=[1.35, 1.9, 1])
    canvas.imshow(result.canvases[0], cmap="gray_r", interpolation="nearest")
    for box in result.found[0]:
        good = _hits((box,), result.truth[0]) == 1
        colour = plots.GREEN if good else plots.VERMILION
        corner = (box.column - 0.5, box.row - 0.5)
        canvas.add_patch(
            Rectangle(corner, WINDOW, WINDOW, fill=False, edgecolor=colour, linewidth=1.2)
        )
        canvas.text(*corner, box.digit, color=colour, fontsize=8, va="bottom")
    canvas.set(xticks=[], yticks=[])
    canvas.set_title(f"{result.recall:.0%} found, {result.precision:.0%} right", loc="left")
    plots.timeline(
        middle, result.contest.trace, lanes=lanes(result.contest.workers),
        title=f"{len(result.canvases)} canvases, tile by tile",
    )  # fmt: skip
    draw_rates(right, result.contest)
    return fig
