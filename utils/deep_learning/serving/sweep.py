"""One at a time beside micro-batches: the same model, workers and load, at rising rates.

What a service can do is not its throughput but the rate at which it still answers in time: the
highest rate whose P95 is within a limit. Beyond it the line grows, and so do all latencies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from utils.core import bench, plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.core.workers import intra_op
from utils.deep_learning import digits
from utils.deep_learning.serving import service
from utils.deep_learning.serving.served import Served
from utils.deep_learning.serving.service import Name, Threads, Workers, log_scale

FACTORS = (0.5, 0.9, 3, 8)  # of what one at a time could do at best
MODES = {"one at a time": 1, "micro-batches": 64}  # by their max_batch


@dataclass(frozen=True)
class Sweep:
    """Runs by mode and then by rate; `limit` seconds for the P95."""

    model: str
    limit: float
    runs: dict[str, dict[float, Served]]

    def best(self, mode: str) -> float:
        """The highest rate tried that was served in time, as all lower ones; 0 if none was."""
        best = 0.0
        for rate, served in self.runs[mode].items():
            if not served.in_time(self.limit):
                break
            best = rate
        return best


@experiment
def sweep(
    model: Name = "wide",
    workers: Workers = 1,
    threads: Threads = 1,
    limit: Annotated[float, Range(5, 200, 5, label="limit for P95 [ms]")] = 50,
    seconds: Annotated[float, Range(0.2, 3, 0.05, label="seconds a run")] = 0.25,
) -> Sweep:
    """Raise the rate until the P95 is four times the limit, with and without batches."""
    most = 4 * limit / 1e3
    top = workers / alone(model, threads)
    runs: dict[str, dict[float, Served]] = {mode: {} for mode in MODES}
    for step, rate in enumerate(factor * top for factor in FACTORS):
        for mode, size in MODES.items():
            checkpoint(step, len(FACTORS), f"{mode}, {rate:.0f} requests a second")
            if all(served.latency(95) <= most for served in runs[mode].values()):
                settings = {"workers": workers, "threads": threads, "max_batch": size}
                runs[mode][rate] = service.measure(model, rate, seconds, **settings)
    return Sweep(model, limit / 1e3, runs)


def alone(name: Name, threads: int) -> float:
    """Seconds that the model takes for a batch of one."""
    image, network = digits.load()[1].images[:1], service.model(name)
    with intra_op(threads), torch.inference_mode():
        return bench.measure(lambda: network(image), repeats=15, warmup=5).median


def plot(result: Sweep) -> plots.Picture:
    """P50 and P95 over the offered rate, and the batches that made themselves."""
    fig, (ax, sizes) = plots.figure(9.5, 3.4, cols=2, gridspec_kw={"width_ratios": [3, 2]})
    for (mode, runs), color in zip(result.runs.items(), (plots.ORANGE, plots.BLUE), strict=True):
        for percent, style in ((95, "o-"), (50, "o:")):
            values = [1e3 * served.latency(percent) for served in runs.values()]
            ax.plot(list(runs), values, style, color=color, label=f"{mode}, P{percent}")
        batches = [served.mean_batch for served in runs.values()]
        sizes.plot(list(runs), batches, "o-", color=color, label=mode)
    ax.axhline(1e3 * result.limit, color=plots.INK, linewidth=0.8)
    ax.set_title(f"{result.model}: latency [ms], and the limit", loc="left")
    log_scale(ax, "y")
    sizes.set_title("requests a batch, mean", loc="left")
    for part in (ax, sizes):
        log_scale(part, "x")
        part.set_xlabel("requests offered a second", fontsize=9)
        part.legend(frameon=False, fontsize=8, loc="upper left")
    return fig
