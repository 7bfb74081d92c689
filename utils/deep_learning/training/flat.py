"""A model whose parameters all lie in one tensor, and their gradients in another.

Whoever exchanges parameters then sends one tensor, not one a layer, and whoever keeps a part of the
optimiser's state takes a slice. Each parameter of the model is a view: both see the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Flat:
    """`parameter`, of shape (n,), holds all of `model`; its `.grad` holds all gradients.

    An optimiser of one large tensor instead of many small ones computes the same to the bit, for
    SGD works element by element. With `multiple` n is rounded up to a multiple of it, by zeros.
    `allocate(n, dtype)` says where the parameters are to live.
    """

    def __init__(
        self,
        model: nn.Module,
        multiple: int = 1,
        allocate: Callable[[int, torch.dtype], Tensor] | None = None,
    ) -> None:
        trained = list(model.parameters())
        sizes = [each.numel() for each in trained]
        self.used = sum(sizes)
        room = -(-self.used // multiple) * multiple
        start = trained[0].new_zeros(room)
        torch.cat([each.detach().view(-1) for each in trained], out=start[: self.used])
        values = start if allocate is None else allocate(room, start.dtype).copy_(start)
        self.parameter = nn.Parameter(values)
        self.gradient = torch.zeros_like(values)
        self.parameter.grad = self.gradient
        places = (flat[: self.used].split(sizes) for flat in (values, self.gradient))
        for each, value, gradient in zip(trained, *places, strict=True):
            each.data, each.grad = value.view_as(each), gradient.view_as(each)

    @property
    def values(self) -> Tensor:
        """All parameters; changing them changes the model."""
        return self.parameter.detach()
