"""The same network on a GPU, if there is one: copy in, compute, copy out, each timed to its end.

A call to a GPU returns when the work is *queued*. Who stops the clock then has timed the queue: so
wait (`synchronise`) before and after. GPU "threads" are not CPU threads: they run in groups of 32
(a warp), one instruction for all of them at a time (NVIDIA, CUDA C++ Programming Guide, "SIMT
Architecture"); there are thousands, and they need a batch large enough to have something to do.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Annotated, Literal, TypeVar

import torch
from torch import Tensor, nn

from utils.core import machine, plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.deep_learning import digits, models
from utils.deep_learning.acceleration.measure import Variant, of, stored_bytes

PHASES = {"copy in": "load", "compute": "compute", "copy out": "communicate"}
REPEATS = 5
T = TypeVar("T")


def device() -> torch.device | None:
    """The GPU that torch can use, CUDA or Apple's, or None."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps") if torch.backends.mps.is_available() else None


def synchronise(where: torch.device) -> None:
    """Wait until all that was queued on this device is done."""
    if where.type != "cpu":
        getattr(torch, where.type).synchronize()


def on(model: nn.Module, where: torch.device, dtype: torch.dtype = torch.float32) -> Variant:
    """`model` on a device; images travel there and answers back with every batch."""
    moved = copy.deepcopy(model).to(where, dtype)
    answer = lambda images: moved(images.to(where, dtype)).float().cpu()  # noqa: E731
    return Variant(answer, stored_bytes(moved), of(model).macs)


@torch.inference_mode()
def phases(model: nn.Module, where: torch.device, images: Tensor) -> dict[str, float]:
    """Seconds of each of `PHASES` for one batch; `model` is on the device already."""
    taken = {}

    def timed(name: str, work: Callable[[], T]) -> T:
        synchronise(where)
        start = time.perf_counter()
        value = work()
        synchronise(where)
        taken[name] = time.perf_counter() - start
        return value

    # The copies are made on the CPU, too (copy=True), where they stand for nothing but themselves.
    there = timed("copy in", lambda: images.to(where, copy=True))
    logits = timed("compute", lambda: model(there))
    timed("copy out", lambda: logits.to("cpu", copy=True))
    return taken


@dataclass(frozen=True)
class Result:
    """Median seconds of each phase, by device and type; `gpu` names it, if there is one."""

    batch: int
    gpu: str | None
    seconds: dict[str, dict[str, float]]


@experiment
def run(
    model: Literal["small", "deep"] = "deep", batch: Annotated[int, Range(1, 1000)] = 64
) -> Result:
    """One batch on the CPU and on the GPU, there in float16 as well."""
    places = {"CPU, float32": (torch.device("cpu"), torch.float32)}
    if there := device():
        places |= {"GPU, float32": (there, torch.float32), "GPU, float16": (there, torch.float16)}
    images, seconds = digits.load()[1].images[:batch], {}
    for number, (name, (where, dtype)) in enumerate(places.items()):
        moved = models.make(model).eval().to(where, dtype)
        rounds = []
        for _ in range(1 + REPEATS):
            checkpoint(number, len(places), name)
            rounds.append(phases(moved, where, images.to(dtype)))
        seconds[name] = {phase: median(taken[phase] for taken in rounds[1:]) for phase in PHASES}
    return Result(batch, machine.gpu(), seconds)


def plot(result: Result) -> plots.Picture:
    """A bar a device, divided into phases."""
    fig, ax = plots.figure(9, 1.6 + 0.4 * len(result.seconds))
    for row, taken in enumerate(result.seconds.values()):
        left = 0.0
        for phase, category in PHASES.items():
            ax.barh(row, 1e3 * taken[phase], left=left, color=plots.color(category))
            left += 1e3 * taken[phase]
    ax.set_yticks(range(len(result.seconds)), result.seconds)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set_title(f"{result.batch} images; GPU: {result.gpu or 'none here'}", loc="left")
    ax.set_xlabel("ms a batch (median)", fontsize=9)
    plots.legend(fig, list(PHASES.values()), {c: phase for phase, c in PHASES.items()})
    return fig
