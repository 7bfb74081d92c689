"""Every seeded bug is found, with a schedule that shows it again; every correction is proved.

Each program runs as it stands, then with the other library: with this course's primitives where it
says `threading`, and the other way round.
"""

import threading

import pytest

from utils.threads import bugs, classics, schedules
from utils.threads.bugs import Pair
from utils.threads.primitives.condition import Condition
from utils.threads.primitives.deadlock import Deadlock
from utils.threads.primitives.mutex import Mutex
from utils.threads.primitives.rendezvous import Barrier, Event
from utils.threads.primitives.semaphore import Semaphore

PAIRS = (*bugs.PAIRS, *classics.PAIRS)
# A Mutex tries before it waits, which doubles the places to switch: with the other primitives these
# would take up to 10 s each.
LONG = {
    "notify for notify_all",
    "bounded buffer: mutex before semaphore",
    "readers and writers",
    "dining philosophers",
}
SWAPPED = [pair for pair in PAIRS if pair.name not in LONG]


class Ours:
    """Stands for `threading` in a program: this course's primitives, where there is one."""

    Lock, Condition, Semaphore = Mutex, Condition, Semaphore
    Event, Barrier = Event, Barrier

    def __getattr__(self, name: str):
        return getattr(threading, name)


def swap_library(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    names = pair.wrong.__globals__
    if "threading" in names:
        monkeypatch.setitem(names, "threading", Ours())
    for name in {"Condition", "Semaphore"} & set(names):
        monkeypatch.setitem(names, name, getattr(threading, name))


def named(pair: Pair) -> str:
    return pair.name


def found_and_fails_again(pair: Pair) -> None:
    steps = 500  # enough to end; more is a livelock
    report = schedules.check(pair.wrong, preemptions=2, seconds=20, operations=steps)
    found = report.failure
    assert found is not None, report
    # Our Mutex raises where a plain lock would wait for ever.
    named_by_mutex = pair.kind == "deadlock" and isinstance(found.error, Deadlock)
    assert found.kind == pair.kind or named_by_mutex, report
    again = schedules.replay(pair.wrong, found.schedule, operations=steps)
    assert again is not None
    assert again.kind == found.kind
    assert type(again.error) is type(found.error)
    if pair.kind != "livelock":  # that one ends where patience does, give or take a step
        assert again.schedule == found.schedule


@pytest.mark.parametrize("pair", PAIRS, ids=named)
def test_the_wrong_one_is_found_and_fails_again(pair: Pair) -> None:
    found_and_fails_again(pair)


@pytest.mark.parametrize("pair", SWAPPED, ids=named)
def test_the_wrong_one_is_found_with_the_other_primitives(pair: Pair, monkeypatch) -> None:
    swap_library(pair, monkeypatch)
    found_and_fails_again(pair)


@pytest.mark.parametrize("pair", PAIRS, ids=named)
def test_the_right_one_is_proved(pair: Pair) -> None:
    report = schedules.check(pair.right, preemptions=2, seconds=60, random=0)
    assert report.verdict == "proved", report


@pytest.mark.parametrize("pair", SWAPPED, ids=named)
def test_the_right_one_is_proved_with_the_other_primitives(pair: Pair, monkeypatch) -> None:
    swap_library(pair, monkeypatch)
    report = schedules.check(pair.right, preemptions=1, seconds=60, random=0)
    assert report.verdict == "proved", report


@pytest.mark.parametrize("pair", PAIRS, ids=named)
def test_the_right_one_ends_on_real_threads_too(pair: Pair) -> None:
    before = set(threading.enumerate())
    pair.right()
    assert set(threading.enumerate()) <= before


def test_the_suite_covers_every_kind_under_names_of_its_own() -> None:
    assert {pair.kind for pair in bugs.PAIRS} == {
        "assertion",
        "exception",
        "deadlock",
        "livelock",
        "invariant",
    }
    assert len(PAIRS) == len({pair.name for pair in PAIRS}) >= 16
