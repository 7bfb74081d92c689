"""The same network in another form: another layout in memory, a graph for an engine, compiled code.

- *channels last* stores an image's channels side by side (n, h, w, c): what a convolution needs
  together lies together (PyTorch tutorial: "Channels Last Memory Format in PyTorch").
- ONNX Runtime has the whole graph before the first image; in int8 it has narrower kernels, too.
- `torch.compile` traces the model and has a C++ compiler make one kernel of several operations.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from utils.core import bench, machine, plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.core.workers import intra_op
from utils.deep_learning import digits, models
from utils.deep_learning.acceleration import engines

Answer = Callable[[Tensor], Tensor]


def channels_last(model: nn.Module) -> Answer:
    """`model` with channels side by side in memory, from its first convolution on."""
    turned = copy.deepcopy(model).to(memory_format=torch.channels_last)
    return lambda images: turned(images.to(memory_format=torch.channels_last))


def compiled(model: nn.Module) -> Answer:
    """`model` compiled for any batch, which takes ten seconds to a minute and cannot be stopped.

    RuntimeError: not here, and why (most often: no C++ compiler). PyTorch keeps what it compiled
    in a cache of its own in the temporary directory, for the next time.
    """
    answer = torch.compile(copy.deepcopy(model), dynamic=True, options={"compile_threads": 1})
    try:
        with torch.inference_mode():  # it compiles again when this differs
            answer(torch.zeros(8, 1, 28, 28))
    except RuntimeError as error:  # what PyTorch's compiler raises is one
        why = str(error).strip().partition("\n")[0]
        raise RuntimeError(f"torch.compile does not work here: {why}") from error
    return answer


@dataclass(frozen=True)
class Result:
    """By form: `times` of one batch, and the largest `difference` of a logit from PyTorch's.

    `note` says what could not be had here, and why.
    """

    model: str
    batch: int
    threads: int
    times: dict[str, bench.Sample]
    difference: dict[str, float]
    note: str


@experiment
def run(
    model: Literal["small", "deep"] = "deep",
    batch: Annotated[int, Range(1, 128)] = 16,
    threads: Annotated[int, Range(1, max(2, machine.cores()))] = 1,
    compile: bool = False,
) -> Result:
    """An untrained model (times do not care): as it is, in other forms, compiled if asked for."""
    original = models.make(model).eval().requires_grad_(False)
    checkpoint(0, note="making the graph")
    graph = engines.graph_of(original)
    forms: dict[str, Answer] = {
        "PyTorch": original,
        "channels last": channels_last(original),
        "ONNX Runtime": engines.answering(graph, threads),
        "the same, int8": engines.answering(engines.static(graph), threads),
    }
    note = ""
    if compile:
        checkpoint(0, note="compiling; Cancel waits for the end of it")
        try:
            forms["torch.compile"] = compiled(original)
        except RuntimeError as error:
            note = str(error)
    images = digits.load()[1].images[:batch].clone()
    with torch.inference_mode(), intra_op(threads):
        truth = original(images)
        difference = {name: (form(images) - truth).abs().max() for name, form in forms.items()}
        works = {name: lambda form=form: form(images) for name, form in forms.items()}
        times = bench.compare(works, repeats=5, warmup=2)
    numbers = {name: value.item() for name, value in difference.items()}
    return Result(model, batch, threads, times, numbers, note)


def plot(result: Result) -> plots.Picture:
    """Milliseconds a batch, by form."""
    fig, ax = plots.figure(8.5, 1.3 + 0.4 * len(result.times))
    medians = [1e3 * sample.median for sample in result.times.values()]
    bars = ax.barh(list(result.times), medians, color=plots.color("compute"))
    notes = [f"{ms:.3g} ms" for ms in medians[:1]]
    for name, ms in list(zip(result.times, medians, strict=True))[1:]:
        notes.append(f"{ms:.3g} ms, logits off by {result.difference[name]:.1g}")
    ax.bar_label(bars, notes, padding=4, fontsize=9)
    ax.margins(x=0.35)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    threads = f"{result.threads} thread{'s' if result.threads > 1 else ''}"
    ax.set_title(f"{result.model} network, {result.batch} images, {threads}", loc="left")
    ax.set_xlabel(f"ms a batch (median)   {result.note[:100]}", fontsize=9)
    return fig
