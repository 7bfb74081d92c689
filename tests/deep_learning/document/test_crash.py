"""Whatever an unsafe process does, we survive it and can tell how it ended."""

import signal
import sys
import threading

import psutil
import pytest

from utils.core.experiment import Cancelled, Control, controlled
from utils.deep_learning.document import crash
from utils.deep_learning.document.crash import Trial, ending, plot, tally, trial
from utils.deep_learning.document.program import UNSAFE, Settings

try:
    from multiprocessing import resource_tracker
except ImportError:  # Windows has none
    resource_tracker = None

LIVED = Trial("zeroed in place", 1, applied=(1, 0, 2, 1, 0.5), errors=("a", "b"), accuracy=0.1)
DIED = Trial("import mended", 1, crash="SIGSEGV in zero_grad")
REPORT = """Fatal Python error: Segmentation fault

Thread 0x00007f2e45efa6c0 (most recent call first):
  File "/somewhere/threading.py", line 320 in wait
Current thread 0x00007f2e45efa6c1 (most recent call first):
  File "/somewhere/optimizer.py", line 1104 in zero_grad
  File "/somewhere/program.py", line 10 in shared_step
"""


def children() -> list[psutil.Process]:
    """Ours, without the one that `multiprocessing` keeps when it has made shared memory."""
    tracker = resource_tracker._resource_tracker._pid if resource_tracker else None
    return [one for one in psutil.Process().children(recursive=True) if one.pid != tracker]


def test_batches_are_counted_by_how_often_they_were_applied() -> None:
    assert LIVED.counts == {"once": 2, "never": 1, "otherwise": 2}
    assert DIED.counts == {"once": 0, "never": 0, "otherwise": 0}


def test_an_ending_says_how_and_where() -> None:
    assert ending(0, REPORT) == ""
    assert ending(1, "") == "exit code 0x1"
    assert ending(0xC0000374, "") == "exit code 0xc0000374"  # Windows: a corrupt heap
    assert ending(-99, "") == "signal 99"
    if hasattr(signal, "SIGKILL"):
        assert ending(-signal.SIGSEGV, REPORT) == "SIGSEGV in zero_grad"


def test_one_trial_for_real() -> None:
    """What happens is not certain; that it is told is."""
    trials = trial(7, Settings(samples=200, batch=10, workers=2, inside=1))
    assert [one.variant for one in trials] == list(UNSAFE)[: len(trials)] or len(trials) == 4
    first = trials[0]
    assert first.process == 7 and not first.crash
    assert len(first.errors) == 20 and first.counts["never"] == 20  # as printed: nothing works
    for one in trials:
        assert one.crash or len(one.applied) == 20
    assert trials[-1].crash or len(trials) == len(UNSAFE)
    assert not children()
    plot(trials)


def python(code: str, monkeypatch) -> None:
    """Let the next process run `code` instead."""
    popen = crash.subprocess.Popen
    run = lambda command, **how: popen([*command[:3], "-c", code], **how)  # noqa: E731
    monkeypatch.setattr(crash.subprocess, "Popen", run)


SAID = """print('{"variant": "as printed", "applied": [0], "errors": ["E"], "accuracy": 0.1}');"""


def test_a_crash_keeps_what_was_said_before_it(monkeypatch) -> None:
    python(f"import os; {SAID} print('half a li', end='', flush=True); os.abort()", monkeypatch)
    first, second = trial(1, Settings())
    assert first == Trial("as printed", 1, applied=[0], errors=["E"], accuracy=0.1)
    assert second.variant == UNSAFE[1]
    if sys.platform != "win32":
        assert second.crash.startswith("SIGABRT")


def test_a_process_that_hangs_is_killed_and_counts(monkeypatch) -> None:
    monkeypatch.setattr(crash, "DEADLINE", 0.3)
    python("import time; time.sleep(60)", monkeypatch)
    (only,) = trial(1, Settings())
    assert (only.variant, only.crash) == (UNSAFE[0], "killed after 0 s")
    assert not children()


def test_a_crash_after_the_last_variant_is_one_at_exit(monkeypatch) -> None:
    python(SAID * 3 + "raise SystemExit(3)", monkeypatch)
    trials = trial(1, Settings())
    assert len(trials) == 4 and trials[-1].variant == "exit"
    assert trials[-1].crash == "exit code 0x3"
    plot(trials)


def test_cancel_kills_the_processes(monkeypatch) -> None:
    python("import time; time.sleep(600)", monkeypatch)  # longer than a test may take
    threads, control = set(threading.enumerate()), Control()
    threading.Timer(0.5, control.cancel).start()
    with controlled(control), pytest.raises(Cancelled):
        tally(processes=3)
    assert not children() and set(threading.enumerate()) == threads


def test_bad_input_is_refused_at_the_call() -> None:
    with pytest.raises(ValueError, match="processes=0 is not allowed: give a whole number"):
        tally(processes=0)
