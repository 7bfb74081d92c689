"""A linear layer with int8 weights and activations of 8 bits, by a fast kernel where there is one.

    x ≈ s · (q − z)   and   w ≈ t · c,   so   x · w ≈ s · t · (Σ q c − z Σ c)

Each output channel has its own scale t, fixed; each *row* of x (each token) has its own s and z,
found as it comes. One grid for all rows would be simpler, and is what `linear_dynamic` makes: then
a single token with large numbers takes the precision of all others, and what one request gets
depends on who shares its batch. So rows are brought to whole numbers 0 … 255 here, the kernel finds
the grid 0 … 255 for all of them, and each row's s and z are put back afterwards.

x86 CPUs without VNNI add two products of 8 bits into 16, and cut off what does not fit. That cannot
happen here: t is so large that the codes of neighbours sum to 128 at most (255 · 128 < 2¹⁵).

Sources: Dettmers et al., "LLM.int8()", arXiv:2208.07339 (a scale a row and a column); Intel, oneDNN
developer guide, "Nuances of int8 computations" (saturation). The kernel is FBGEMM's (QNNPACK's on
ARM). PyTorch 2.15 calls the tensors in which it takes its weights deprecated; when they are gone,
or if the kernel computes something else than is written above, `Int8Linear` multiplies the same
numbers as float32: right, and no faster than float32.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

TINY = 1e-30  # a row of zeros has no scale of its own


def encode_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes −127 … 127 as int8 (out, in), and the scale of each channel (out,).

    In no channel do two neighbours' codes of one sign (0 and 1, 2 and 3, …) sum to more than 128.
    """
    even, odd = functional.pad(weight, (0, weight.shape[1] % 2)).unflatten(1, (-1, 2)).unbind(-1)
    above, below = even.clamp(min=0) + odd.clamp(min=0), even.clamp(max=0) + odd.clamp(max=0)
    # A pair at 127 before each of the two is rounded is at 128 after, at most.
    largest = torch.maximum(above, -below).amax(1)  # never below the largest magnitude
    scale = (largest / 127).clamp(min=TINY)
    return torch.div(weight, scale[:, None]).round_().to(torch.int8), scale


def encode_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(rows, in) → q, whole numbers 0 … 255 with 255 in every row, and s, z: (rows, 1), float."""
    low, high = x.amin(1, keepdim=True).clamp_(max=0), x.amax(1, keepdim=True).clamp_(min=0)
    scale = high.sub(low).clamp_(min=TINY).div_(255)
    zero = torch.rsub(high.div_(scale).round_(), 255)
    return x.div(scale).round_().add_(zero).clamp_(min=0), scale, zero


class Int8Linear(nn.Module):
    """x ↦ x wᵀ, with the weights of `of`: (…, in) → (…, out), float32. Nothing in it changes, so
    threads may share it."""

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("sums", scale * codes.sum(1, dtype=torch.int32))
        self._packed = _pack(codes, scale) if kernel_is_right() else None
        self._weight = codes * scale[:, None] if self._packed is None else None

    @classmethod
    def of(cls, weight: Tensor) -> Self:
        """The layer nearest to a float one with this weight, (out, in). ValueError: not finite."""
        if weight.dim() != 2 or not weight.isfinite().all():
            raise ValueError(f"weight of shape {tuple(weight.shape)}: give a finite matrix")
        return cls(*encode_weight(weight.detach().float()))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if self._packed is not None and len(rows) == 1:  # the kernel's one grid is this row's
            y = torch.ops.quantized.linear_dynamic(rows, self._packed)
        else:
            q, scale, zero = encode_rows(rows)
            if self._packed is None:
                y = functional.linear(q.sub_(zero), self._weight)
            else:
                y = torch.ops.quantized.linear_dynamic(q, self._packed)
                y = y.addcmul_(zero, self.sums, value=-1)
            y = y.mul_(scale)
        return y.view(*x.shape[:-1], len(self.scale))

    def __reduce__(self) -> tuple[Any, ...]:  # what is packed stays in its process
        return type(self), (self.codes, self.scale)


def with_int8(model: nn.Module) -> nn.Module:
    """`model` itself, with an `Int8Linear` in the place of every linear layer (none has a bias)."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                setattr(parent, name, Int8Linear.of(child.weight))
    return model


def _pack(codes: Tensor, scale: Tensor) -> Any:
    """The weights in the order in which the kernel reads them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.quantize_per", category=UserWarning)
        none = torch.zeros(len(scale), dtype=torch.long)
        weight = torch._make_per_channel_quantized_tensor(codes, scale.double(), none, 0)
        return torch.ops.quantized.linear_prepack(weight, None)


@cache
def kernel_is_right() -> bool:
    """Does this machine's kernel sum up what it should, also where 16 bits are nearly full?"""
    codes = torch.tensor([[127, 1], [64, 64], [-127, -1], [3, -7]], dtype=torch.int8).repeat(1, 36)
    q = torch.full((3, codes.shape[1]), 255.0)
    q[1, ::2], q[2, 1::2] = 17, 0
    try:
        got = torch.ops.quantized.linear_dynamic(q, _pack(codes, torch.ones(4)))
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return torch.allclose(got, q @ codes.float().T, rtol=1e-5)
