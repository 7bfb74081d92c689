"""Who waits for whom: the same batches loaded in turn, by a thread, and by processes.

Loaded in turn, a step takes load + compute. Overlapped, by n loaders, it takes the longer of
load / n and compute; and no less than (load + compute) / cores, for loaders need cores, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Annotated

from torch.utils.data import DataLoader

from utils.core import machine, plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.core.trace import Recorder, Trace, now
from utils.core.workers import intra_op
from utils.deep_learning import models
from utils.deep_learning.digits import Digits
from utils.deep_learning.loading.augmented import Augmented, Batch, whole
from utils.deep_learning.loading.prefetch import DEADLINE, prefetched
from utils.deep_learning.recipe import Recipe, loss_of


def step_time(load: float, compute: float, loaders: int, cores: int) -> float:
    """Seconds a step by theory; 0 loaders: the main thread loads and computes in turn."""
    if loaders == 0:
        return load + compute
    return max(load / loaders, compute, (load + compute) / cores)


@dataclass(frozen=True)
class Fed:
    """A pass over the data. Categories: "load", "compute", and "queue" (waits for a batch)."""

    name: str
    loaders: int
    first: float  # seconds until the very first batch was there, processes started and all
    steps: int
    trace: Trace
    labels: tuple[int, ...]

    @property
    def step(self) -> float:
        """Seconds a step, from its wait for data to its end."""
        return self.trace.select(lane="main").duration / self.steps

    @property
    def waiting(self) -> float:
        """Share of the main thread's time in which it did not compute, 0 to 1."""
        return 1 - self.trace.total("compute", lane="main") / (self.step * self.steps)


@dataclass(frozen=True)
class Feeding:
    """The ways compared; the first one loads in turn. `cores`: of this machine."""

    ways: tuple[Fed, ...]
    cores: int

    @property
    def load(self) -> float:
        """Seconds to load a batch, alone."""
        return self.ways[0].trace.total("load") / self.ways[0].steps

    @property
    def compute(self) -> float:
        """Seconds to compute a step, alone."""
        return self.ways[0].trace.total("compute") / self.ways[0].steps

    def theory(self, loaders: int) -> float:
        return step_time(self.load, self.compute, loaders, self.cores)


@experiment
def feed(
    fineness: Annotated[int, Range(1, 16, label="fineness (cost of loading)")] = 4,
    processes: Annotated[int, Range(0, min(8, max(1, machine.cores())))] = 0,
    ahead: Annotated[int, Range(1, 8, label="batches ahead, a loader")] = 2,
    batch: Annotated[int, Range(16, 256, 16, label="digits a batch")] = 64,
    steps: Annotated[int, Range(4, 15)] = 6,
) -> Feeding:
    """Train a small network, loading in turn, by a thread and by processes (if any)."""
    data = Augmented(steps * batch, fineness)
    with intra_op(1):
        with loader(data, batch) as batches:
            ways = [_feed("in turn", 0, lambda: nullcontext(batches), steps)]
            ways.append(_feed("a thread", 1, lambda: prefetched(batches, ahead), steps))
        if processes:
            with loader(data, batch, processes, ahead) as batches:
                name = "1 process" if processes == 1 else f"{processes} processes"
                ways.append(_feed(name, processes, lambda: nullcontext(batches), steps))
    return Feeding(tuple(ways), machine.cores())


@contextmanager
def loader(
    data: Augmented, batch: int, processes: int = 0, ahead: int | None = None
) -> Iterator[DataLoader]:
    """A `DataLoader` whose processes live over all epochs of the block, and have ended after it."""
    loading = DataLoader(
        data,
        batch,
        num_workers=processes,
        prefetch_factor=ahead,
        collate_fn=whole,
        timeout=DEADLINE if processes else 0,
        multiprocessing_context="spawn" if processes else None,
        persistent_workers=processes > 0,
    )
    try:
        yield loading
    finally:
        if loading._iterator is not None:  # at once, not when the last reference happens to go
            loading._iterator._shutdown_workers()


Epoch = Callable[[], AbstractContextManager[Iterable[Batch]]]


def _feed(name: str, loaders: int, epoch: Epoch, steps: int) -> Fed:
    """Train twice over the batches. The second pass counts: nothing is started in it."""
    model = models.make("small")
    optimizer = Recipe(rate=0.01).optimizer(model.parameters())
    first = 0.0
    for number in range(2):
        recorder, labels = Recorder(), list[int]()
        asked = now()
        with epoch() as batches:
            for done, batch in enumerate(batches):
                got = now()
                first = first or (got - asked) / 1e9
                lane = batch.lane if loaders else "main"
                recorder.add(lane, "load", f"batch {done}", batch.start, batch.end)
                if loaders:
                    recorder.add("main", "queue", f"waits for batch {done}", asked, got)
                optimizer.zero_grad()
                loss_of(model, Digits(batch.images, batch.labels)).backward()
                optimizer.step()
                asked = now()
                recorder.add("main", "compute", f"step {done}", got, asked)
                labels += batch.labels.tolist()
                checkpoint(number * steps + done + 1, 2 * steps, name)
    return Fed(name, loaders, first, steps, recorder.trace(), tuple(labels))


def plot(result: Feeding) -> plots.Picture:
    """Every way's timeline on one scale; and the time of a step beside the theory."""
    rows = [sorted(way.trace.lanes, key=lambda lane: lane != "main") for way in result.ways]
    sizes = [len(lanes) + 0.6 for lanes in rows]
    fig = plots.Picture(
        figsize=(9.5, 1.3 + 0.42 * sum(sizes) + 0.3 * len(rows)), layout="constrained"
    )
    grid = fig.add_gridspec(len(rows), 2, width_ratios=[3, 1.3], height_ratios=sizes)
    until = max(way.trace.duration for way in result.ways)
    for row, (way, lanes) in enumerate(zip(result.ways, rows, strict=True)):
        ax = plots.style(fig.add_subplot(grid[row, 0]))
        title = (
            f"{way.name}: {1e3 * way.step:.0f} ms a step, {100 * way.waiting:.0f} % not computing"
        )
        plots.timeline(ax, way.trace, lanes=lanes, title=title, until=until)
        if row + 1 < len(rows):
            ax.set_xlabel("")
            ax.tick_params(labelbottom=False)
    ax = plots.style(fig.add_subplot(grid[:, 1]))
    counts = range(max(4, result.ways[-1].loaders) + 1)
    theory = [1e3 * result.theory(count) for count in counts]
    ax.plot(counts, theory, "o-", color=plots.color("theory"), label="theory")
    for way, marker in zip(result.ways, "s^D", strict=False):
        ax.plot(way.loaders, 1e3 * way.step, marker, color=plots.BLUE, ms=8, label=way.name)
    ax.set_ylim(0, 1.1 * max([*theory, *(1e3 * way.step for way in result.ways)]))
    ax.set_xlabel("loaders (0: in turn)", fontsize=9)
    ax.set_title("ms a step", loc="left")
    ax.legend(frameon=False, fontsize=9, loc="lower right")
    plots.legend(fig, ["load", "compute", "queue"], {"queue": "waits for a batch"})
    return fig
