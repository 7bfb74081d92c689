"""What is counted is counted by thread and by cause; the byte is never lost; nothing is left."""

import os
import threading
import time

import pytest

from utils.core import plots
from utils.core.experiment import Cancelled, Control, controlled
from utils.performance.creation import switches
from utils.performance.creation.switches import ALONE, PASSING, TASKS, Kind, Part, Switching

counts = pytest.mark.skipif(not switches.COUNTED, reason="platform: not counted by thread here")


def descriptors() -> int:
    return len(os.listdir("/dev/fd"))


def test_every_kind_does_its_rounds_and_leaves_nothing() -> None:
    before, files = set(threading.enumerate()), descriptors()
    result = switches.count(milliseconds=80)
    assert set(threading.enumerate()) == before and descriptors() == files
    assert {PASSING, ALONE, TASKS} < set(result.kinds) and result.hand_over
    assert all(kind.total("rounds") > 0 and kind.each > 0 for kind in result.kinds.values())
    assert plots.png(switches.plot(result)).startswith(b"\x89PNG")


@counts
def test_who_waits_leaves_of_its_own_accord() -> None:
    """Each sleep is a switch, and so is each byte that has to be waited for."""
    kinds = switches.count(milliseconds=200).kinds
    sleeps = kinds["one sleeps 1 ms at a time"]
    assert sleeps.total("voluntary") >= 0.8 * sleeps.total("rounds")
    passing = kinds[PASSING]
    if switches.CAN_PIN:  # on one core nobody gets the byte while the other is still there
        assert sum(map(passing.total, switches.WAYS)) >= 0.9 * passing.total("rounds")
    for name in (ALONE, TASKS):
        assert kinds[name].total("voluntary") < kinds[name].total("rounds") / 20


@counts
def test_switches_are_those_of_the_thread_that_asks() -> None:
    sleeper = threading.Thread(target=lambda: [time.sleep(0.001) for _ in range(100)])
    before = switches._switches()
    sleeper.start()
    sleeper.join(10)
    assert switches._switches()[0] - before[0] < 50


@pytest.mark.skipif(not switches.CAN_PIN, reason="platform: threads cannot be pinned here")
@pytest.mark.parametrize("one_core", [True, False])
def test_one_core_means_one(monkeypatch, one_core: bool) -> None:
    seen: set[int] = set()

    def look() -> tuple[int, int]:
        seen.add(len(os.sched_getaffinity(0)))
        return 0, 0

    monkeypatch.setattr(switches, "_switches", look)
    switches.count(milliseconds=40, one_core=one_core)
    assert seen == ({1} if one_core else {len(os.sched_getaffinity(0))})


def test_every_byte_is_answered() -> None:
    """A round is a byte that came and was answered: the two have as many, or one apart."""
    with switches._pipe() as there, switches._pipe() as back:
        works = switches._works(there, back)[PASSING]
        rounds, end = [0, 0], time.perf_counter() + 0.05

        def play(player: int) -> None:
            rounds[player] = works[player](end)

        threads = [threading.Thread(target=play, args=(n,)) for n in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
    assert rounds[0] > 0 and abs(rounds[0] - rounds[1]) <= 1


def test_the_hand_over_by_hand() -> None:
    """Two threads, 10 rounds in 1 s; less 10 in 0.4 s. 6 switches in 2 s of life."""
    passing = Kind(2, (Part(7, 1.2, 1, 2), Part(3, 0.8, 3, 0)))
    alone = Kind(1, (Part(5, 0.3, 0, 0), Part(5, 0.1, 0, 0)))
    result = Switching(True, True, {PASSING: passing, ALONE: alone})
    assert passing.each == pytest.approx(0.1) and alone.each == pytest.approx(0.04)
    assert result.hand_over == pytest.approx(0.06) and passing.rate == pytest.approx(3)


def test_where_nobody_counts_the_picture_says_so(monkeypatch) -> None:
    monkeypatch.setattr(switches, "COUNTED", False)
    result = switches.count(milliseconds=40)
    assert not result.counted and all(kind.rate == 0 for kind in result.kinds.values())
    texts = [text.get_text() for text in switches.plot(result).axes[0].texts]
    assert texts.count("not counted here") == len(result.kinds)


def test_a_failing_partner_lets_the_other_go(monkeypatch) -> None:
    """The other's read would wait forever."""
    read = os.read

    def second_fails(descriptor: int, count: int) -> bytes:
        if threading.current_thread().name == "worker 2":
            raise OSError("gone")
        return read(descriptor, count)

    monkeypatch.setattr(os, "read", second_fails)
    before, files = set(threading.enumerate()), descriptors()
    with pytest.raises(OSError, match="gone"):
        switches.count(milliseconds=40)
    assert set(threading.enumerate()) == before and descriptors() == files


def test_a_cancelled_run_leaves_no_thread_and_no_pin() -> None:
    class Late(Control):
        """Cancelled in the middle: at the third look."""

        looks = 0

        @property
        def cancelled(self) -> bool:
            self.looks += 1
            return self.looks > 3

    before, files = set(threading.enumerate()), descriptors()
    cores = os.sched_getaffinity(0) if switches.CAN_PIN else None
    with controlled(Late()), pytest.raises(Cancelled):
        switches.count()
    assert set(threading.enumerate()) == before and descriptors() == files
    assert cores is None or os.sched_getaffinity(0) == cores


def test_values_outside_the_sliders_are_refused() -> None:
    with pytest.raises(ValueError, match="milliseconds=0 is not allowed"):
        switches.count(milliseconds=0)
