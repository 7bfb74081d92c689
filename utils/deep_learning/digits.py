"""Real MNIST digits, split once and for all into some to train on and some held out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from utils.core import assets

_MEAN, _DEVIATION = 0.1307, 0.3081  # of all 60 000 training digits, a pixel from 0 to 1


@dataclass(frozen=True)
class Digits:
    """Normalised images (n, 1, 28, 28), float32, and their labels (n,), int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, which: slice | Tensor) -> Digits:
        """The digits at these places; a slice is a view, a tensor of indices a copy."""
        return Digits(self.images[which], self.labels[which])

    def to(self, dtype: torch.dtype) -> Digits:
        """The same digits with images of another floating-point type."""
        return Digits(self.images.to(dtype), self.labels)


@cache
def load() -> tuple[Digits, Digits]:
    """4000 digits to train on and 1000 held out, as many of each class, mixed by a fixed seed.

    Shared by all callers of the process: nobody may write into them. AssetMissing: not set up.
    """
    images, labels = assets.mnist()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    truth = torch.from_numpy(labels).long()[order]
    pixels = torch.from_numpy(images)[order, None].float() / 255
    everything = Digits((pixels - _MEAN) / _DEVIATION, truth)
    held_out = torch.zeros(len(truth), dtype=torch.bool)
    for digit in range(10):
        held_out[(truth == digit).nonzero()[:100, 0]] = True
    return everything[(~held_out).nonzero()[:, 0]], everything[held_out.nonzero()[:, 0]]
