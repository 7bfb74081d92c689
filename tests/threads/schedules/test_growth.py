"""How many schedules there are."""

import pytest

from utils.core import plots
from utils.threads.schedules import growth


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_bound_tries_no_more_than_there_are_and_more_with_every_preemption(
    threads: int, locked: bool
) -> None:
    result = growth.grow(threads=threads, additions=2, preemptions=3, locked=locked)
    assert result.report.verdict == "proved"
    assert sorted(result.cumulative) == result.cumulative
    # main's own joins add a few schedules in which the threads' steps come in the same order
    assert result.cumulative[0] >= 1
    assert (threads == 1) == (result.interleavings == 1)


def test_the_formula_counts_interleavings() -> None:
    result = growth.grow(threads=2, additions=1, preemptions=0)
    assert (result.steps, result.interleavings) == (2, 6)  # 4! / (2! 2!)


def test_the_picture_says_what_was_tried() -> None:
    result = growth.grow(threads=2, additions=1, preemptions=1)
    picture = growth.plot(result)
    drawn = [text.get_text() for text in picture.axes[0].texts]
    assert drawn == [f"{count:,}" for count in (*result.cumulative, result.interleavings)]
    assert plots.png(picture)
