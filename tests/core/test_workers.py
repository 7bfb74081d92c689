"""Crews are there before the clock starts, and gone after, whatever happens."""

import multiprocessing
import os
import sys
import threading
import time

import pytest

from utils.core import workers
from utils.core.experiment import Cancelled, Control, controlled
from utils.core.workers import crew, lanes, process_crew, run_child


def test_a_crew_is_there_and_has_names() -> None:
    before = threading.active_count()
    with crew(3, "hand") as pool:
        assert threading.active_count() == before + 3
        names = {pool.submit(lambda: threading.current_thread().name).result(10) for _ in range(30)}
        assert names <= set(lanes(3, "hand"))
    assert threading.active_count() == before


def test_every_process_has_prepared(tmp_path) -> None:
    with process_crew(2, os.chdir, tmp_path) as pool:
        assert len(multiprocessing.active_children()) == 2
        folders = {future.result(20) for future in [pool.submit(os.getcwd) for _ in range(8)]}
        assert folders == {str(tmp_path)}
    assert multiprocessing.active_children() == []


@pytest.mark.timeout(60)
def test_a_process_that_cannot_prepare_is_reported() -> None:
    with (
        pytest.raises(Exception, match="terminated abruptly|not usable"),
        process_crew(2, sys.exit),
    ):
        pytest.fail("no process is ready")
    assert multiprocessing.active_children() == []


@pytest.mark.timeout(60)
def test_nobody_waits_for_a_process_that_hangs(monkeypatch) -> None:
    monkeypatch.setattr(workers, "READY_WITHIN", 2)
    with pytest.raises(TimeoutError, match="0 of 1 processes"), process_crew(1, time.sleep, 600):
        pytest.fail("it sleeps")
    assert multiprocessing.active_children() == []


@pytest.mark.timeout(60)
def test_an_error_ends_the_processes_in_the_middle_of_a_task() -> None:
    with pytest.raises(KeyError), process_crew(1, int) as pool:
        pool.submit(time.sleep, 600)
        raise KeyError
    assert multiprocessing.active_children() == []


def test_a_child_s_words_and_errors() -> None:
    assert run_child([sys.executable, "-c", "print(6 * 7)"], os.environ, 60) == "42\n"
    with pytest.raises(RuntimeError, match="^ValueError: no$"):
        run_child([sys.executable, "-c", "raise ValueError('no')"], os.environ, 60)
    with pytest.raises(RuntimeError, match="exit code 3"):
        run_child([sys.executable, "-c", "raise SystemExit(3)"], os.environ, 60)


@pytest.mark.timeout(60)
def test_a_child_is_killed_in_time_or_when_cancelled() -> None:
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    with pytest.raises(TimeoutError, match="over 0.2 s"):
        run_child(sleeper, os.environ, 0.2)
    control = Control()
    threading.Timer(0.2, control.cancel).start()
    with controlled(control), pytest.raises(Cancelled):
        run_child(sleeper, os.environ, 300)
