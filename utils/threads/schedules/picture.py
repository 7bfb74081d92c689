"""A failing schedule as a picture: time runs down, a column a thread, a box a line of the source.

Colours are the timeline's: blue is doing something, vermilion is waiting for a lock. A deadlock's
wait-for graph stands below it.
"""

from __future__ import annotations

import textwrap

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle

from utils.core import plots
from utils.threads.primitives.deadlock import Wait
from utils.threads.primitives.wait_graph import draw_waits
from utils.threads.schedules.inspection import cycle
from utils.threads.schedules.report import Found, Line, Report

_ROWS = 28  # lines shown at most: the last ones, which are the interesting ones
_ROUNDS = 12  # of a livelock, which says the same again and again
_INCH, _WRAP = 0.46, 3.2  # height of a row, width of a column, in inches


def plot(report: Report | Found) -> plots.Picture:
    """Draw the failing schedule of `report`; ValueError if it has none."""
    found = report.failure if isinstance(report, Report) else report
    if found is None:
        raise ValueError(f"nothing failed, so there is no schedule to draw: {report}")
    rows = interesting(found)
    threads = [name for name in found.threads if any(line.thread == name for line in rows)]
    height = _INCH * (len(rows) + 2.5)
    graph = 2.6 if found.kind == "deadlock" else 0.0
    width = max(6.5, _WRAP * len(threads))
    if graph:
        ratios = {"gridspec_kw": {"height_ratios": [height, graph]}}
        fig, (ax, below) = plots.figure(width, height + graph, rows=2, **ratios)
        waits = cycle(found.waits)
        draw_waits(below, [Wait(wait.waiter, wait.what, wait.owner) for wait in waits])
        below.set_title("who waits (dashed) for what, and who holds it", loc="left", fontsize=9)
    else:
        fig, ax = plots.figure(width, height)
    _lines(ax, found, rows, threads)
    return fig


def interesting(found: Found) -> list[Line]:
    """The lines from where a second thread comes into play, without the starts and joins."""
    lines, rows = list(found.lines), _ROUNDS if found.kind == "livelock" else _ROWS
    first = next((i for i, line in enumerate(lines) if line.thread != found.threads[0]), 0)
    return [line for line in lines[first:] if not all(map(_is_frame, line.does))][-rows:]


def _is_frame(what: str) -> bool:
    """Does it only begin or end a thread?"""
    return what.startswith(("start ", "join ", "wait for the end of "))


def _lines(ax: Axes, found: Found, rows: list[Line], threads: list[str]) -> None:
    columns = {name: index for index, name in enumerate(threads)}
    waiting: dict[str, int] = {}
    for row, line in enumerate([*rows, None]):
        for name in list(waiting):
            if line is None or line.thread == name:
                start = waiting.pop(name)
                bar = Rectangle((columns[name] + 0.46, start + 0.92), 0.04, row - start - 0.86)
                bar.set(color=plots.color("lock"), alpha=0.4, linewidth=0)
                ax.add_patch(bar)
        if line is None:
            continue
        if line.blocked:
            waiting[line.thread] = row
        _box(ax, columns[line.thread], row, line)
    bottom = len(rows) + 0.5
    message = textwrap.fill(
        f"{found.kind}: {found.message}", 38 * max(2, len(threads)), max_lines=2, placeholder=" …"
    )
    ax.text(0.0, bottom, message, color=plots.VERMILION, fontsize=10, weight="bold", va="center")
    ax.set_xlim(-0.02, len(threads))
    ax.set_ylim(bottom + 0.5, -1.0)
    for name, column in columns.items():
        ax.text(column + 0.48, -0.55, name, ha="center", fontsize=11, weight="bold")
    ax.axis("off")


def _box(ax: Axes, column: int, row: int, line: Line) -> None:
    color = plots.color("lock" if line.blocked else "compute")
    box = FancyBboxPatch(
        (column + 0.02, row + 0.06), 0.92, 0.86, boxstyle="round,pad=0,rounding_size=0.06"
    )
    box.set(facecolor="white", edgecolor=color, linewidth=1.2)
    ax.add_patch(box)
    source = textwrap.shorten(line.source, 31, placeholder=" …")
    ax.text(
        column + 0.04,
        row + 0.34,
        f"{line.line}  {source}",
        fontsize=8.5,
        family="monospace",
        va="center",
    )
    does = textwrap.shorten(", ".join(line.does), 50, placeholder=" …")
    ax.text(column + 0.04, row + 0.72, does, fontsize=7.5, color=color, va="center")
