"""What fits on a device, and how fast it can be at most: weights, caches, batch.

Weights are there once; keys and values once for every sequence and token. What the weights leave
free is the batch; and the batch is the throughput.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from utils.core import plots
from utils.core.experiment import Range, experiment
from utils.deep_learning.serving.service import log_scale
from utils.llm.scale.catalogue import MODELS
from utils.llm.scale.costs import Device, Shape, cache_bytes, step, weight_bytes

Dtype = Literal["float32", "bfloat16", "int8", "int4"]
BATCHES = tuple(2**power for power in range(9))


@dataclass(frozen=True)
class Serving:
    """A model with sequences of `context` tokens on `device`; the cache is never below bfloat16."""

    name: str
    shape: Shape
    dtype: Dtype
    context: int
    batch: int
    device: Device

    @property
    def weights(self) -> float:
        return weight_bytes(self.shape, self.dtype)

    @property
    def cached(self) -> str:
        """The format of keys and values."""
        return "float32" if self.dtype == "float32" else "bfloat16"

    @property
    def cache(self) -> float:
        """Bytes of one sequence."""
        return cache_bytes(self.shape, self.context, dtype=self.cached)

    @property
    def most(self) -> int:
        """The largest batch that fits; 0 if not even one sequence does."""
        return max(0, int((self.device.memory - self.weights) // self.cache))

    @property
    def devices(self) -> int:
        """How many of these devices the weights and this batch need, evenly cut."""
        return -int(-(self.weights + self.batch * self.cache) // self.device.memory)

    def rate(self, batch: int) -> float:
        """Tokens a second that no program can exceed, if it fits."""
        work = step(self.shape, 1, self.context - 1, batch, self.dtype, self.cached)
        return batch / work.least(self.device)


@experiment
def serve(
    model: Literal[*MODELS] = "Llama 3.1 8B",  # type: ignore[valid-type]
    kv_heads: Literal["as published", "one (MQA)", "all (MHA)"] = "as published",
    dtype: Dtype = "bfloat16",
    context: Annotated[int, Range(256, 131072, 256, label="tokens a sequence")] = 8192,
    batch: Annotated[int, Range(1, 256)] = 8,
    memory: Annotated[int, Range(4, 288, 4, label="GB of memory")] = 80,
    bandwidth: Annotated[int, Range(10, 8000, 10, label="GB/s of memory")] = 2040,
    compute: Annotated[float, Range(0.1, 2500, 0.1, label="TFLOP/s")] = 312,
) -> Serving:
    """Calculate; nothing is run. The defaults of the device are an A100's."""
    shape = MODELS[model].shape
    heads = {"as published": shape.kv_heads, "one (MQA)": 1, "all (MHA)": shape.heads}[kv_heads]
    shape = replace(shape, kv_heads=heads)
    device = Device("device", memory * 1e9, bandwidth * 1e9, compute * 1e12)
    return Serving(model, shape, dtype, context, batch, device)


def plot(result: Serving) -> plots.Picture:
    """Left the memory for batches of 1 to 256; right the limit, hollow where it does not fit."""
    fig, (left, right) = plots.figure(10, 3.8, cols=2)
    names, places = [str(batch) for batch in BATCHES], range(len(BATCHES))
    caches = [batch * result.cache / 1e9 for batch in BATCHES]
    weights = result.weights / 1e9
    left.bar(places, weights, color=plots.BLUE, label="weights")
    left.bar(places, caches, bottom=weights, color=plots.ORANGE, label="keys and values")
    limit = result.device.memory / 1e9
    left.axhline(limit, color=plots.VERMILION, label=f"memory, {limit:.0f} GB")
    left.set_ylim(0, max(2.2 * limit, 1.3 * weights))
    seen = "" if result.context <= result.shape.context else f" (trained: {result.shape.context})"
    left.set_title(f"{result.name}, {result.dtype}, {result.context} tokens{seen}: GB", loc="left")
    rates = [result.rate(batch) for batch in BATCHES]
    right.plot(places, rates, color=plots.color("theory"), zorder=1)
    fits = [batch <= result.most for batch in BATCHES]
    faces = [plots.BLUE if ok else "white" for ok in fits]
    right.scatter(places, rates, c=faces, edgecolors=plots.BLUE, zorder=2)
    log_scale(right, "y")
    right.set_ylim(min(rates) / 2, 3 * max(rates))
    right.set_title("tokens/s at most, all sequences together", loc="left")
    if result.devices > 1:
        verdict = f"a batch of {result.batch} needs {result.devices} such devices"
    else:
        verdict = f"a batch of {result.batch} fits: {result.rate(result.batch):,.0f} tokens/s"
    right.text(0.02, 0.93, f"{verdict}; at most {result.most} fit", transform=right.transAxes,
               fontsize=9)  # fmt: skip
    fig.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    for ax in (left, right):
        ax.set_xticks(places, names)
        ax.set_xlabel("sequences in the batch", fontsize=9)
    return fig
