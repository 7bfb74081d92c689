"""What a message costs: so much for being a message, and so much for each of its bytes.

    seconds a message = per message + per megabyte × megabytes

The first part is calls, locks and waking somebody; the second is copying. Between threads a queue
passes a reference, so its second part is next to nothing. Between processes the bytes must get
across: a pipe copies them into the kernel and out again, in pieces of a pipe's capacity; the ring
copies them into shared memory and out, in one piece each.

Messages stream one way, and the time is that until the last one was taken. Starting the far
end is not part of it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from matplotlib.axes import Axes

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.threads.channels.carriers import CHANNELS
from utils.threads.channels.far_end import Between, FarEnd, far_end

MB = 10**6  # bytes
ROUNDS = 5
_TURN = 0.008  # s that a channel is measured at a time: long beside the order and its answer
_SIZES = (2**6, 2**12, 2**15, 2**17, 2**20)  # bytes
_COLORS = {
    "queue.SimpleQueue": plots.SKY,
    "queue.Queue": plots.BLUE,
    "MessageQueue": plots.GREEN,
    "Pipe": plots.VERMILION,
    "NamedPipe": plots.ORANGE,
    "multiprocessing.Pipe": plots.PURPLE,
    "multiprocessing.Queue": plots.BLUE,
    "Ring": plots.GREEN,
}


@dataclass(frozen=True)
class Cost:
    """Seconds for each message, and for each megabyte in it."""

    per_message: float
    per_megabyte: float

    def of(self, size: int) -> float:
        """Seconds for a message of `size` bytes."""
        return self.per_message + self.per_megabyte * size / MB


@dataclass(frozen=True)
class Costs:
    """Median seconds a message, for each channel and each of `sizes` (bytes)."""

    between: Between
    chosen: int
    sizes: tuple[int, ...]
    seconds: Mapping[str, tuple[float, ...]]
    copying: float  # seconds to copy a megabyte in memory once

    def measured(self, channel: str) -> float:
        """Seconds for a message of the chosen size."""
        return self.seconds[channel][self.sizes.index(self.chosen)]

    def fit(self, channel: str) -> Cost:
        return fit(self.sizes, self.seconds[channel])


def fit(sizes: tuple[int, ...], seconds: tuple[float, ...]) -> Cost:
    """The cost that comes closest, in percent and not in seconds; neither part below zero."""
    parts = np.array([[1, size / MB] for size in sizes]) / np.array(seconds)[:, None]
    both = np.linalg.lstsq(parts, np.ones(len(sizes)), rcond=None)[0]
    if both.min() < 0:
        keep = int(both.argmax())
        both = np.zeros(2)
        both[keep] = parts[:, keep].sum() / (parts[:, keep] ** 2).sum()
    return Cost(*both.tolist())


@experiment
def costs(
    between: Between = "processes",
    kib: Annotated[int, Range(1, 1024, label="KiB a message")] = 64,
) -> Costs:
    """Stream messages of the chosen size and of others through every channel in turn."""
    sizes = tuple(sorted({*_SIZES, kib * 1024}))
    channels = CHANNELS[between]
    pairs = [(channel, size) for size in sizes for channel in channels]
    taken: dict[tuple[str, int], list[float]] = {pair: [] for pair in pairs}
    checkpoint(0, note="starting the far end")
    with far_end(between, channels) as there:
        warm = {pair: _stream(there, *pair, count=8) for pair in pairs}
        for round_ in range(ROUNDS):
            for index, pair in enumerate(pairs):
                checkpoint(round_ * len(pairs) + index, ROUNDS * len(pairs), pair[0])
                count = min(2000, max(8, round(_TURN / warm[pair])))
                taken[pair].append(_stream(there, *pair, count))
    medians = {c: tuple(statistics.median(taken[c, s]) for s in sizes) for c in channels}
    return Costs(between, kib * 1024, sizes, medians, MB / copy_bandwidth())


def _stream(there: FarEnd, channel: str, size: int, count: int) -> float:
    """Seconds a message, when `count` of them are sent one after the other."""
    message = bytes(size)
    start = time.perf_counter()
    there.transfer(channel, [message] * count)
    return (time.perf_counter() - start) / count


def copy_bandwidth(blocks: int = 64, size: int = 2**20) -> float:
    """Bytes a second that one core copies in memory, from `blocks` blocks to as many others.

    The best of three: so much does the memory give. Bytes *copied* are counted, each read once
    and written once; more blocks than fit into the caches, as messages that nobody has seen yet.
    """
    source = np.ones((blocks, size), np.uint8)
    target = np.zeros((blocks, size), np.uint8)

    def seconds() -> float:
        start = time.perf_counter()
        for here, there in zip(source, target, strict=True):
            np.copyto(there, here)
        return time.perf_counter() - start

    return blocks * size / min(seconds() for _ in range(3))


def plot(result: Costs) -> plots.Picture:
    """Seconds a message over its size, and the two parts of the cost at the chosen size."""
    fig, (curves, bars) = plots.figure(9.6, 4.2, cols=2, width_ratios=[5, 4])
    names = list(result.seconds)
    sizes = np.geomspace(result.sizes[0], result.sizes[-1], 50)
    for name in names:
        color, ours = _COLORS[name], "." not in name
        micro = [1e6 * seconds for seconds in result.seconds[name]]
        curves.plot(result.sizes, micro, "o" if ours else "s", color=color, label=name, ms=5)
        curves.plot(sizes, [1e6 * result.fit(name).of(size) for size in sizes], color=color, lw=1)
    copies = [1e6 * result.copying * size / MB for size in sizes]
    curves.plot(sizes, copies, "--", color=plots.color("theory"), label="one copy in memory")
    curves.axvline(result.chosen, color=plots.ORANGE, linewidth=6, alpha=0.25)
    lowest = min(min(seconds) for seconds in result.seconds.values())
    curves.set(xscale="log", yscale="log", ylim=(1e6 * lowest / 3, None))
    ticks = [2**6, 2**10, 2**15, 2**20]
    curves.set_xticks(ticks, ["64 B", "1 KiB", "32 KiB", "1 MiB"])
    curves.minorticks_off()
    curves.set_title(f"µs a message, between {result.between}", loc="left")
    curves.legend(frameon=False, fontsize=8)
    _plot_parts(bars, result, names)
    return fig


def _plot_parts(ax: Axes, result: Costs, names: list[str]) -> None:
    fits = [result.fit(name) for name in names]
    fixed = [1e6 * cost.per_message for cost in fits]
    bytes_ = [1e6 * cost.per_megabyte * result.chosen / MB for cost in fits]
    ax.barh(names, fixed, color=plots.color("lock"), label="for the message")
    ax.barh(names, bytes_, left=fixed, color=plots.color("communicate"), label="for its bytes")
    measured = [1e6 * result.measured(name) for name in names]
    ax.plot(measured, names, "|", color=plots.INK, ms=16, mew=2, label="measured")
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", color="#E5E5E5", linewidth=0.8)
    ax.set_title(f"µs for {result.chosen // 1024} KiB: the fit's two parts", loc="left")
    ax.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.4, -0.08), ncols=3)
