"""What is reserved is the stack, what is resident is what was touched, and no process is left."""

import signal
import subprocess
import sys

import pytest

from utils.core import plots
from utils.core.experiment import Cancelled, Control, controlled
from utils.performance.creation import memory
from utils.performance.creation.memory import Memory

MIB = 2**20
STACK = 4 * MIB


@pytest.fixture(scope="module")
def waited() -> Memory:
    return memory.wait(threads=40, stack_mib=4, depth=300)


@pytest.mark.skipif(sys.platform == "win32", reason="platform: Windows tells what is committed")
def test_each_thread_reserves_its_stack_and_touches_a_little_of_it(waited: Memory) -> None:
    reserved, resident = waited.each("reserved"), waited.each("resident")
    # Whole stacks, and of other reservations less than another stack for each.
    assert STACK <= reserved < 2 * STACK
    assert 0 < resident < STACK


def test_a_stack_is_committed_on_touch_and_given_back(waited: Memory) -> None:
    resident = [waited.each("resident", step) for step in list(waited.steps)[1:]]
    waiting, after_python, after_c, ended = resident
    assert waiting <= after_python < after_c
    assert after_c - after_python >= waited.depth * 100  # bytes a level, at the very least
    assert ended < after_c / 2


def test_deeper_calls_through_c_touch_more_and_reserve_the_same(waited: Memory) -> None:
    flat = memory.wait(threads=40, stack_mib=4, depth=0)
    assert flat.each("resident", "after C calls") < waited.each("resident", "after C calls") / 2
    if sys.platform != "win32":
        assert flat.each("reserved") == pytest.approx(waited.each("reserved"), rel=0.2)


def test_python_s_objects_are_a_thread_s_smallest_part(waited: Memory) -> None:
    coroutine, task, thread = (waited.objects[kind] for kind in ("coroutine", "task", "thread"))
    assert 0 < coroutine < task < thread < STACK


def test_by_hand() -> None:
    steps = {
        "before": {"reserved": 10, "kernel stack": None},
        "waiting": {"reserved": 50, "kernel stack": None},
    }
    result = Memory(4, 0, steps, {})
    assert result.each("reserved") == 10 and result.each("kernel stack") is None
    assert [memory.size(n) for n in (100, 2048, 8 * MIB, 3 * 2**30)] == [
        "100 bytes",
        "2 KiB",
        "8 MiB",
        "3 GiB",
    ]


def test_the_picture_says_what_is_not_told(waited: Memory) -> None:
    steps = {
        step: {**taken, "reserved": None, "kernel stack": None}
        for step, taken in waited.steps.items()
    }
    fig = memory.plot(Memory(40, 300, steps, waited.objects))
    texts = [text.get_text() for text in fig.axes[0].texts]
    assert texts.count("not told on this system") == 2
    assert plots.png(fig).startswith(b"\x89PNG")
    texts = [text.get_text() for text in memory.plot(waited).axes[0].texts]
    assert memory.size(waited.objects["task"]) in texts


def test_a_cancelled_run_leaves_no_process(monkeypatch) -> None:
    control = Control()
    started = []

    class Noted(subprocess.Popen):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)
            control.cancel()

    monkeypatch.setattr(subprocess, "Popen", Noted)
    with controlled(control), pytest.raises(Cancelled):
        memory.wait()
    (process,) = started
    assert process.returncode == (1 if sys.platform == "win32" else -signal.SIGKILL)


def test_threads_that_cannot_be_had_are_an_error_with_the_reason(monkeypatch, tmp_path) -> None:
    script = tmp_path / "stacks.py"
    script.write_text("raise RuntimeError('cannot start new thread')")
    monkeypatch.setattr(memory, "SCRIPT", script)
    with pytest.raises(RuntimeError, match=r"20 threads of 2 MiB.*cannot start new thread"):
        memory.wait(threads=20, stack_mib=2)


def test_values_outside_the_sliders_are_refused() -> None:
    with pytest.raises(ValueError, match="stack_mib=0 is not allowed"):
        memory.wait(stack_mib=0)
