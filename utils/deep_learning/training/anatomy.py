"""Where a training step's time goes: which operations, which layers. Is it bound by computing?"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.core.workers import intra_op
from utils.deep_learning import digits, models
from utils.deep_learning.recipe import Recipe, loss_of

KINDS: Mapping[str, tuple[str, ...]] = {  # words in the names of ATen's operations
    "convolution": ("conv",),
    "matrix product": ("addmm", ".mm."),
    "pooling": ("pool",),
    "ReLU": ("relu", "threshold"),
}
OTHER = "all else"


class Clock(TorchDispatchMode):
    """Sees each operation on its way to the kernel, backward's too, and times it."""

    def __init__(self) -> None:
        super().__init__()
        self.spent: dict[str, float] = defaultdict(float)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        start = time.perf_counter()
        try:
            return operation(*args, **(kwargs or {}))
        finally:
            self.spent[str(operation)] += time.perf_counter() - start


@dataclass(frozen=True)
class Anatomy:
    """Shares of the time inside operations, by kind; and milliseconds of a step, by layer."""

    model: str
    kinds: dict[str, float]
    layers: dict[str, tuple[float, float]]  # forward, backward

    @property
    def products(self) -> float:
        """Share of convolutions and matrix products: sums of products, what cores are built for."""
        return self.kinds["convolution"] + self.kinds["matrix product"]


@experiment
def run(
    model: Literal["small", "deep", "tower"] = "small",
    batch: Annotated[int, Range(1, 256)] = 64,
    steps: Annotated[int, Range(3, 20)] = 5,
) -> Anatomy:
    """Time the operations of `steps` training steps on one thread, then the layers of as many."""
    trainee = models.make(model)
    data = digits.load()[0][:batch]
    optimizer = Recipe().optimizer(trainee.parameters())

    def step(learnt: Callable[[], object] = bool) -> None:
        optimizer.zero_grad()
        loss_of(trainee, data).backward()
        learnt()
        optimizer.step()

    with intra_op(1):
        for _ in range(2):  # first touches are not what we ask about
            step()
        with Clock() as clock:
            for done in range(steps):
                checkpoint(done, 2 * steps, "operations")
                step()
        layers = _by_layer(trainee, step, steps)
    return Anatomy(model, _by_kind(clock.spent), layers)


def _by_kind(operations: Mapping[str, float]) -> dict[str, float]:
    spent = dict.fromkeys((*KINDS, OTHER), 0.0)
    for name, seconds in operations.items():
        kinds = (kind for kind, words in KINDS.items() if any(word in name for word in words))
        spent[next(kinds, OTHER)] += seconds
    return {kind: seconds / sum(spent.values()) for kind, seconds in spent.items()}


def _by_layer(
    trainee: nn.Module, step: Callable[[Callable[[], object]], None], steps: int
) -> dict[str, tuple[float, float]]:
    """A layer's time is that from its own hook to the next one's: what lies between counts."""
    marks: list[tuple[str, bool, float]] = []
    named = [(n, each) for n, each in trainee.named_modules() if not list(each.children())]

    def mark(name: str, backward: bool, *_: object) -> None:
        marks.append((name, backward, time.perf_counter()))

    hooks = []
    for name, layer in named:
        hooks.append(layer.register_forward_pre_hook(partial(mark, name, False)))
        hooks.append(layer.register_full_backward_pre_hook(partial(mark, name, True)))
    spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    try:
        for done in range(steps):
            checkpoint(steps + done, 2 * steps, "layers")
            marks.clear()
            step(partial(mark, "", True))
            for (name, backward, start), (_, _, end) in zip(marks, marks[1:], strict=False):
                spent[name][backward] += 1e3 * (end - start) / steps
    finally:
        for hook in hooks:
            hook.remove()
    titles = {name: f"{name} {type(layer).__name__}" for name, layer in named}
    return {titles[name]: tuple(spent[name]) for name, _ in named}


def plot(result: Anatomy) -> plots.Picture:
    """Left the operations, right the layers."""
    fig, (left, right) = plots.figure(9.5, 1.6 + 0.22 * max(6, len(result.layers)), cols=2)
    kinds = [100 * share for share in result.kinds.values()]
    left.bar_label(left.barh(list(result.kinds), kinds, color=plots.BLUE), fmt="%.0f %%",
                   fontsize=9, padding=3)  # fmt: skip
    left.set_title(f"{result.model}: share of a step, by operation", loc="left")
    left.margins(x=0.15)
    forward, backward = zip(*result.layers.values(), strict=True)
    names = list(result.layers)
    right.barh(names, forward, color=plots.color("forward"), label="forward")
    right.barh(names, backward, left=forward, color=plots.color("backward"), label="backward")
    right.set_title("milliseconds of a step, by layer", loc="left")
    right.legend(frameon=False, fontsize=9)
    for ax in (left, right):
        ax.invert_yaxis()
        ax.grid(visible=False)
    return fig
