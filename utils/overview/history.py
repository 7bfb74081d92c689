"""Section 1.2: sixty years of concurrency as dated, cited milestones on four tracks.

"Multi-core processors made threads possible" is an error (E3 of the errata): the dates say
otherwise. Semaphores (1965), POSIX threads (1995) and OpenMP (1997) came first, because waiting
overlaps on one core too, and because machines with several processors are older than chips with
several cores. `plot` draws a dashed line where multi-core reached the PC.
"""

from __future__ import annotations

import functools
import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator

from utils.core import plots
from utils.core.experiment import Range, experiment
from utils.overview.milestones import HARDWARE, MILESTONES, MODELS, SERVING, TRAINING, Milestone

TRACKS = {
    HARDWARE: plots.BLUE,
    MODELS: plots.VERMILION,
    TRAINING: plots.GREEN,
    SERVING: plots.PURPLE,
}

MULTI_CORE_PCS = next(m for m in MILESTONES if m.name == "dual-core PCs").when


@dataclass(frozen=True)
class History:
    """The milestones from `first` to `last`, both years included, oldest first."""

    first: int
    last: int
    track: str
    milestones: tuple[Milestone, ...]


@experiment
def history(
    first: Annotated[int, Range(1960, 2026, label="from year")] = 1960,
    last: Annotated[int, Range(1960, 2026, label="to year")] = 2026,
    track: Literal["all", "hardware", "programming models", "deep learning", "LLM serving"] = "all",
) -> History:
    """Select milestones by year and track; ValueError if `first` is after `last`."""
    if first > last:
        raise ValueError(f"from year: first={first} is after last={last}, the to year")
    return History(
        first,
        last,
        track,
        tuple(m for m in MILESTONES if first <= m.year <= last and track in ("all", m.track)),
    )


# All sizes in inches. The picture keeps its size while the years change, so nothing jumps.
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 10.0, 1.25, 0.2, 0.4, 0.35
AXIS = WIDTH - LEFT - RIGHT
FONT_SIZE = 8.5  # points
GAP = 0.09  # from a dot to its text, and from one label to the next


class Place(NamedTuple):
    """Where a label goes: its row in the lane, and on which side of the dot the text stands."""

    row: int
    right: bool


@functools.cache
def text_width(text: str) -> float:
    """Room for `text` in inches, without a screen at hand.

    A screen rounds letters to whole pixels, which makes them up to 5 % wider than their outlines.
    """
    return 1.05 * TextPath((0, 0), text, size=FONT_SIZE).get_extents().width / 72


def pack(dots: Sequence[float], widths: Sequence[float], line: float = 0) -> list[Place]:
    """Give each label the first row of its lane where dot and text touch no other label.

    Text stands right of its dot, but left of it where it would cross `line` or leave the axis.
    """
    rows: list[list[tuple[float, float]]] = []
    places = []
    for dot, width in zip(dots, widths, strict=True):
        length = GAP + width
        limit = min(line, AXIS) if dot < line else AXIS
        right = dot + length + GAP <= limit or dot < length
        start, end = (dot - GAP, dot + length) if right else (dot - length, dot + GAP)
        row = 0
        while row < len(rows) and any(a < end + GAP and start < b + GAP for a, b in rows[row]):
            row += 1
        if row == len(rows):
            rows.append([])
        rows[row].append((start, end))
        places.append(Place(row, right))
    return places


def plot(result: History) -> Figure:
    """One lane a track, one dot a milestone; right of the dashed line PCs have several cores."""
    lanes = list(TRACKS) if result.track == "all" else [result.track]
    height = 6.2 if result.track == "all" else 2.6
    fig, ax = plots.figure(WIDTH, height)
    fig.set_layout_engine("none")  # `pack` counts on an axis of known width
    ax.set_position((LEFT / WIDTH, BOTTOM / height, AXIS / WIDTH, (height - TOP - BOTTOM) / height))
    ax.set_xlim(result.first, result.last + 1)
    top = 0.0
    for lane in lanes:
        top += _draw_lane(ax, lane, [m for m in result.milestones if m.track == lane], top)
    ax.set_ylim(top, 0)
    _draw_pcs(ax)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=14, integer=True, steps=[1, 2, 5, 10]))
    ax.grid(axis="x", color="white", linewidth=1)
    return fig


def _inches(ax: Axes, year: float) -> float:
    """Where `year` lies on the axis, from its left end."""
    first, end = ax.get_xlim()
    return (year - first) / (end - first) * AXIS


def _draw_lane(ax: Axes, lane: str, milestones: list[Milestone], top: float) -> float:
    """Draw one lane downwards from `top` and return its height in rows."""
    color = TRACKS[lane]
    labels = [f"{m.name}  {m.year}" for m in milestones]
    dots = [_inches(ax, m.when) for m in milestones]
    widths = [text_width(label) for label in labels]
    places = pack(dots, widths, line=_inches(ax, MULTI_CORE_PCS))
    height = max((place.row for place in places), default=0) + 1.5
    beside = ax.get_yaxis_transform()  # x as a fraction of the axis, y in rows
    band = (top + 0.06, top + height - 0.06)
    ax.axhspan(*band, color=color, alpha=0.10, linewidth=0, zorder=0)
    ax.axhspan(*band, xmax=0.005, color=color, linewidth=0)
    ax.text(
        -0.012, top + height / 2, lane.replace(" ", "\n"), transform=beside,
        ha="right", va="center", fontsize=10, fontweight="bold", color=plots.INK,
    )  # fmt: skip
    for milestone, label, place in zip(milestones, labels, places, strict=True):
        at = (milestone.when, top + place.row + 0.75)
        ax.plot(*at, "o", color=color, markersize=6.5, markeredgecolor="white")
        ax.annotate(
            label, at, (GAP * 72 if place.right else -GAP * 72, 0), textcoords="offset points",
            ha="left" if place.right else "right", va="center_baseline",
            fontsize=FONT_SIZE, color=plots.INK,
        )  # fmt: skip
    if not milestones:
        ax.text(
            0.5, top + height / 2, "nothing in these years", transform=beside,
            ha="center", va="center", fontsize=FONT_SIZE, color=plots.GREY, style="italic",
        )  # fmt: skip
    return height


def _draw_pcs(ax: Axes) -> None:
    """Say above the lanes what PCs had, each on its side of the dashed line."""
    line = min(max(_inches(ax, MULTI_CORE_PCS), 0), AXIS)
    if 0 < line < AXIS:
        ax.axvline(MULTI_CORE_PCS, color=plots.INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for start, end, name in ((0, line, "PCs with one core"), (line, AXIS, "PCs with several")):
        if end - start > 1.2:  # inches: else the name would not fit
            ax.text(
                (start + end) / 2 / AXIS, 1.01, name, transform=ax.transAxes,
                ha="center", va="bottom", fontsize=9.5, color=plots.INK,
            )  # fmt: skip


def table(result: History) -> str:
    """The same milestones as an HTML table: date, name, what changed, and a link to the source."""
    left = 'style="text-align:left"'
    rows = "".join(
        f'<tr style="border-left:4px solid {TRACKS[m.track]}"><td {left}>{m.date}</td>'
        f"<td {left}><b>{html.escape(m.name)}</b></td><td {left}>{html.escape(m.change)}</td>"
        f'<td {left}><a href="{html.escape(m.url)}">{html.escape(m.source)}</a></td></tr>'
        for m in result.milestones
    )
    titles = ("when", "what", "what it changed", "source")
    head = "<tr>" + "".join(f"<th {left}>{title}</th>" for title in titles) + "</tr>"
    return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"
