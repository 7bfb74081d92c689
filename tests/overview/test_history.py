"""Section 1.2: the dates are ordered and cited, and the picture is readable at any range."""

from itertools import combinations
from typing import get_args, get_type_hints
from xml.etree import ElementTree

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox

from utils.overview import history as chapter
from utils.overview.history import MILESTONES, TRACKS, Milestone, history, pack, plot, table

RANGES = [(1960, 2026), (1960, 1999), (1990, 2026), (2001, 2012), (2005, 2026), (2022, 2024)]
CASES = [(first, last, "all") for first, last in RANGES] + [(1960, 2026, t) for t in TRACKS]


def when(name: str) -> float:
    return next(m.when for m in MILESTONES if m.name == name)


def drawn(first: int, last: int, track: str) -> tuple[FigureCanvasAgg, list[tuple[str, Bbox]]]:
    """The canvas and the box, in pixels, of every text on it (tick labels too)."""
    fig = plot(history(first, last, track))
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    (ax,) = fig.axes
    # matplotlib keeps a tick beyond each end of the axis, which it does not draw
    ticks = [t for t in ax.get_xticklabels() if first <= int(t.get_text()) <= last + 1]
    texts = [*ax.texts, *ticks]
    return canvas, [(t.get_text(), t.get_window_extent()) for t in texts]


def test_threads_came_before_multi_core_chips():
    order = ["semaphores", "POSIX threads", "OpenMP", "IBM POWER4", "dual-core PCs"]
    assert [when(name) for name in order] == sorted(when(name) for name in order)


def test_milestones_are_sorted_unique_and_cited():
    assert list(MILESTONES) == sorted(MILESTONES, key=lambda m: m.when)
    assert len({m.name for m in MILESTONES}) == len(MILESTONES)
    for m in MILESTONES:
        assert m.track in TRACKS
        assert m.month is None or 1 <= m.month <= 12
        assert m.source and m.url.startswith("https://"), m.name
        assert m.change.endswith(".") and len(m.change.split()) <= 20, m.name


def test_an_arxiv_number_gives_the_date_except_where_the_paper_came_later():
    for m in MILESTONES:
        if "arxiv.org" in m.url:
            number = m.url.rsplit("/", 1)[1]
            year, month = 2000 + int(number[:2]), int(number[2:4])
            assert (m.year, m.month) == (year, month) or m.name == "TPU", m.name


def test_the_choices_of_track_are_the_lanes():
    hints = get_type_hints(history, include_extras=True)
    assert get_args(hints["track"]) == ("all", *TRACKS)


def test_both_years_are_included():
    result = history(1995, 1997)
    assert [m.name for m in result.milestones] == ["POSIX threads", "OpenMP"]


@pytest.mark.parametrize("track", TRACKS)
def test_a_track_selects_its_milestones(track):
    assert history(track=track).milestones == tuple(m for m in MILESTONES if m.track == track)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [((2000, 1990), "first=2000"), ((1959, 2026), "first=1959"), ((1960, 2026, "art"), "'art'")],
)
def test_a_wrong_argument_is_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        history(*arguments)


@pytest.mark.parametrize(("first", "last", "track"), CASES)
def test_every_label_is_drawn_inside_the_picture_and_none_overlaps(first, last, track):
    canvas, boxes = drawn(first, last, track)
    names = {text.rpartition("  ")[0] for text, _ in boxes}
    assert {m.name for m in history(first, last, track).milestones} <= names
    width, height = canvas.get_width_height()
    for text, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text
    for (text, box), (other, other_box) in combinations(boxes, 2):
        assert not box.overlaps(other_box), (text, other)


@pytest.mark.parametrize("first", range(1960, 2027, 6))
def test_no_start_year_makes_labels_overlap(first):
    _, boxes = drawn(first, 2026, "all")
    for (text, box), (other, other_box) in combinations(boxes, 2):
        assert not box.overlaps(other_box), (text, other)


def test_text_stays_on_its_side_of_the_line_and_inside_the_axis():
    room = chapter.AXIS
    (before, after, last) = pack([3.5, 4.5, room - 0.1], [1.0, 1.0, 1.0], line=4.0)
    assert (before.right, after.right, last.right) == (False, True, False)


def test_no_label_is_drawn_wider_than_the_room_it_was_given():
    canvas, boxes = drawn(1960, 2026, "all")
    labels = [(text, box) for text, box in boxes if "  " in text]
    assert len(labels) == len(MILESTONES)
    for text, box in labels:
        assert box.width / canvas.figure.dpi <= chapter.text_width(text) + 0.02, text


def test_labels_share_a_row_only_if_both_fit():
    assert [place.row for place in pack([1.0, 1.5, 4.0], [1.0, 1.0, 1.0])] == [0, 1, 0]


def test_years_without_milestones_say_so():
    _, boxes = drawn(1980, 1985, "all")
    assert sum(text == "nothing in these years" for text, _ in boxes) == len(TRACKS)


def test_the_table_links_every_source_and_escapes_its_text(monkeypatch):
    nasty = Milestone(2000, None, "hardware", "<b>&", 'a "<i>".', "<source>", "https://a/?b=1&c=2")
    monkeypatch.setattr(chapter, "MILESTONES", (*MILESTONES, nasty))
    root = ElementTree.fromstring(table(history()))  # refuses anything left unescaped
    assert [a.get("href") for a in root.iter("a")] == [m.url for m in chapter.MILESTONES]
    assert root.find("tbody/tr[last()]/td/b").text == nasty.name
