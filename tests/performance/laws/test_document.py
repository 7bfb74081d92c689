"""The article's numbers, recomputed (errata E23), and why its formula is no speed-up."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.core import plots
from utils.performance.laws import document
from utils.performance.laws.document import as_printed, as_worked, compare
from utils.performance.laws.formulas import amdahl


def test_the_printed_formula_makes_one_thread_faster_than_one_thread() -> None:
    values = [as_printed(n) for n in (1, 2, 4, math.inf)]
    assert values == pytest.approx([1.79984, 1.35718, 1.15803, 1], abs=5e-6)


@given(st.floats(1, 1e6), st.floats(1.01, 100))
def test_with_its_own_numbers_more_threads_are_slower(n: float, factor: float) -> None:
    assert as_printed(n * factor) < as_printed(n)


def test_the_worked_line_is_not_what_it_says_it_is() -> None:
    assert as_worked() == pytest.approx(2.44174, abs=5e-6)
    assert abs(as_worked() - 2.56) > 0.1 and abs(as_printed(4) - 2.56) > 1


def test_only_without_f_does_it_start_at_one() -> None:
    assert as_printed(1, 0, 0.2) == 1
    assert all(as_printed(1, f, 0.2) != pytest.approx(1) for f in (0.1, 0.5, 0.9))


@pytest.mark.parametrize("bad", [(0, 0.7, 0.2), (1, 1, 0.2), (2, -0.1, 0), (2, 0.5, math.nan)])
def test_values_without_a_meaning_are_refused(bad: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match=f"threads={bad[0]}, f={bad[1]}, c={bad[2]}"):
        as_printed(*bad)
    if bad[0] >= 1:
        with pytest.raises(ValueError, match=f"f={bad[1]}"):
            as_worked(*bad[1:])


@pytest.mark.parametrize(("serial", "coherence"), [(0.7, 0.02), (0, 0), (0.95, 0.1)])
def test_the_picture(serial: float, coherence: float) -> None:
    result = compare(serial=serial, coherence=coherence)
    assert result.curves["Amdahl"][3] == pytest.approx(amdahl(4, serial))
    assert plots.png(document.plot(result)).startswith(b"\x89PNG")
