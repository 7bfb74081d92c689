"""Switch a bug on, let the requests come, and see which invariant breaks, when, and who suffers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from matplotlib.patches import Patch

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.core.trace import Recorder, Trace
from utils.core.workers import intra_op
from utils.llm.generate import generate
from utils.llm_concurrency.engine.blocks import BlockPool
from utils.llm_concurrency.engine.core import Core
from utils.llm_concurrency.engine.model import PagedModel
from utils.llm_concurrency.engine.request import Request
from utils.llm_concurrency.engine.scheduler import Plan, Scheduler
from utils.llm_concurrency.engine.sequence import Sequence
from utils.llm_concurrency.museum import invariants
from utils.llm_concurrency.museum.bugs import EXHIBITS
from utils.llm_concurrency.museum.visitors import Visitor, tiny

Bug = Literal["fully cached prompt", "freed twice", "stale entry", "hash only"]
LONGEST = 80  # steps
TICK = 10**9  # the clock counts steps: the picture's seconds
COLORS = {"A": plots.BLUE, "B": plots.PURPLE, "C": plots.SKY}


@dataclass(frozen=True)
class Visit:
    """What a visit was; steps count from 0.

    `broken`: the step at which each invariant broke first. `failed`: who got an error, and which.
    `held`: in each step, who has which block in a table; `foreign`: who reads what is not its own
    text there. `came`: the step of each token.
    """

    bug: str
    answers: dict[str, list[int]]
    alone: dict[str, list[int]]
    came: dict[str, list[int]]
    broken: dict[str, int]
    failed: dict[str, str]
    held: list[dict[int, list[str]]]
    foreign: list[dict[int, str]]
    blocks: int
    trace: Trace

    def differs(self, name: str) -> int | None:
        """The first token of an answer that is not what it would be alone; None if all are."""
        pairs = zip(self.answers[name], self.alone[name], strict=False)
        return next((place for place, (a, b) in enumerate(pairs) if a != b), None)

    @property
    def changed(self) -> list[str]:
        """Whose answer is another, or none."""
        return [name for name in self.answers if self.answers[name] != self.alone[name]]


@experiment
def run(
    bug: Bug = "stale entry",
    switched_on: bool = True,
    size: Annotated[int, Range(3, 8, label="tokens a block")] = 4,
) -> Visit:
    """Let an exhibit's requests visit the engine, with its bug or without."""
    exhibit = EXHIBITS[bug]
    pool = (exhibit.pool if switched_on else BlockPool)(exhibit.blocks, size)
    with intra_op(1):
        return walk(bug if switched_on else "no bug", pool, exhibit.visitors(size))


def walk(
    name: str,
    pool: BlockPool,
    visitors: list[Visitor],
    check: Callable[[BlockPool, dict], None] = lambda pool, texts: None,
) -> Visit:
    """Step by step with every invariant, and after each step with the caller's own `check`."""
    names = [visitor.name for visitor in visitors]
    sequences = [Sequence(n, Request(v.prompt, v.limit)) for n, v in enumerate(visitors)]
    broken: dict[str, int] = {}
    failed: dict[str, str] = {}
    held: list[dict[int, list[str]]] = []
    foreign: list[dict[int, str]] = []
    step = 0

    def watch(invariant: Callable[..., None], *what: object) -> None:
        try:
            invariant(*what)
        except AssertionError:
            broken.setdefault(invariant.__name__, step)

    def look(plan: Plan) -> None:
        held.append({})
        for one in scheduler.running:
            for block in one.table:
                held[-1].setdefault(block, []).append(names[one.number])
        works = plan.work
        foreign.append({b: names[w.sequence.number] for w in works for b in shadow.foreign(w)})
        watch(invariants.computes, plan)
        watch(invariants.own, plan, shadow)

    scheduler, recorder = Scheduler(pool, slots=8, budget=64), Recorder()
    shadow = invariants.Shadow(PagedModel(tiny(), pool.count, pool.size), look)
    # The time is the number of steps that were looked at: a step takes one tick.
    core = Core(shadow, scheduler, clock=lambda: len(held) * TICK, recorder=recorder)
    while step < LONGEST and (not scheduler.idle or any(v.arrives >= step for v in visitors)):
        checkpoint(step, LONGEST, name)
        for one, visitor in zip(sequences, visitors, strict=True):
            if visitor.arrives == step:
                core.add(one)
        there = [*scheduler.running, *scheduler.waiting]
        try:
            if there:
                core.step()
        except Exception as error:  # whatever the bug leads to
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            gone = set(there) - {*scheduler.running, *scheduler.waiting}
            failed |= {names[one.number]: said for one in gone}
        if len(held) == step:  # nothing was computed
            held.append({})
            foreign.append({})
        watch(invariants.not_free, scheduler)
        watch(invariants.counted, scheduler)
        watch(invariants.entries, pool, shadow.texts)
        watch(check, pool, shadow.texts)
        step += 1
    return Visit(
        name,
        answers={names[one.number]: one.generated for one in sequences},
        alone={v.name: list(generate(tiny(), v.prompt, v.limit, cached=False)) for v in visitors},
        came={names[one.number]: [t // TICK - 1 for t in one.times] for one in sequences},
        broken=broken,
        failed=failed,
        held=held,
        foreign=foreign,
        blocks=pool.count,
        trace=recorder.trace(),
    )


def plot(result: Visit) -> plots.Picture:
    """Above, the requests step by step; below, who holds which block of the memory.

    × is a block in which somebody reads what is not their own text; red, the step that broke an
    invariant first.
    """
    fig, (top, bottom) = plots.figure(
        10,
        3.6 + 0.16 * result.blocks,
        rows=2,
        sharex=True,
        height_ratios=[3, 1 + result.blocks / 3],
    )
    lanes, steps = list(result.answers), len(result.held)
    plots.timeline(
        top, result.trace, until=steps, lanes=[f"request {n}" for n in range(len(lanes))]
    )
    top.set_yticks(range(len(lanes)), lanes)
    top.set_xlabel("")
    for row, name in enumerate(lanes):
        _draw_words(top, row, result, name)
    for step, (held, foreign) in enumerate(zip(result.held, result.foreign, strict=True)):
        for block, names in held.items():
            for place, name in enumerate(names):
                low, height = block - 0.4 + 0.8 * place / len(names), 0.8 / len(names)
                bottom.broken_barh([(step, 0.94)], (low, height), facecolor=COLORS[name])
        for block in foreign:
            style = {"ha": "center", "va": "center", "color": plots.INK, "weight": "bold"}
            bottom.text(step + 0.47, block, "×", fontsize=12, **style)
    bottom.set_yticks(range(result.blocks))
    bottom.set_ylim(result.blocks - 0.4, -0.6)
    bottom.set_ylabel("block", fontsize=9)
    bottom.set_xlabel("step", fontsize=9)
    bottom.grid(visible=False)
    first = min(result.broken.values(), default=None)
    broken = ", ".join(f"{name} ({step})" for name, step in result.broken.items()) or "none"
    changed = ", ".join(result.changed) or "nobody's"
    top.set_title(f"{result.bug}: invariants broken (at step): {broken}; changed: {changed}")
    top.title.set_fontsize(10)
    if first is not None:
        for ax in (top, bottom):
            ax.axvspan(first, first + 1, color=plots.VERMILION, alpha=0.15, linewidth=0, zorder=0)
    handles = [Patch(color=color, label=f"held by {name}") for name, color in COLORS.items()]
    handles += [
        Patch(color=plots.color(kind), label=kind) for kind in ("prefill", "decode", "late")
    ]
    handles[-1].set_label("another token than alone")
    fig.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    return fig


def _draw_words(ax: plots.Axes, row: int, result: Visit, name: str) -> None:
    """The tokens of an answer in the steps that gave them; red from the first wrong one on."""
    wrong = result.differs(name)
    for place, (step, token) in enumerate(
        zip(result.came[name], result.answers[name], strict=True)
    ):
        if wrong is not None and place >= wrong:
            ax.broken_barh([(step, 1)], (row - 0.38, 0.76), facecolor=plots.color("late"))
        style = {"ha": "center", "va": "center", "color": "white", "fontsize": 8}
        ax.text(step + 0.5, row, str(token), **style)
    if name in result.failed:
        last = max([*result.came[name], min(result.broken.values(), default=0) - 1]) + 1
        error, *_ = result.failed[name].split(":")
        ax.text(last + 0.1, row, error, va="center", fontsize=9, color=plots.VERMILION)
