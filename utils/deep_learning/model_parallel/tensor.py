"""Tensor parallelism: every layer is cut, every rank computes its part of it for the same batch.

Layers are taken in pairs. The first is cut by columns: each rank makes some of the outputs from
the whole input. The second is cut by rows: it needs just those outputs, and its partial results
are added up by an all-reduce. What stands between them must treat each channel alone (ReLU,
pooling). Forward, the input is given to everybody and the results are added up; backward, it is
the other way round: the functions f and g of Shoeybi et al., "Megatron-LM", 2019, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.deep_learning.collectives.group import Group


class CopyTo(torch.autograd.Function):
    """f: everybody uses the same input, so that its gradient is the sum of everybody's."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return whole.view_as(whole)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return summed(gradient, ctx.group), None


class SumFrom(torch.autograd.Function):
    """g: the output is the sum of everybody's, so that each has the output's gradient."""

    @staticmethod
    def forward(ctx: Any, partial_sum: Tensor, group: Group) -> Tensor:
        return summed(partial_sum, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def summed(tensor: Tensor, group: Group) -> Tensor:
    """The sum of all ranks' tensors; this rank's stays as it is."""
    total = tensor.clone(memory_format=torch.contiguous_format)
    group.all_reduce(total)
    return total


class Shard(nn.Module):
    """This rank's part of a linear layer or convolution, cut along one dimension of its weight.

    `sizes[r]` is rank r's share of that dimension, which is 0 for outputs, 1 for inputs.
    """

    dimension: int

    def __init__(self, whole: nn.Linear | nn.Conv2d, group: Group, sizes: Sequence[int]) -> None:
        super().__init__()
        self.group, self.sizes = group, list(sizes)
        self.weight = nn.Parameter(self.part_of(whole.weight))
        self.bias = nn.Parameter(self.bias_of(whole.bias))
        self.apply_to: Callable[..., Tensor] = F.linear
        if isinstance(whole, nn.Conv2d):
            self.apply_to = partial(F.conv2d, stride=whole.stride, padding=whole.padding)

    def part_of(self, whole: Tensor) -> Tensor:
        """A copy of this rank's part of a tensor of the shape of the weight."""
        return whole.detach().split(self.sizes, self.dimension)[self.group.rank].clone()

    def bias_of(self, whole: Tensor) -> Tensor:
        """A copy of this rank's part of a tensor of the shape of the bias."""
        raise NotImplementedError

    def whole_of(self, part: Tensor) -> Tensor:
        """All ranks' parts of the weight (or of a bias that is cut), put together."""
        dimension = min(self.dimension, part.dim() - 1)
        shape = list(part.shape)
        shape[dimension] = sum(self.sizes)
        whole = part.new_zeros(shape)
        whole.split(self.sizes, dimension)[self.group.rank].copy_(part.detach())
        self.group.all_reduce(whole)  # parts may differ in size: each adds its own to zeros
        return whole


class Columns(Shard):
    """Some outputs, from the whole input: (n, in, …) → (n, share of out, …)."""

    dimension = 0

    def bias_of(self, whole: Tensor) -> Tensor:
        return self.part_of(whole)

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_to(CopyTo.apply(x, self.group), self.weight, self.bias)


class Rows(Shard):
    """All outputs, from some of the input, summed: (n, share of in, …) → (n, out, …)."""

    dimension = 1

    def bias_of(self, whole: Tensor) -> Tensor:
        return whole.detach().clone()  # everybody adds the same to the same sum

    def forward(self, x: Tensor) -> Tensor:
        total = SumFrom.apply(self.apply_to(x, self.weight), self.group)
        return total + (self.bias if self.weight.dim() == 2 else self.bias[:, None, None])


def shares(total: int, ranks: int) -> list[int]:
    """`total` channels for `ranks` ranks, as evenly as possible. ValueError: one gets none."""
    if ranks > total:
        raise ValueError(f"ranks={ranks} is not allowed: a layer has only {total} channels to cut")
    return [total // ranks + (rank < total % ranks) for rank in range(ranks)]


def parallelize(model: nn.Module, group: Group) -> nn.Module:
    """Cut `model` in place: its linear layers and convolutions in pairs, by columns and by rows.

    They must be used in the order in which they are defined. The last of an odd number stays whole:
    every rank computes it. ValueError: more ranks than channels.
    """
    found = [
        (parent, name, module)
        for parent in model.modules()
        for name, module in parent.named_children()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    for (parent, name, first), (parent2, name2, second) in zip(
        found[::2], found[1::2], strict=False
    ):
        out = first.weight.shape[0]
        sizes = shares(out, group.size)
        each = second.weight.shape[1] // out  # inputs per channel: several after a `Flatten`
        setattr(parent, name, Columns(first, group, sizes))
        setattr(parent2, name2, Rows(second, group, [size * each for size in sizes]))
    return model


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The `state_dict` of the model that was cut, on every rank. All ranks must call it."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for prefix, module in model.named_modules():
        if isinstance(module, Shard):
            state[f"{prefix}.weight"] = module.whole_of(module.weight)
            if isinstance(module, Columns):
                state[f"{prefix}.bias"] = module.whole_of(module.bias)
    return state
