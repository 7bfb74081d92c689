"""The states of a thread: in order, without gaps, and those that the system reports."""

import subprocess
import sys
import threading
import time
from typing import get_args

import pytest

from utils.core import machine, plots
from utils.core.experiment import Cancelled, Control, controlled
from utils.core.trace import Span, Trace
from utils.threads.life import lifecycle, observer, waiting
from utils.threads.life.lifecycle import STATES, Life, Work, live
from utils.threads.life.observer import Sample

MS = 10**6
linux = pytest.mark.skipif(not observer.available(), reason="platform: /proc/<pid>/task is Linux's")


@pytest.mark.parametrize("work", get_args(Work))
def test_each_life_goes_from_created_to_terminated_without_gaps(work: Work) -> None:
    before = set(threading.enumerate())
    result = live(work, threads=2, milliseconds=30)
    assert set(threading.enumerate()) == before
    assert result.trace.lanes == ("thread 1", "thread 2")
    for lane in result.trace.lanes:
        spans = result.trace.select(lane=lane).spans
        assert {span.category for span in spans} <= set(STATES)
        assert [span.category for span in spans[:2]] == ["created", "ready"]
        assert spans[-1].category == "terminated"
        assert "running" in {span.category for span in spans}
        assert all(a.end == b.start for a, b in zip(spans, spans[1:], strict=False))
        inner = {span.category for span in spans[2:-1]}
        assert not inner & {"created", "terminated"}
    waits = {span.name for span in result.trace.select(category="blocked").spans}
    if work == "sleep":
        assert waits == {"sleep"}
    assert plots.png(lifecycle.plot(result)).startswith(b"\x89PNG")


def seen(state: str, **arguments) -> list[Span]:
    """Spans in `state` of a run; a starved machine, whose threads never met, may try again."""
    for _ in range(3):
        spans = live(threads=3, milliseconds=100, **arguments).trace.select(category=state).spans
        if spans:
            return list(spans)
    return []


@linux
def test_on_one_core_computing_threads_wait_for_it() -> None:
    assert seen("ready", work="hash", one_core=True)[3:]  # more than the three starts


@linux
@pytest.mark.skipif(not machine.gil(), reason="platform: this Python has no GIL")
def test_python_code_waits_for_the_gil() -> None:
    assert seen("gil", work="python")


def test_a_lock_is_waited_for_by_name() -> None:
    assert "lock" in {span.name for span in seen("blocked", work="lock")}


def test_states_by_hand_from_the_systems_samples() -> None:
    """Ran 0 to 10, waited for a core 10 to 14, slept 20 to 30, waited for the GIL from 34."""
    life = Life("t", created=-20 * MS, started=-10 * MS, first=0, last=40 * MS, native_id=7)
    steps = Trace(
        [
            Span("t", "hash", "", 0, 20 * MS),
            Span("t", "sleep", "", 20 * MS, 30 * MS),
            Span("t", "compute", "", 30 * MS, 40 * MS),
        ]
    )
    samples = [
        Sample(7, 2 * MS, "R", 2 * MS, 0),
        Sample(8, 2 * MS, "S", 0, 0),  # somebody else
        Sample(7, 9 * MS, "R", 9 * MS, 0),
        Sample(7, 12 * MS, "R", 10 * MS, 0),
        Sample(7, 16 * MS, "R", 12 * MS, 4 * MS),
        Sample(7, 22 * MS, "S", 16 * MS, 4 * MS),
        Sample(7, 31 * MS, "R", 17 * MS, 4 * MS),
        Sample(7, 35 * MS, "S", 20 * MS, 4 * MS),
    ]
    spans = lifecycle._states(life, steps, samples, until=50 * MS)
    waiting_for_gil = "gil" if machine.gil() else "blocked"
    assert [(s.category, s.name, s.start // MS, s.end // MS) for s in spans] == [
        ("created", "created", -20, -10),
        ("ready", "ready", -10, 0),
        ("running", "running", 0, 12),
        ("ready", "ready", 12, 16),
        ("running", "running", 16, 22),
        ("blocked", "sleep", 22, 31),
        ("running", "running", 31, 35),
        (waiting_for_gil, waiting_for_gil, 35, 40),
        ("terminated", "terminated", 40, 50),
    ]


def test_without_the_system_the_steps_alone_are_drawn(monkeypatch) -> None:
    monkeypatch.setattr(observer, "available", lambda: False)
    result = live("sleep", threads=1, milliseconds=30)
    assert not result.asked
    states = [span.category for span in result.trace.spans]
    assert states == ["created", "ready", "running", "blocked", "running", "terminated"]


def test_a_thread_that_fails_fails_the_experiment(monkeypatch) -> None:
    monkeypatch.setattr(lifecycle, "_spend", lambda *args: 1 // 0)
    before = set(threading.enumerate())
    with pytest.raises(ZeroDivisionError):
        live("hash", threads=2)
    assert set(threading.enumerate()) == before


def test_a_cancelled_run_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    control = Control()
    timer = threading.Timer(0.3, control.cancel)
    timer.start()
    with controlled(control), pytest.raises(Cancelled):
        live("python", threads=6, milliseconds=200)
    timer.join(5)
    assert set(threading.enumerate()) == before


@linux
def test_the_observer_sees_a_sleeper_and_ends_with_the_block() -> None:
    with observer.watching() as watch:
        watch.add(threading.get_native_id())
        watch.add(2**30)  # there is no such thread
        time.sleep(0.1)
    mine = [s for s in watch.samples if s.thread == threading.get_native_id()]
    assert "S" in {sample.letter for sample in mine}
    assert {sample.thread for sample in watch.samples} == {threading.get_native_id()}
    assert watch._process.returncode == 0
    with pytest.raises(ZeroDivisionError), observer.watching() as watch:
        raise ZeroDivisionError
    assert watch._process.returncode is not None


@linux
def test_the_observer_dies_with_the_observed() -> None:
    observed = subprocess.run(
        [sys.executable, observer.__file__, "1"], stdin=subprocess.DEVNULL, timeout=20
    )
    assert observed.returncode == 0


def test_what_blocked_threads_wait_for() -> None:
    before = set(threading.enumerate())
    with waiting.waiting_room() as threads:
        waits = {thread.name: waiting.look(thread) for thread in threads}
    assert set(threading.enumerate()) == before
    calls = {"sleep": "sleep", "lock": "acquire", "pipe": "os.read", "socket": "recv"}
    for name, call in calls.items():
        assert call in waits[name].line
    if observer.available():
        assert {wait.letter for wait in waits.values()} == {"S"}
    with pytest.raises(ValueError, match="thread='sleep' is not alive"):
        waiting.look(threads[0])
