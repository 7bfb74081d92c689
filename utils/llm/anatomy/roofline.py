"""What bounds a step: prefill and decoding under the measured roofs of this machine.

Decoding reads every weight to do two operations with it: memory decides. A prefill, or a batch,
does two operations for *each* of its tokens with a weight once read, until the arithmetic decides.
(Williams et al., "Roofline", CACM 52(4), 2009.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch

from utils.core import bench, machine, plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.core.workers import intra_op
from utils.deep_learning.serving.service import log_scale
from utils.llm import weights
from utils.llm.decoder import Cache, Decoder
from utils.llm.scale.catalogue import this_machine
from utils.llm.scale.costs import Device, Shape, Step, step
from utils.llm.scale.hardware import roof


@dataclass(frozen=True)
class Timed:
    """What a step has to do, and the seconds it took."""

    step: Step
    seconds: float

    @property
    def rate(self) -> float:
        """10⁹ operations a second."""
        return self.step.flops / self.seconds / 1e9


@dataclass(frozen=True)
class Roofline:
    """A prefill, and steps of decoding by the size of the batch."""

    device: Device
    prompt: int
    prefill: Timed
    decode: dict[int, Timed]

    def tokens_a_second(self, batch: int) -> float:
        return batch / self.decode[batch].seconds

    def limit(self, batch: int) -> float:
        """Tokens/s that these ceilings allow."""
        return batch / self.decode[batch].step.least(self.device)


def decoding(model: Decoder, prompt: Cache, batch: int) -> Callable[[], object]:
    """A step of decoding for `batch` copies of a prompt, again and again at the same place."""
    cache = Cache(model.config, batch, prompt.length + 1)
    cache.keys[:, :, :, :-1], cache.values[:, :, :, :-1] = prompt.keys, prompt.values
    token = torch.full((batch, 1), 1000)

    def again() -> None:
        cache.length = prompt.length  # what the last step added is overwritten
        model(token, cache)

    return again


@experiment
def run(
    prompt: Annotated[int, Range(16, 1024, 8, label="tokens of prompt")] = 200,
    batch: Annotated[int, Range(1, 64, label="largest batch")] = 8,
    repeats: Annotated[int, Range(1, 9)] = 3,
) -> Roofline:
    """Measure the ceilings, a prefill, and steps of decoding in batches of 1, 2, 4 … `batch`."""
    model, shape = weights.smollm2(), Shape.of(weights.smollm2().config)
    tokens = torch.arange(1000, 1000 + prompt)[None]
    sizes = sorted({1, batch} | {2**power for power in range(batch.bit_length())})

    cache = Cache(model.config, 1, prompt)

    def prefill() -> None:
        cache.length = 0
        model.lm_head(model.hidden(tokens, cache)[:, -1])

    checkpoint(0, 1 + len(sizes), "ceilings")
    device, decode = this_machine(), {}
    with intra_op(machine.cores()), torch.inference_mode():
        seconds = bench.measure(prefill, repeats=2).median
        first = Timed(step(shape, prompt), seconds)
        for size in sizes:
            seconds = bench.measure(decoding(model, cache, size), repeats=repeats).median
            decode[size] = Timed(step(shape, 1, prompt, size), seconds)
    return Roofline(device, prompt, first, decode)


def plot(result: Roofline) -> plots.Picture:
    """Left every step under the roof; right tokens/s of decoding against the limit."""
    fig, (left, right) = plots.figure(10, 3.9, cols=2)
    ends = [each.step.intensity for each in (*result.decode.values(), result.prefill)]
    roof(left, result.device, plots.color("theory"), min(ends) / 2, 3 * max(ends))
    said = f"prefill, {result.prompt} tokens"
    for label, steps in (("decode", [*result.decode.values()]), (said, [result.prefill])):
        at, heights = [each.step.intensity for each in steps], [each.rate for each in steps]
        left.plot(at, heights, "o-", color=plots.color(label.partition(",")[0]), label=label)
    for size, each in result.decode.items():
        left.annotate(f"{size}", (each.step.intensity, each.rate), (4, -12),
                      textcoords="offset points", fontsize=8)  # fmt: skip
    log_scale(left, "y")
    left.legend(frameon=False, fontsize=8, loc="lower right")
    left.set_title("operations/s of a step (number: batch), and the roof", loc="left")
    sizes = list(result.decode)
    right.plot(sizes, [result.limit(size) for size in sizes], "--", color=plots.color("theory"),
               label="limit of these ceilings")  # fmt: skip
    right.plot(sizes, [result.tokens_a_second(size) for size in sizes], "o-",
               color=plots.color("decode"), label="measured")  # fmt: skip
    right.set_ylim(0)
    right.set_xlabel("sequences in the batch", fontsize=9)
    right.set_title("decoding: tokens/s, all sequences together", loc="left")
    right.legend(frameon=False, fontsize=9)
    return fig
