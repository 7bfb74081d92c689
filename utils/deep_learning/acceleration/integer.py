"""A linear layer that multiplies integers: 8 bits times 8 bits, summed up in 32.

    y = scale_x · scale_w · Σ (x − zero) · w,   and   Σ (x − zero) · w = Σ x · w − zero · Σ w

so the zero of the activations costs one number per output, known beforehand. The weights' grid is
made once. That of the activations is made anew for each batch: *dynamic* quantisation. (*Static*
quantisation fixes it beforehand, from a few examples: `engines.static`.)

The arithmetic here is exact, and slow: PyTorch has no fast kernel for int32. It shows what a
library computes, not how fast.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from utils.deep_learning.acceleration.quantise import affine, symmetric

LONGEST = (2**31 - 1) // (255 * 127)  # inputs a layer may have before its int32 sum can overflow


class IntegerLinear(nn.Module):
    """`nn.Linear` with int8 weights, a scale per output, and inputs quantised as they come.

    (n, in) → (n, out), both float32. ValueError: more than `LONGEST` inputs.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        if linear.in_features > LONGEST:
            raise ValueError(f"in_features={linear.in_features} is not allowed: at most {LONGEST}")
        weight = linear.weight.detach()
        grid = symmetric(weight, axis=0)
        self.register_buffer("codes", grid.encode(weight))  # int8 (out, in)
        self.register_buffer("scale", grid.scale[:, 0])  # (out,)
        self.register_buffer("sums", self.codes.sum(1, dtype=torch.int32))  # (out,)
        bias = torch.zeros(len(weight)) if linear.bias is None else linear.bias.detach().clone()
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        grid = affine(x)
        sums = grid.encode(x).int() @ self.codes.int().T  # int32 (n, out)
        return (sums - grid.zero * self.sums) * (grid.scale * self.scale) + self.bias


def with_integers(model: nn.Module) -> nn.Module:
    """A copy of `model` in which every linear layer multiplies integers."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                setattr(parent, name, IntegerLinear(child))
    return model


def saturating_sums(activations: Tensor, weights: Tensor) -> Tensor:
    """Σ over the last axis as x86's VPMADDUBSW adds it: uint8 × int8, an even number of them.

    The instruction multiplies, adds *pairs* into int16, and cuts off what does not fit: two
    products reach 2 · 255 · 127 = 64770, an int16 ends at 32767. With 7-bit weights (−64 … 63)
    they reach 32640, and nothing is lost. CPUs with VNNI or AMX, and other families, add into
    int32 at once. Source: Intel, oneDNN developer guide, "Nuances of int8 computations".
    """
    products = activations.int() * weights.int()
    pairs = products.unflatten(-1, (-1, 2)).sum(-1)
    return pairs.clamp(-(2**15), 2**15 - 1).sum(-1)
