"""Threads stop because they look, tidy up, and cannot be made to from outside."""

import threading

import pytest

from utils.core import plots
from utils.core.experiment import Cancelled, Control, controlled
from utils.threads.life import cancel


@pytest.mark.parametrize("waits", ["sleep", "event"])
def test_all_stop_and_all_tidy_up(waits) -> None:
    before = set(threading.enumerate())
    result = cancel.ask_to_stop(threads=3, milliseconds=20, waits=waits)
    assert set(threading.enumerate()) == before
    names = {f"thread {number}" for number in (1, 2, 3)}
    assert set(result.cleaned_up) == set(result.trace.select(category="late").lanes) == names
    assert len(result.delays) == 3 and min(result.delays) >= 0
    assert plots.png(cancel.plot(result)).startswith(b"\x89PNG")


def test_no_step_begins_after_the_request() -> None:
    result = cancel.ask_to_stop(threads=4, milliseconds=30)
    asked = result.trace.select(category="late").start
    last = {span.lane: span for span in result.trace.select(category="sleep").spans}
    assert all(span.start <= asked for span in last.values())


def test_an_exception_tidies_up_too() -> None:
    stop, cleanup = threading.Event(), []
    with pytest.raises(ZeroDivisionError):
        cancel.work_until_asked(stop, lambda: 1 // 0, cleanup)
    assert cleanup == [threading.current_thread().name]


def test_a_cancelled_experiment_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    control = Control()
    timer = threading.Timer(0.05, control.cancel)
    timer.start()
    with controlled(control), pytest.raises(Cancelled):
        cancel.ask_to_stop(threads=3, milliseconds=100)
    timer.join(5)
    assert set(threading.enumerate()) == before


def test_an_asynchronous_exception_does_not_interrupt_a_blocking_call() -> None:
    result = cancel.raise_in_blocked_thread(blocked=0.2)
    assert result.raised < result.blocked <= result.noticed


def test_who_hears_of_an_exception() -> None:
    hook = threading.excepthook
    failure = cancel.fail_in_threads()
    assert threading.excepthook is hook
    assert not failure.join_raised
    assert failure.hook_saw == failure.future_raised == "ValueError('the work failed')"


def test_an_interpreter_waits_for_its_threads_but_not_for_daemons() -> None:
    assert cancel.at_exit(daemon=False) == ["main: end", "thread: done", "thread: cleaned up"]
    assert cancel.at_exit(daemon=True) == ["main: end"]
