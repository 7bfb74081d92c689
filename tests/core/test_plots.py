"""A picture shows what is in the trace, in the colours of the course, and is freed after use."""

import gc
import weakref

from matplotlib.colors import to_rgba

from utils.core import plots
from utils.core.trace import Span, Trace

SECOND = 10**9
TRACE = Trace(
    [
        Span("Ada", "prefill", "prompt", 0, SECOND),
        Span("Ada", "decode", "token", SECOND, 2 * SECOND),
        Span("Alan", "queue", "", 0, 3 * SECOND),
    ]
)


def test_a_timeline_has_a_row_a_lane_and_a_bar_a_span_in_its_colour() -> None:
    fig, ax = plots.figure()
    plots.timeline(ax, TRACE, title="two people")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["Ada", "Alan"]
    bars = {
        (round(box.x0, 6), round(box.width, 6), tuple(collection.get_facecolor()[0]))
        for collection in ax.collections
        for box in (path.get_extents() for path in collection.get_paths())
    }
    assert bars == {
        (0, 1, to_rgba(plots.COLORS["prefill"])),
        (1, 1, to_rgba(plots.COLORS["decode"])),
        (0, 3, to_rgba(plots.COLORS["queue"])),
    }
    assert ax.get_xlim() == (0, 3)
    fig.canvas.draw()


def test_an_empty_trace_can_be_drawn() -> None:
    fig, ax = plots.figure()
    plots.timeline(ax, Trace())
    assert plots.png(fig).startswith(b"\x89PNG")


def test_a_picture_shows_itself_without_pyplot_and_dies_with_its_last_reference() -> None:
    fig, ax = plots.figure()
    plots.timeline(ax, TRACE)
    data, metadata = fig._repr_png_()
    assert data.startswith(b"\x89PNG") and metadata["width"] > 0
    gone = weakref.ref(fig)
    del fig, ax
    gc.collect()
    assert gone() is None


def test_every_category_has_a_colour_and_an_unknown_one_stands_out() -> None:
    assert all(to_rgba(color) for color in plots.COLORS.values())
    assert plots.color("no such category") == plots.INK
