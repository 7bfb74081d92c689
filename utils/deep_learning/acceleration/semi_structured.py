"""2:4 sparsity: of every four weights in a row, two stay. Regular enough for hardware to skip two.

Stored are the two values and, in 2 bits each, their places. NVIDIA's sparse tensor cores read this
format and do half of the multiplications (Mishra et al., "Accelerating Sparse Deep Neural
Networks", 2021). In PyTorch that is `torch.sparse.to_sparse_semi_structured`, for CUDA only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def two_of_four(weight: Tensor) -> Tensor:
    """A mask (rows, columns), bool: True for the two largest of each four; of equals, the first."""
    mask = torch.zeros(_groups(weight).shape, dtype=torch.bool)
    return mask.scatter_(-1, _places(weight), True).view(weight.shape)


@dataclass(frozen=True)
class Packed:
    """Half of a matrix (rows, columns): what stays of each four, and where it was.

    `values` (rows, columns / 2) in the order of their columns. `places` (rows, columns / 8), uint8:
    two bits a value, the first in the lowest bits.
    """

    values: Tensor
    places: Tensor

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.places.nbytes

    def dense(self) -> Tensor:
        """The matrix (rows, columns), zeros included."""
        rows, half = self.values.shape
        places = self.places[..., None] >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8) & 3
        matrix = torch.zeros(rows, half // 2, 4, dtype=self.values.dtype)
        matrix.scatter_(-1, places.long().view(rows, -1, 2), self.values.view(rows, -1, 2))
        return matrix.view(rows, -1)


def pack(weight: Tensor) -> Packed:
    """Pack a matrix that has at most two non-zeros in each four; else ValueError."""
    groups = _groups(weight)
    crowded = (groups.count_nonzero(dim=-1) > 2).sum().item()
    if crowded:
        raise ValueError(f"weight has {crowded} groups of four with over two non-zeros: mask it")
    places = _places(weight)
    values = groups.gather(-1, places).view(len(weight), -1)
    shifted = places.to(torch.uint8).view(len(weight), -1, 4) << torch.tensor([0, 2, 4, 6])
    return Packed(values, shifted.sum(-1).to(torch.uint8))


def _groups(weight: Tensor) -> Tensor:
    if weight.dim() != 2 or weight.shape[1] % 8:
        shape = tuple(weight.shape)
        raise ValueError(f"weight has shape {shape}: give a matrix with a multiple of 8 columns")
    return weight.detach().view(len(weight), -1, 4)


def _places(weight: Tensor) -> Tensor:
    """Where in each group the two largest are (rows, columns / 4, 2), ascending."""
    order = _groups(weight).abs().argsort(dim=-1, descending=True, stable=True)
    return order[..., :2].sort(dim=-1).values
