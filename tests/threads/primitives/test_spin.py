"""Mutual exclusion with and without sleeping, and a machine on which Peterson fails."""

import sys
import threading

import pytest

from utils.core import plots
from utils.threads.life.switching import switch_interval
from utils.threads.primitives import spin, store_buffer
from utils.threads.primitives.spin import Peterson, SpinLock, TurnFirst, WantsOnly, peterson_program


def test_a_spin_lock_loses_no_update() -> None:
    lock, number = SpinLock(), 0

    def add() -> None:
        nonlocal number
        for _ in range(300):
            with lock:
                seen = number
                sum(range(20))
                number = seen + 1

    with switch_interval(1e-4):  # many hand-overs, some of them between the read and the write
        threads = [threading.Thread(target=add) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert number == 900
    assert not lock.locked()


@pytest.mark.parametrize("kind", [SpinLock, threading.Lock])
def test_a_spin_lock_has_the_interface_of_threading_lock(kind) -> None:
    lock = kind()
    assert not lock.locked()
    assert lock.acquire()
    assert lock.locked()
    assert not lock.acquire(blocking=False)
    assert not lock.acquire(timeout=0.01)
    lock.release()
    with pytest.raises(ZeroDivisionError), lock:
        assert lock.locked()
        raise ZeroDivisionError
    assert not lock.locked()
    with pytest.raises(RuntimeError):
        lock.release()
    with pytest.raises(ValueError):
        lock.acquire(blocking=False, timeout=1)
    with pytest.raises(ValueError):
        lock.acquire(timeout=-2)


def test_peterson_loses_no_update() -> None:
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        pytest.skip("platform: needs the order of reads and writes that a GIL gives")
    for _ in range(20):
        peterson_program()


@pytest.mark.parametrize("algorithm", [Peterson, TurnFirst, WantsOnly])
def test_alone_everybody_enters_at_once(algorithm) -> None:
    door = algorithm()
    for me in (0, 1, 0):
        door.acquire(me)
        door.release(me)


def test_peterson_under_each_memory_model() -> None:
    ordered = store_buffer.search(buffered=False)
    assert ordered.safe
    assert store_buffer.search(buffered=True, fenced=True).safe
    broken = store_buffer.search(buffered=True)
    assert not broken.safe
    # Shortest: both announce, both yield, both read; no store has reached memory.
    assert len(broken.steps) == 6
    assert not any("reaches memory" in step for step in broken.steps)
    assert broken.steps[-1].endswith("reads wants0: 0")


@pytest.mark.parametrize("owner", ["sleeps", "computes"])
def test_both_locks_are_measured_and_nobody_is_left(owner) -> None:
    before = set(threading.enumerate())
    result = spin.spin(owner, waiters=2, milliseconds=20)
    assert set(threading.enumerate()) == before
    for kind in ("sleeping lock", "spin lock"):
        assert result.held[kind] >= result.alone
        assert result.burnt[kind] >= 0
        assert set(result.trace[kind].lanes) == {"owner", "waiter 1", "waiter 2"}
        owner_end = result.trace[kind].select(lane="owner").end
        assert all(s.end >= owner_end for s in result.trace[kind].select(category="lock").spans)
    assert result.expected_held >= result.alone
    assert plots.png(spin.plot(result)).startswith(b"\x89PNG")


def test_a_core_sees_its_own_stores_before_memory_does() -> None:
    memory = {"turn": 0, "wants0": 0, "wants1": 0}
    core = store_buffer.Core("whose turn", (("turn", 1),))
    assert list(store_buffer._instruction(0, core, memory, False)) == [
        ("reads turn: 1", "ask", None)
    ]
