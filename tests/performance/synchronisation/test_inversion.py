"""On the core's own clock everything is exact: who ran when, and how long high took."""

import itertools
import threading

import pytest

from utils.core import plots
from utils.core.experiment import Cancelled, Control, controlled
from utils.core.trace import Trace
from utils.performance.synchronisation import inversion
from utils.performance.synchronisation.inversion import Core, Task, invert


@pytest.fixture(autouse=True)
def short_slices(monkeypatch) -> None:
    monkeypatch.setattr(inversion, "SLICE", 0.0005)


def slices(trace: Trace) -> list[str]:
    """Who ran, slice after slice; upper case inside the mutex."""
    ran = [span for span in trace.spans if span.category in ("sleep", "hold")]
    assert all(a.end <= b.start for a, b in itertools.pairwise(ran)), "one core"
    return [s.lane[0].upper() if s.category == "hold" else s.lane[0] for s in ran]


def test_slice_by_slice() -> None:
    result = invert(section=4, medium=3)
    assert "".join(slices(result.trace["no inheritance"])) == "lLLhLmmmLHHhl"
    assert "".join(slices(result.trace["inheritance"])) == "lLLhLLHHhmmml"
    assert plots.png(inversion.plot(result)).startswith(b"\x89PNG")


@pytest.mark.parametrize(("section", "medium"), [(4, 1), (6, 20), (12, 30)])
def test_the_response_is_the_formula_s(section: int, medium: int) -> None:
    result = invert(section, medium)
    assert result.response == {kind: result.expected(kind) for kind in result.response}
    assert result.response["inheritance"] == section + 2
    assert result.response["no inheritance"] == section + 2 + medium


def test_inheritance_ends_with_the_mutex() -> None:
    """Low, back at its own priority, lets medium go first."""
    ran = slices(invert(section=6, medium=4).trace["inheritance"])
    assert ran.index("m") > max(at for at, who in enumerate(ran) if who == "L")
    assert ran[-1] == "l"


@pytest.mark.parametrize("inherit", [False, True])
def test_the_most_urgent_of_several_waiters_gets_the_mutex(inherit: bool) -> None:
    inside = ("sleep", "hold", "sleep")
    tasks = [
        Task("a", 1, 0, ("sleep", "hold", "hold", "hold", "hold")),
        Task("b", 2, 2, inside),
        Task("c", 3, 3, inside),
    ]
    ran = "".join(slices(Core(tasks, inherit).run()))
    assert ran == "aAbcAAACcBb" if inherit else ran.index("C") < ran.index("B")
    assert all(task.state == "done" for task in tasks)


def test_a_cancelled_run_stops_soon_and_leaves_no_thread(monkeypatch) -> None:
    control, given_out, reschedule = Control(), [], Core._reschedule

    def cancelling(self: Core) -> None:
        given_out.append(self)
        if len(given_out) == 7:  # high waits for the mutex, low has it, medium runs
            control.cancel()
        reschedule(self)

    monkeypatch.setattr(Core, "_reschedule", cancelling)
    with controlled(control), pytest.raises(Cancelled):
        invert(12, 30)
    assert len(given_out) <= 12, "a slice or two each, to let go"
    assert not [t for t in threading.enumerate() if t.name.startswith("worker")]


def test_values_outside_the_sliders_are_refused() -> None:
    with pytest.raises(ValueError, match="section=3 is not allowed: give a whole number from 4"):
        invert(section=3)
