"""What a faster variant of a model costs and keeps: time, bytes, multiplications, right answers.

A claim such as "four times smaller and as good" is four measurements. All variants here answer the
same held-out digits; they are timed in turns; and beside the accuracy stands the *agreement*: the
share of digits on which a variant says what the original says. Two models can be right equally
often about different digits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from utils.core import bench
from utils.core.workers import intra_op
from utils.deep_learning import digits

CHUNK = 250  # digits a call when answers are counted


@dataclass(frozen=True)
class Variant:
    """One way to answer, and what it needs.

    `answer` maps float32 images (n, 1, 28, 28) to logits (n, 10), n being free. `bytes` are those
    of its parameters as stored; `macs` the multiply-adds its kernels do for one image.
    """

    answer: Callable[[Tensor], Tensor]
    bytes: int
    macs: int


@dataclass(frozen=True)
class Measured:
    """One variant: `time` of one batch; shares from 0 to 1 of the held-out digits."""

    name: str
    time: bench.Sample
    megabytes: float
    macs: int
    accuracy: float
    agreement: float

    @property
    def milliseconds(self) -> float:
        """The median for one batch."""
        return 1e3 * self.time.median

    def __str__(self) -> str:
        return (
            f"{self.name:18}{self.milliseconds:8.2f} ms {1e3 * self.megabytes:9.1f} kB"
            f"{self.macs / 1e6:7.2f} M multiply-adds, {100 * self.accuracy:5.1f} % right, "
            f"{100 * self.agreement:5.1f} % as the original"
        )


def of(model: nn.Module) -> Variant:
    """`model` itself as a variant: its parameters and buffers as stored, its work as counted."""
    return Variant(model, stored_bytes(model), multiply_adds(model))


def stored_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def multiply_adds(answer: Callable[[Tensor], Tensor]) -> int:
    """Multiply-adds for one image: what PyTorch's matrix and convolution operations report."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        answer(torch.zeros(1, 1, 28, 28))
    return counter.get_total_flops() // 2


def measure(
    variants: Mapping[str, Variant], *, batch: int = 64, threads: int = 1, repeats: int = 9
) -> list[Measured]:
    """Measure all variants for batches of `batch` images, torch using `threads` threads.

    The first variant is the reference for the agreement. An engine with threads of its own is
    given as many by whoever makes its variant.
    """
    held_out = digits.load()[1]
    if not 1 <= batch <= len(held_out):
        raise ValueError(f"batch={batch} is not allowed: give 1 to {len(held_out)}")
    if threads < 1:
        raise ValueError(f"threads={threads} is not allowed: give at least 1")
    images = held_out.images[:batch].clone()
    with torch.inference_mode(), intra_op(threads):
        works = {name: lambda v=variant: v.answer(images) for name, variant in variants.items()}
        times = bench.compare(works, repeats=repeats, warmup=2)
        named = {name: named_digits(variant, held_out.images) for name, variant in variants.items()}
    reference = next(iter(named.values()))
    return [
        Measured(
            name=name,
            time=times[name],
            megabytes=variant.bytes / 1e6,
            macs=variant.macs,
            accuracy=_share(named[name] == held_out.labels),
            agreement=_share(named[name] == reference),
        )
        for name, variant in variants.items()
    ]


def named_digits(variant: Variant, images: Tensor) -> Tensor:
    """The digit (n,), int64, that `variant` sees in each of `images`."""
    return torch.cat([variant.answer(some).argmax(1) for some in images.split(CHUNK)])


def _share(hits: Tensor) -> float:
    return hits.float().mean().item()
