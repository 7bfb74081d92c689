"""Integer quantisation: a few bits a number, and the scale that brings it back.

A grid holds the numbers `scale · (code − zero)` for integer codes from `low` to `high`. A
*symmetric* grid has its zero at code 0, which suits weights; an *affine* one lies where the numbers
are, which suits what comes out of a ReLU. One scale may serve a whole tensor or one channel of it.
Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018; Krishnamoorthi, arXiv:1806.08342, 2018.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.deep_learning.acceleration import sharing


@dataclass(frozen=True)
class Grid:
    """The numbers that codes from `low` to `high` stand for.

    `scale` (float32) and `zero` (int32) have shape () or one that broadcasts over the values.
    """

    scale: Tensor
    zero: Tensor
    low: int
    high: int

    @property
    def dtype(self) -> torch.dtype:
        return torch.int8 if self.low < 0 else torch.uint8

    @property
    def bits(self) -> int:
        return (self.high - self.low).bit_length()

    def encode(self, values: Tensor) -> Tensor:
        """The nearest code of each value, int8 or uint8; outside the grid, its first or last."""
        codes = (torch.round(values / self.scale) + self.zero).clamp(self.low, self.high)
        return codes.to(self.dtype)

    def decode(self, codes: Tensor) -> Tensor:
        """What the codes stand for, float32. For values on the grid: off by at most scale ÷ 2."""
        return (codes.int() - self.zero) * self.scale

    def round(self, values: Tensor) -> Tensor:
        """The nearest number of the grid: what is left of the values after a round trip."""
        return self.decode(self.encode(values))

    def pack(self, codes: Tensor) -> Tensor:
        """The codes without gaps, uint8: one a byte if they have 8 bits, two a byte if 4."""
        return sharing.pack((codes.int() - self.low).flatten(), self.bits)

    def unpack(self, packed: Tensor, shape: Sequence[int]) -> Tensor:
        """What `pack` was given: codes of `shape`."""
        codes = sharing.unpack(packed, self.bits, math.prod(shape)).int() + self.low
        return codes.to(self.dtype).reshape(tuple(shape))


def symmetric(values: Tensor, bits: int = 8, axis: int | None = None) -> Grid:
    """Codes −(2^(bits−1) − 1) … 2^(bits−1) − 1 for the largest magnitude of `values`.

    With `axis`, one scale for each index along it: a channel. ValueError: not finite, or `bits`
    is not 2 to 8.
    """
    _check(values, bits)
    high = 2 ** (bits - 1) - 1
    others = [dim for dim in range(values.dim()) if dim != axis]
    largest = values.abs().amax(others, keepdim=True) if axis is not None else values.abs().max()
    return Grid(_positive(largest / high), torch.tensor(0, dtype=torch.int32), -high, high)


def affine(values: Tensor, bits: int = 8) -> Grid:
    """Codes 0 … 2^bits − 1 from the lowest to the highest of `values`, 0 being one of them.

    An exact 0 matters: padding and ReLU produce many. ValueError as for `symmetric`.
    """
    _check(values, bits)
    lowest, highest = values.min().clamp(max=0), values.max().clamp(min=0)
    high = 2**bits - 1
    scale = _positive((highest - lowest) / high)
    return Grid(scale, torch.round(-lowest / scale).int(), 0, high)


def _check(values: Tensor, bits: int) -> None:
    if not 2 <= bits <= 8:
        raise ValueError(f"bits={bits} is not allowed: give 2 to 8")
    if values.numel() == 0 or not values.isfinite().all():
        raise ValueError("values must be at least one finite number: there is no grid for these")


def _positive(scale: Tensor) -> Tensor:
    """All values 0: any scale will do."""
    return torch.where(scale > 0, scale, 1.0)
