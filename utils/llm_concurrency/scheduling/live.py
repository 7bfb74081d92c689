"""Look into the engine: who waits, who runs and how far, and whose every block of memory is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import ipywidgets as widgets
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from utils.core import plots
from utils.core.experiment import Range, experiment
from utils.llm_concurrency.engine.blocks import BlockPool
from utils.llm_concurrency.engine.engine import Engine
from utils.llm_concurrency.engine.scheduler import Plan, Scheduler
from utils.llm_concurrency.scheduling.load import poisson
from utils.llm_concurrency.scheduling.virtual import Cost, simulate

ROWS, COLUMNS = 14, 20  # requests and blocks in a row that are drawn
SHADES = (plots.BLUE, plots.ORANGE, plots.GREEN, plots.PURPLE, plots.SKY, plots.VERMILION)
FREE, CACHED = -1, -2


@dataclass(frozen=True)
class Row:
    """A request: tokens computed, there, and possible at most."""

    number: int
    running: bool
    prompt: int
    computed: int
    most: int


@dataclass(frozen=True)
class Frame:
    """The engine between two steps; `owners`: a request for each block, or FREE, or CACHED."""

    rows: tuple[Row, ...]
    owners: tuple[int, ...]
    shared: frozenset[int]  # blocks that several hold

    @staticmethod
    def of(scheduler: Scheduler) -> Frame:
        """A copy of what counts. Another thread may look: at worst it sees half a step."""
        running, waiting = list(scheduler.running), list(scheduler.waiting)
        pool = scheduler.pool
        owners = [CACHED if pool.known(block) else FREE for block in range(pool.count)]
        shared = set()
        for sequence in running:
            for block in list(sequence.table):
                if owners[block] >= 0:
                    shared.add(block)
                owners[block] = sequence.number
        rows = tuple(
            Row(
                one.number,
                one in running,
                len(one.request.prompt),
                one.computed,
                one.request.length,
            )
            for one in sorted(running + waiting, key=lambda one: one.number)
        )
        return Frame(rows, tuple(owners), frozenset(shared))


class _Watched(Scheduler):
    """Takes a picture of every plan."""

    frames: list[Frame]

    def plan(self) -> Plan:
        plan = super().plan()
        self.frames.append(Frame.of(self))
        return plan


@experiment
def replay(
    step: Annotated[int, Range(0, 100, 1, label="% of the run")] = 55,
    rate: Annotated[float, Range(0.5, 8, 0.5, label="requests a second")] = 6,
    slots: Annotated[int, Range(1, 32)] = 8,
    blocks: Annotated[int, Range(40, 240, 8)] = 96,
) -> Frame:
    """One moment of a run of 40 requests on the virtual clock."""
    scheduler = _Watched(BlockPool(blocks, 16), slots=slots, budget=128)
    scheduler.frames = []
    simulate(poisson(40, rate), scheduler, Cost(0.02, 0.0015))
    return scheduler.frames[round(step / 100 * (len(scheduler.frames) - 1))]


def plot(frame: Frame) -> plots.Picture:
    """Left the requests, right the memory; a request has the same colour in both."""
    fig, (left, right) = plots.figure(10, 3.8, cols=2, gridspec_kw={"width_ratios": [3, 2]})
    _requests(left, frame)
    _memory(right, frame)
    return fig


def shade(number: int) -> str:
    return SHADES[number % len(SHADES)]


def _requests(ax: Axes, frame: Frame) -> None:
    rows = frame.rows[:ROWS]
    for line, row in enumerate(rows):
        color = shade(row.number) if row.running else plots.PAPER_GREY
        ax.barh(line, row.most, 0.7, color="none", edgecolor=color, linewidth=1)
        ax.barh(line, row.computed, 0.7, color=color)
        ax.plot([row.prompt] * 2, [line - 0.35, line + 0.35], color=plots.INK, linewidth=1.5)
    ax.set_yticks(range(len(rows)), [f"request {row.number}" for row in rows], fontsize=8)
    ax.set_ylim(ROWS - 0.4, -0.6)
    ax.set_xlim(0, max((row.most for row in frame.rows), default=1) * 1.02)
    ax.set_xlabel("tokens in memory; the mark is the end of the prompt", fontsize=9)
    waiting = sum(not row.running for row in frame.rows)
    ax.set_title(f"{len(frame.rows) - waiting} run, {waiting} wait (grey)", loc="left")
    ax.grid(visible=False)


def _memory(ax: Axes, frame: Frame) -> None:
    for block, owner in enumerate(frame.owners):
        corner = (block % COLUMNS, block // COLUMNS)
        color = {FREE: plots.LIGHT, CACHED: plots.PAPER_GREY}.get(owner) or shade(owner)
        ax.add_patch(Rectangle(corner, 0.86, 0.86, color=color))
        if block in frame.shared:
            ax.plot(corner[0] + 0.43, corner[1] + 0.43, "o", color="white", markersize=3)
    used = sum(owner >= 0 for owner in frame.owners)
    ax.set_xlim(-0.2, COLUMNS)
    ax.set_ylim(-(-len(frame.owners) // COLUMNS), -0.2)
    ax.set_aspect("equal", anchor="NW")
    ax.axis("off")
    ax.set_title(f"{used} of {len(frame.owners)} blocks held", loc="left")
    note = "grey: nobody's, but its text is known; dot: shared"
    ax.text(0, -(-len(frame.owners) // COLUMNS) + 0.6, note, fontsize=8, va="top")


@contextmanager
def watched(engine: Engine, interval: float = 0.3) -> Iterator[None]:
    """Show the engine, again and again, while the block runs."""
    image = widgets.Image(format="png")
    over = threading.Event()

    def draw() -> None:
        image.value = plots.png(plot(Frame.of(engine.core.scheduler)), dpi=80)

    def watch() -> None:
        while not over.wait(interval):
            draw()

    draw()
    display(image)
    thread = threading.Thread(target=watch, name="live view", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        draw()
