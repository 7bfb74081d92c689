"""Pictures: one colour per state or category everywhere, and the timeline that draws a trace.

Only matplotlib's object interface is used: `pyplot` keeps a global list of figures, which
leaks in a notebook and is not safe in a thread. A `Picture` shows itself in a notebook and is
freed with its last reference.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from utils.core.trace import Trace

# Okabe & Ito, "Color Universal Design" (2008): told apart with every common colour blindness.
BLUE, SKY, GREEN, YELLOW = "#0072B2", "#56B4E9", "#009E73", "#F0E442"
ORANGE, VERMILION, PURPLE, GREY = "#E69F00", "#D55E00", "#CC79A7", "#999999"
INK, PAPER_GREY, LIGHT = "#222222", "#D9D9D9", "#F2F2F2"

COLORS: Mapping[str, str] = {
    # what a lane is doing
    "compute": BLUE,
    "sleep": SKY,
    "queue": PAPER_GREY,
    "idle": LIGHT,
    "lock": VERMILION,
    "hold": BLUE,
    "communicate": PURPLE,
    "load": YELLOW,
    "late": VERMILION,
    # the states of a thread; "gil" is ready for Python, and blocked for the operating system
    "created": PAPER_GREY,
    "ready": YELLOW,
    "running": BLUE,
    "gil": ORANGE,
    "blocked": VERMILION,
    "terminated": LIGHT,
    # the phases of a request to a language model
    "prefill": ORANGE,
    "decode": GREEN,
    # the actions of a training pipeline
    "forward": BLUE,
    "backward": GREEN,
    "weights": YELLOW,
    # a number's origin
    "guess": PURPLE,
    "theory": GREY,
    "measured": BLUE,
}

_RENDER_DPI, _SHOW_DPI = 150, 92  # rendered finer than shown: sharp on high-density screens


class Picture(Figure):
    """A figure that Jupyter shows as a PNG without pyplot."""

    def _repr_png_(self) -> tuple[bytes, dict[str, Any]]:
        width = round(self.get_figwidth() * _SHOW_DPI)
        return png(self), {"width": width}


def figure(
    width: float = 9, height: float = 3.4, rows: int = 1, cols: int = 1, **grid: Any
) -> tuple[Picture, Any]:
    """A new picture of `width` × `height` inches and its axes, as `pyplot.subplots` gives them."""
    fig = Picture(figsize=(width, height), layout="constrained")
    axes = fig.subplots(rows, cols, **grid)
    for ax in fig.axes:
        style(ax)
    return fig, axes


def style(ax: Axes) -> Axes:
    """The course's look: no box, a faint grid behind the data."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(length=0, labelsize=9)
    ax.title.set_fontsize(11)
    return ax


def png(fig: Figure, dpi: int = _RENDER_DPI) -> bytes:
    """The picture as PNG bytes."""
    buffer = io.BytesIO()
    # Compressing harder takes longer than all the drawing and saves a quarter of the bytes.
    fig.savefig(buffer, format="png", dpi=dpi, facecolor="white", pil_kwargs={"compress_level": 2})
    return buffer.getvalue()


def color(category: str) -> str:
    """The colour of a category; unknown ones are ink, so that they stand out."""
    return COLORS.get(category, INK)


def timeline(
    ax: Axes,
    trace: Trace,
    *,
    lanes: Sequence[str] | None = None,
    title: str = "",
    until: float | None = None,
) -> Axes:
    """Draw `trace` on `ax`: a row per lane, a bar per span, seconds since the first start.

    `lanes` orders (and restricts) the rows; `until` fixes the right end in seconds, so that
    several timelines can share one scale.
    """
    rows = tuple(lanes if lanes is not None else trace.lanes)
    origin = trace.start
    bars: dict[str, dict[str, list[tuple[float, float]]]] = {}  # by category, then by lane
    for span in trace.spans:
        lanes_of = bars.setdefault(span.category, {})
        lanes_of.setdefault(span.lane, []).append(((span.start - origin) / 1e9, span.seconds))
    for category, lanes_of in bars.items():
        for row, lane in enumerate(rows):
            spans = lanes_of.get(lane, [])
            edge = "white" if len(spans) <= 400 else "none"
            ax.broken_barh(
                spans, (row - 0.38, 0.76), facecolor=color(category), edgecolor=edge, linewidth=0.4
            )
    ax.set_yticks(range(len(rows)), rows)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlim(0, until if until is not None else max(trace.duration, 1e-6))
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", color="#E5E5E5", linewidth=0.8)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("seconds", fontsize=9)
    if title:
        ax.set_title(title, loc="left")
    return ax


def heat_map(
    ax: Axes,
    values: Sequence[Sequence[float]],
    texts: Sequence[Sequence[str]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    top: float,
    cmap: str = "Blues",
) -> None:
    """Draw `values` as a table of coloured cells, from white at 0 to full at `top` and above."""
    shades = [[min(value, top) for value in row] for row in values]
    ax.imshow(shades, cmap=cmap, vmin=0, vmax=1.6 * top, aspect="auto")  # text stays readable
    for y, row in enumerate(texts):
        for x, text in enumerate(row):
            ax.text(x, y, text, ha="center", va="center", fontsize=10)
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)


def legend(fig: Figure, categories: Sequence[str], names: Mapping[str, str] | None = None) -> None:
    """One legend below all axes; `names` gives a category a longer text."""
    names = names or {}
    handles = [Patch(color=color(c), label=names.get(c, c)) for c in categories]
    fig.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9
    )
