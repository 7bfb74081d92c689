"""A life is running, ready and a rest; no more cores are used than there are; nothing is left."""

import threading
import time
from pathlib import Path

import pytest

from utils.core import machine, plots
from utils.core.experiment import Cancelled, Control, controlled
from utils.performance.creation import run_queue
from utils.performance.creation.run_queue import Life, Queue


def check(result: Queue) -> None:
    for threads, lives in result.lives.items():
        assert len(lives) == threads
        longest = max(life.lived for life in lives)
        # Counted by two clocks, a scheduler's tick apart at most.
        assert sum(life.running for life in lives) <= machine.affinity() * longest + 0.02 * threads
        for life in lives:
            assert life.running > 0 and life.ready >= 0
            assert life.running + life.ready <= life.lived + 0.02


def test_every_size_is_run_and_no_life_is_longer_than_itself() -> None:
    before = set(threading.enumerate())
    result = run_queue.compute(threads=5, milliseconds=100)
    assert set(threading.enumerate()) == before
    assert list(result.lives) == [1, 2, 4, 5]
    check(result)
    assert plots.png(run_queue.plot(result)).startswith(b"\x89PNG")


def test_many_threads_stand_in_the_queue() -> None:
    """Conservation: what n threads cannot run at the same time, they wait."""
    threads = 4 * machine.affinity()
    if threads > 16:
        pytest.skip("platform: more cores than the slider has threads for")
    result = run_queue.compute(threads=threads, milliseconds=200)
    assert result.share(threads, "running") <= 0.25 + 0.1


def test_without_schedstat_the_wait_is_derived(monkeypatch) -> None:
    monkeypatch.setattr(run_queue, "_SCHEDSTAT", Path("/nowhere/schedstat"))
    result = run_queue.compute(threads=2, milliseconds=50)
    check(result)
    for lives in result.lives.values():
        for life in lives:
            assert life.ready == pytest.approx(max(0, life.lived - life.running))
            assert life.slices is None
    assert result.slice(2) is None
    texts = [text.get_text() for text in run_queue.plot(result).axes[0].texts]
    assert texts == ["slices: not told"] * 2


@pytest.mark.skipif(not run_queue._SCHEDSTAT.exists(), reason="platform: no scheduler statistics")
def test_the_system_s_count_is_this_thread_s_cpu_time() -> None:
    before, cpu = run_queue._counted(), time.thread_time()
    while time.thread_time() - cpu < 0.05:
        pass
    after = run_queue._counted()
    assert (after[0] - before[0]) / 1e9 == pytest.approx(0.05, abs=0.01)


def test_by_hand() -> None:
    """Two threads of 1 s on one core: each runs for half of it, in four slices."""
    life = Life(0.5, 0.4, 1.0, 4)
    result = Queue(1, {2: (life, life)})
    assert result.share(2, "running") == 0.5 and result.share(2, "ready") == 0.4
    assert result.slice(2) == 0.125
    assert result.expected_ready(2) == 0.5 and Queue(4, {}).expected_ready(2) == 0


def test_a_thread_that_is_told_to_stop_does_not_live_on() -> None:
    stopped = threading.Event()
    stopped.set()
    assert run_queue._live(threading.Barrier(1), 30, stopped).lived < 10


def test_a_cancelled_run_leaves_no_thread() -> None:
    before, control = set(threading.enumerate()), Control()
    threading.Timer(0.1, control.cancel).start()
    with controlled(control), pytest.raises(Cancelled):
        run_queue.compute(milliseconds=1000)
    assert {thread for thread in threading.enumerate() if thread.name.startswith("worker")} == set()
    assert len(set(threading.enumerate()) - before) <= 1  # the timer may be about to end


def test_values_outside_the_sliders_are_refused() -> None:
    with pytest.raises(ValueError, match="threads=17 is not allowed"):
        run_queue.compute(threads=17)
