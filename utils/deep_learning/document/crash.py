"""The unsafe variants in processes of their own, where a crash harms nobody; and what came of them.

A process that corrupts its heap ends by a signal (Windows: by an exit code above 2**31), at once or
later, or never: nothing is promised. So each trial is run several times, and all endings count.
Python's faulthandler writes where each thread was.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from utils.core import machine, plots
from utils.core.experiment import Cancelled, Control, Range, current, experiment, gather
from utils.core.workers import crew
from utils.deep_learning.document import child as unsafe
from utils.deep_learning.document.program import UNSAFE, Settings

DEADLINE = 60.0  # seconds for one process
AT_EXIT = "exit"
ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Trial:
    """One run of a variant, in fields of `Report`; or how its process ended instead (`crash`)."""

    variant: str
    process: int
    crash: str = ""
    applied: Sequence[float] = ()
    errors: Sequence[str] = ()
    accuracy: float = math.nan

    @property
    def counts(self) -> dict[str, int]:
        """Batches by how often their gradient was applied."""
        once, never = (sum(count == wanted for count in self.applied) for wanted in (1, 0))
        return {"once": once, "never": never, "otherwise": len(self.applied) - once - never}


def trial(number: int, settings: Settings, control: Control | None = None) -> list[Trial]:
    """Run the unsafe variants one after the other in a new process, until it dies.

    One that takes too long is killed and counts as crashed. If `control` is cancelled, so is this.
    """
    control = control or current()
    arguments = ["-m", unsafe.__name__, json.dumps(asdict(settings))]
    command = [sys.executable, "-X", "faulthandler", *arguments]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    # LIBC_FATAL_STDERR_: glibc tells of a corrupt heap where we can read it, not on the terminal
    environment = os.environ | {"PYTHONPATH": path, "LIBC_FATAL_STDERR_": "1"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, stdout=out, stderr=errors, env=environment) as child:
            try:
                end = time.monotonic() + DEADLINE
                while child.poll() is None and time.monotonic() < end:
                    if control.stopped.wait(0.05):
                        raise Cancelled
            finally:
                late = child.poll() is None
                child.kill()
        out.seek(0)
        errors.seek(0)
        lines = [json.loads(line) for line in out if line.endswith("\n")]
        how = ending(child.returncode, errors.read())
    crash = f"killed after {DEADLINE:.0f} s" if late else how
    trials = [Trial(process=number, **line) for line in lines]
    if crash:  # while it ran the next variant, or when it had done them all
        trials.append(Trial([*UNSAFE, AT_EXIT][len(trials)], number, crash))
    return trials


def ending(code: int, errors: str) -> str:
    """How a process ended by exit code `code`, and where by faulthandler's report; "" if well."""
    if code == 0:
        return ""
    try:
        how = signal.Signals(-code).name if code < 0 else f"exit code {code:#x}"
    except ValueError:
        how = f"signal {-code}"
    where = re.search(r"^Current thread .*\n +File .* in (\w+)$", errors, re.MULTILINE)
    return f"{how} in {where[1]}" if where else how


def article(workers: int, steps: int) -> Settings:
    """About `steps` small batches, at the article's learning rate; each thread computes alone."""
    epochs = -(-steps // 400)
    return Settings(10 * (steps // epochs), 10, epochs, workers, inside=1, rate=0.01)


@experiment
def tally(
    processes: Annotated[int, Range(1, 12)] = 1,
    workers: Annotated[int, Range(1, 16, label="threads")] = 4,
    steps: Annotated[int, Range(50, 1600, 50)] = 200,
) -> list[Trial]:
    """Let each of `processes` processes try the unsafe variants: `steps` steps of 10 digits."""
    settings = article(workers, steps)
    with crew(min(processes, machine.cores())) as pool:
        control = current()
        futures = [pool.submit(trial, n, settings, control) for n in range(1, processes + 1)]
        done = gather(futures, timeout=DEADLINE * processes, note="trials", total=processes)
    return [one for trials in done for one in trials]


def plot(trials: list[Trial]) -> plots.Picture:
    """A bar a trial: its batches, by how often their gradients reached the parameters."""
    ordered = sorted(trials, key=lambda one: [*UNSAFE, AT_EXIT].index(one.variant))
    kinds = {
        "once": ("applied once", plots.BLUE),
        "never": ("never", plots.PAPER_GREY),
        "otherwise": ("more than once, or in part", plots.ORANGE),
    }
    fig, ax = plots.figure(9, 1.4 + 0.3 * len(trials))
    most = max([len(one.applied) for one in trials] + [1])
    for row, one in enumerate(ordered):
        if one.crash:
            ax.barh(row, most, color=plots.VERMILION)
            ax.text(most / 2, row, f"crashed: {one.crash}", ha="center", va="center", color="white")
        left = 0
        for kind, count in one.counts.items():
            ax.barh(row, count, left=left, color=kinds[kind][1])
            left += count
        if one.errors:
            ax.text(1.01 * most, row, f"{len(one.errors)} failed", va="center", fontsize=9)
    for label, color in kinds.values():
        ax.barh(0, 0, color=color, label=label)
    ax.set_yticks(range(len(ordered)), [f"{one.variant}, process {one.process}" for one in ordered])
    ax.invert_yaxis()
    ax.set_xlim(0, 1.15 * most)
    ax.grid(visible=False)
    ax.set_xlabel("batches", fontsize=9)
    fig.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return fig
