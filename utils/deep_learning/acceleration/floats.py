"""Floating-point types: half the bytes is half the memory, and half the time if there is a kernel.

float16 has 11 significant bits and ends at 65504; bfloat16 has 8 and reaches as far as float32. A
CPU without instructions for one of them widens every number, or worse, falls back to a plain loop.
Which of this happens is measured here, not known beforehand: it depends on CPU and library.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated

import torch
from matplotlib.ticker import NullFormatter
from torch import nn

from utils.core import bench, machine, plots
from utils.core.experiment import Range, experiment
from utils.core.workers import intra_op
from utils.deep_learning.acceleration.measure import Variant, multiply_adds, stored_bytes

TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# What would multiply narrow floats or integers directly, by PyTorch's names of the instruction sets
NATIVE = ("avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16", "avx512_vnni", "avx_vnni",
          "amx_int8", "bf16", "fp16_arith", "dot", "i8mm")  # fmt: skip


@dataclass(frozen=True)
class Result:
    """By type: `times` of one product of two size × size matrices, and its relative error."""

    size: int
    times: dict[str, bench.Sample]
    error: dict[str, float]


def narrow(model: nn.Module, dtype: torch.dtype) -> Variant:
    """`model` with parameters, activations and arithmetic in `dtype`."""
    narrowed = copy.deepcopy(model).to(dtype)
    return Variant(
        lambda images: narrowed(images.to(dtype)).float(),
        stored_bytes(narrowed),
        multiply_adds(model),
    )


def native() -> list[str]:
    """Which of `NATIVE` this CPU has, as PyTorch sees it; empty where it cannot tell."""
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return [name for name in NATIVE if found.get(name) is True]


@experiment
def run(
    size: Annotated[int, Range(32, 512, 32)] = 192,
    threads: Annotated[int, Range(1, max(2, machine.cores()))] = 1,
) -> Result:
    """Multiply two matrices in each type, in turns."""
    source = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, size, generator=source) for _ in range(2))
    pairs = {name: (left.to(dtype), right.to(dtype)) for name, dtype in TYPES.items()}
    exact = left.double() @ right.double()
    with intra_op(threads):
        works = {name: lambda pair=pair: pair[0] @ pair[1] for name, pair in pairs.items()}
        times = bench.compare(works, repeats=5)
    error = {
        name: (a @ b).double().sub(exact).norm() / exact.norm() for name, (a, b) in pairs.items()
    }
    return Result(size, times, {name: value.item() for name, value in error.items()})


def plot(result: Result) -> plots.Picture:
    """Left: how fast. Right: how exact. Both on logarithmic scales."""
    fig, (left, right) = plots.figure(9, 2.6, cols=2)
    names = list(result.times)
    rates = [2 * result.size**3 / result.times[name].median / 1e9 for name in names]
    for ax, values, shade in (
        (left, rates, plots.BLUE),
        (right, [result.error[name] for name in names], plots.VERMILION),
    ):
        bars = ax.bar(names, values, color=shade, width=0.6)
        ax.bar_label(bars, [f"{value:.2g}" for value in values], fontsize=9)
        ax.set_yscale("log")
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.margins(y=0.15)
    left.set_title(f"Product of {result.size} × {result.size} matrices", loc="left")
    left.set_ylabel("GFLOP/s", fontsize=9)
    right.set_title("Its relative error", loc="left")
    return fig
