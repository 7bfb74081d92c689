"""Digits that take work to load: each is turned and sheared on a grid as fine as you like.

Real pipelines decode a JPEG, crop it and distort it, sample by sample, and that may cost more than
the step it is for. Here the image is resampled on a grid `fineness` times as fine and averaged down
again (anti-aliasing by supersampling), so the cost grows with the square of `fineness`.
"""

from __future__ import annotations

import math
import threading
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, get_worker_info

from utils.core.trace import now
from utils.deep_learning import digits


class Batch(NamedTuple):
    """Images (n, 1, 28, 28), labels (n,), and who made them when, in ns of `now()`."""

    images: Tensor
    labels: Tensor
    lane: str
    start: int
    end: int


class Augmented(Dataset):
    """The first `samples` digits. It is sent to processes, so it holds settings, not images."""

    def __init__(self, samples: int, fineness: int) -> None:
        self.samples, self.fineness = samples, fineness

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One digit (1, 28, 28), turned by an angle that depends on its index; and its label."""
        train = digits.load()[0]
        angle = math.radians(index * 37 % 61 - 30)
        return distort(train.images[index], angle, self.fineness), int(train.labels[index])

    def __getitems__(self, indices: list[int]) -> Batch:
        """A whole batch. `DataLoader` asks this way if it can, and we get to look at the clock."""
        start = now()
        images, labels = zip(*(self[index] for index in indices), strict=True)
        stacked, truth = torch.stack(images), torch.tensor(labels)
        worker = get_worker_info()
        lane = f"process {worker.id + 1}" if worker else threading.current_thread().name
        return Batch(stacked, truth, lane, start, now())


def whole(batch: Batch) -> Batch:
    """For `collate_fn`: the data set has made the batch already."""
    return batch


def distort(image: Tensor, angle: float, fineness: int) -> Tensor:
    """`image` (1, 28, 28), turned by `angle` radians and sheared by a third of that."""
    cos, sin = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[[cos, angle / 3 - sin, 0.0], [sin, cos, 0.0]]])
    size = [1, 1, 28 * fineness, 28 * fineness]
    grid = F.affine_grid(turn, size, align_corners=False)
    fine = F.grid_sample(image[None], grid, padding_mode="border", align_corners=False)
    return F.avg_pool2d(fine, fineness)[0]
