"""One instruction, many numbers: the same operations with and without vector instructions.

PyTorch brings its own loops compiled several times, and takes the widest that the CPU has; the
environment variable `ATEN_CPU_CAPABILITY` makes it take another, once, when it starts. So each
setting gets a process. Matrix products come from a library with instructions of its own choice
(MKL, OpenBLAS, Accelerate), which the variable does not reach. Sources: aten/src/ATen/native/
DispatchStub.cpp in PyTorch; Intel, oneMKL developer guide, `MKL_ENABLE_INSTRUCTIONS`.

Run as a program, this module measures and prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from utils.core import plots
from utils.core.experiment import checkpoint, experiment

DEADLINE = 120.0  # seconds for each process
ROOT = Path(__file__).parents[3]
WORKS = {"a + b": "add", "silu(a)": "silu", "softmax(a)": "softmax", "A @ B": "matmul"}


@dataclass(frozen=True)
class Vectors:
    """Seconds of each operation by what torch says it uses, e.g. "DEFAULT" or "AVX2"."""

    seconds: dict[str, dict[str, float]]


@experiment
def run() -> Vectors:
    """Once as torch starts by itself, once told to use no vector instructions beyond the base."""
    from utils.core.workers import run_child

    found = {}
    for told in (None, "default"):
        checkpoint(len(found), 2, "in a process of its own")
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        environment.pop("ATEN_CPU_CAPABILITY", None)
        if told:
            environment["ATEN_CPU_CAPABILITY"] = told
        command = [sys.executable, "-m", __name__]
        uses, seconds = json.loads(run_child(command, environment, DEADLINE))
        found[uses] = seconds
    return Vectors(found)


def measure() -> tuple[str, dict[str, float]]:
    """What torch uses here, and seconds of each operation on numbers that lie in the cache."""
    import torch

    from utils.core import bench

    torch.set_num_threads(1)
    a, b, out = (torch.randn(64, 1024) for _ in range(3))
    square = torch.randn(256, 256)
    works = {
        "add": lambda: torch.add(a, b, out=out),
        "silu": lambda: torch.nn.functional.silu(a),
        "softmax": lambda: torch.softmax(a, -1),
        "matmul": lambda: torch.matmul(square, square),
    }
    with torch.inference_mode():
        taken = bench.compare(works, repeats=60, warmup=10)
    return torch.backends.cpu.get_cpu_capability(), {name: s.median for name, s in taken.items()}


def plot(result: Vectors) -> plots.Picture:
    """Each operation's time with the widest instructions, as a share of that without."""
    fig, ax = plots.figure(8, 2.8)
    last = list(result.seconds.values())[-1]
    colors = (plots.BLUE, plots.PAPER_GREY)
    width = 0.8 / len(result.seconds)
    for number, (uses, seconds) in enumerate(result.seconds.items()):
        places = [place + number * width for place in range(len(WORKS))]
        shares = [seconds[key] / last[key] for key in WORKS.values()]
        bars = ax.bar(places, shares, width, color=colors[number], label=uses)
        labels = [f"{1e6 * seconds[key]:.0f} µs" for key in WORKS.values()]
        ax.bar_label(bars, labels, fontsize=8)
    ax.set_xticks([place + width / 2 for place in range(len(WORKS))], list(WORKS))
    ax.set_ylabel("share of the time without", fontsize=9)
    ax.margins(y=0.15)
    fig.legend(loc="outside right upper", frameon=False, fontsize=9)
    return fig


if __name__ == "__main__":
    print(json.dumps(measure()))
