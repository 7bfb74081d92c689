"""Both locks get the same visits, and let in whom they may."""

import itertools
import threading

import pytest

from utils.core import plots
from utils.core.experiment import Cancelled, Control, controlled
from utils.core.trace import Span
from utils.performance.synchronisation import readers
from utils.performance.synchronisation.readers import HOLDS, SHARES, table, visit
from utils.threads.primitives.mutex import Mutex


@pytest.mark.parametrize(("reads", "threads"), [(0.0, 3), (0.5, 3), (0.9, 4), (1.0, 1)])
def test_a_writer_is_alone_and_under_a_mutex_everybody_is(reads: float, threads: int) -> None:
    result = visit(reads, hold_ms=0.5, threads=threads)
    inside = {
        kind: [s for s in trace.spans if s.category != "lock"]
        for kind, trace in result.trace.items()
    }
    kinds = {kind: [s.category for s in spans] for kind, spans in inside.items()}
    assert sorted(kinds["Mutex"]) == sorted(kinds["RWLock"]), "the same visits"
    assert kinds["Mutex"].count("decode") == round(reads * len(kinds["Mutex"]))
    assert not overlapping(inside["Mutex"])
    pairs = overlapping(inside["RWLock"])
    assert all(a.category == b.category == "decode" for a, b in pairs)
    assert result.expected == pytest.approx(1 / (1 - reads + reads / threads)) and result.ratio > 0
    assert plots.png(readers.plot(result)).startswith(b"\x89PNG")


def overlapping(spans: list[Span]) -> list[tuple[Span, Span]]:
    return [(a, b) for a, b in itertools.combinations(spans, 2) if b.start < a.end]


def test_readers_are_inside_together() -> None:
    """Two readers that wait for each other inside: under a mutex they would wait forever."""
    meeting = threading.Barrier(2, timeout=10)
    enter, leave = readers._rwlock()[True]

    def read() -> None:
        enter()
        meeting.wait()
        leave()

    both = [threading.Thread(target=read) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(10)
    assert not meeting.broken


def test_the_table_has_a_cell_for_each_hold_and_share() -> None:
    result = table(2)
    assert [len(row) for row in result.ratio] == [len(SHARES)] * len(HOLDS)
    assert all(ratio > 0 for row in result.ratio for ratio in row)
    assert plots.png(readers.plot_table(result)).startswith(b"\x89PNG")


@pytest.mark.parametrize("run", [table, visit])
def test_a_cancelled_run_stops_at_once_and_leaves_no_thread(run, monkeypatch) -> None:
    control, visits = Control(), []

    class Cancelling(Mutex):
        def acquire(self) -> bool:
            visits.append(None)
            if len(visits) == 3:
                control.cancel()
            return super().acquire()

    monkeypatch.setattr(readers, "Mutex", Cancelling)
    with controlled(control), pytest.raises(Cancelled):
        run(threads=1)
    assert len(visits) == 3
    assert not [t for t in threading.enumerate() if t.name.startswith("worker")]


def test_values_outside_the_sliders_are_refused() -> None:
    with pytest.raises(ValueError, match="reads=1.5 is not allowed: give a number from 0 to 1"):
        visit(reads=1.5)
