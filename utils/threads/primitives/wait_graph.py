"""Draw who waits for whom, or in which order mutexes were asked for.

Apart from `deadlock`, which every mutex needs: a process that only sends messages should not have
to load a plotting library.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from math import cos, pi, sin
from typing import NamedTuple

from matplotlib.axes import Axes

from utils.core import plots
from utils.threads.primitives.deadlock import Deadlock, LockOrder, Wait

_WAITS, _HELD = "waits for", "is held by"
_BEND = 0.22  # of an arrow in the picture: two that lead to and fro don't cover each other


def plot(graph: Deadlock | LockOrder) -> plots.Picture:
    """Who waits for whom (threads are round), or which mutex was asked for under which, by whom.

    Red arrows form a cycle.
    """
    fig, ax = plots.figure(4.6, 3.8)
    if isinstance(graph, Deadlock):
        draw_waits(ax, graph.cycle)
        note = f"dashed: {_WAITS}; solid: {_HELD}"
    else:
        _draw(ax, list(_orders(graph)))
        note = "A → B: this thread asked for B while it held A"
    fig.supxlabel(note, fontsize=9)
    return fig


def draw_waits(ax: Axes, waits: Sequence[Wait]) -> None:
    """Draw who waits (dashed) for what, and who holds it, if anybody; threads are round."""
    arrows = []
    for wait in waits:
        arrows.append(Arrow(wait.thread, wait.mutex, _WAITS, True))
        if wait.holder:
            arrows.append(Arrow(wait.mutex, wait.holder, _HELD, True))
    _draw(ax, arrows, {wait.thread for wait in waits})


class Arrow(NamedTuple):
    start: str
    end: str
    label: str
    bad: bool  # part of a cycle


def _draw(ax: Axes, arrows: Sequence[Arrow], threads: Set[str] = frozenset()) -> None:
    """The nodes in a ring; a label on an arrow unless its line says the same."""
    nodes = list(dict.fromkeys(node for arrow in arrows for node in (arrow.start, arrow.end)))
    turn = 2 * pi / len(nodes) if nodes else 0
    at = {node: (sin(turn * i), cos(turn * i)) for i, node in enumerate(nodes)}
    for start, end, label, bad in arrows:
        color = plots.color("lock") if bad else plots.GREY
        (x0, y0), (x1, y1) = at[start], at[end]
        arrow = {
            "arrowstyle": "-|>",
            "color": color,
            "linewidth": 1.6,
            "linestyle": "--" if label == _WAITS else "-",
            "mutation_scale": 15,
            "shrinkA": 20,
            "shrinkB": 20,
            "connectionstyle": f"arc3,rad={-_BEND}",
        }
        ax.annotate("", (x1, y1), (x0, y0), arrowprops=arrow)
        if label not in (_WAITS, _HELD):
            middle = (x0 + x1 - _BEND * (y1 - y0)) / 2, (y0 + y1 + _BEND * (x1 - x0)) / 2
            paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            ax.text(*middle, label, ha="center", va="center", fontsize=8, color=color, bbox=paper)
    for node, (x, y) in at.items():
        box = {
            "boxstyle": f"{'round' if node in threads else 'square'},pad=0.4",
            "facecolor": plots.LIGHT if node in threads else "white",
            "edgecolor": plots.INK,
        }
        ax.text(x, y, node, ha="center", va="center", fontsize=9, bbox=box)
    ax.set(xlim=(-1.4, 1.4), ylim=(-1.2, 1.2))
    ax.axis("off")


def _orders(graph: LockOrder) -> Iterator[Arrow]:
    cycles = graph.inversions()
    bad = {edge for c in cycles for edge in zip(c, (*c[1:], c[0]), strict=True)}
    for (before, after), lanes in graph.edges.items():
        yield Arrow(before, after, ", ".join(lanes), (before, after) in bad)
