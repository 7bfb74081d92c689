"""Runner and explore without a browser: what a person may do, in every awkward order."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import ipywidgets
import nbformat
import pytest
from ipywidgets.widgets.widget import _instances  # every widget that lives
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from utils.core import explore as module
from utils.core.experiment import Cancelled, Range, checkpoint, experiment, one_at_a_time
from utils.core.explore import explore
from utils.core.plots import Picture, figure
from utils.core.runner import Outcome, Runner

DEADLINE = 30.0
ROOT = Path(__file__).parents[2]


def until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.005)


class Gate:
    """Work that stays inside until it is let out, and remembers who came in."""

    def __init__(self, polite: bool = True) -> None:
        self.entered: list[int] = []
        self.open = threading.Event()
        self.outcomes: list[Outcome[int]] = []
        self.polite = polite
        self.runner: Runner[int] = Runner(self.work, self.outcomes.append)

    def work(self, values) -> int:
        self.entered.append(values["n"])
        end = time.monotonic() + 2 * DEADLINE  # outlives `until`
        while not self.open.wait(0.005) and time.monotonic() < end:
            if self.polite:
                checkpoint()
        return values["n"]

    @property
    def ends(self) -> list[object]:
        return [end.result if end.error is None else type(end.error) for end in self.outcomes]


def test_runner_reports_the_result_and_its_thread_ends():
    gate = Gate()
    gate.open.set()
    gate.runner.request({"n": 1})
    assert gate.runner.wait(DEADLINE)
    assert gate.ends == [1]
    until(lambda: not experiment_threads(), "the thread ends")


@pytest.mark.parametrize("polite", [True, False], ids=["stops when asked", "runs to its end"])
def test_changes_during_a_run_lead_to_one_more_run_with_the_last_values(polite):
    gate = Gate(polite)
    gate.runner.request({"n": 1})
    until(lambda: gate.entered == [1], "the first run")
    for n in range(2, 30):
        gate.runner.request({"n": n}, quiet=0.05)
    if polite:  # nobody lets the first run out: it must have been cancelled
        until(lambda: gate.entered == [1, 29], "the last run")
    gate.open.set()
    assert gate.runner.wait(DEADLINE)
    assert gate.entered == [1, 29]
    assert gate.ends == [29]  # the overtaken run is not reported


def test_the_same_request_during_a_run_changes_nothing():
    gate = Gate()
    gate.runner.request({"n": 1})
    until(lambda: gate.entered, "the run")
    gate.runner.request({"n": 1})
    gate.open.set()
    assert gate.runner.wait(DEADLINE)
    assert gate.entered == [1]


def test_back_to_the_first_value_after_a_change_runs_again():
    gate = Gate()
    gate.runner.request({"n": 1})
    until(lambda: gate.entered, "the run")
    gate.runner.request({"n": 2}, quiet=0.2)
    gate.runner.request({"n": 1}, quiet=0.0)
    gate.open.set()
    assert gate.runner.wait(DEADLINE)
    assert gate.ends == [1]


@pytest.mark.parametrize("polite", [True, False])
def test_a_cancelled_run_never_counts_as_finished(polite):
    gate = Gate(polite)
    gate.runner.request({"n": 1})
    until(lambda: gate.entered, "the run")
    gate.runner.cancel()
    gate.open.set()
    assert gate.runner.wait(DEADLINE)
    assert gate.ends == [Cancelled]


def test_cancel_in_the_quiet_period_starts_nothing():
    gate = Gate()
    gate.runner.request({"n": 1}, quiet=DEADLINE * 10)
    gate.runner.cancel()
    assert gate.runner.wait(DEADLINE)
    assert (gate.entered, gate.ends) == ([], [Cancelled])


def test_a_report_that_fails_does_not_wedge_the_runner(monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    ends: list[object] = []

    def report(outcome: Outcome[int]) -> None:
        ends.append(outcome.result)
        raise RuntimeError("screen gone")

    runner = Runner(lambda values: values["n"], report)
    for n in (1, 2):
        runner.request({"n": n})
        assert runner.wait(DEADLINE)
    assert ends == [1, 2]


def test_a_closed_runner_refuses():
    gate = Gate()
    gate.runner.close()
    with pytest.raises(RuntimeError, match="closed"):
        gate.runner.request({"n": 1})


def test_measurements_of_many_runners_never_overlap():
    inside, most, ran = 0, 0, []
    lock = threading.Lock()

    def work(values):
        nonlocal inside, most
        with one_at_a_time():
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.005)
            with lock:
                inside -= 1
        ran.append(values["n"])

    runners = [Runner(work, lambda _: None) for _ in range(8)]
    for n, runner in enumerate(runners):
        runner.request({"n": n})
    assert all(runner.wait(DEADLINE) for runner in runners)
    assert (sorted(ran), most) == (list(range(8)), 1)


def test_a_queued_run_says_so_and_can_be_cancelled():
    outcomes: list[Outcome[None]] = []
    began = threading.Event()

    def work(values):
        began.set()
        with one_at_a_time():
            pytest.fail("ran in spite of cancel")

    runner = Runner(work, outcomes.append)
    with one_at_a_time():
        runner.request({})
        assert began.wait(DEADLINE)
        until(lambda: runner.control and "waiting" in runner.control.progress.note, "the note")
        runner.cancel()
        assert runner.wait(DEADLINE)
    assert isinstance(outcomes[0].error, Cancelled)


def test_random_orders_of_wishes_settle_on_the_last():
    """Many threads' worth of clicks: whatever the order, the last wish is what is shown."""
    for round_ in range(100):
        gate = Gate()
        gate.open.set()
        for n in range(round_ % 7 + 1):
            gate.runner.request({"n": n})
            if n % 3 == round_ % 3:
                time.sleep(0.0005)
        assert gate.runner.wait(DEADLINE)
        until(lambda gate=gate, n=n: gate.ends and gate.ends[-1] == n, "the last wish")


# --- explore -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    people: int
    mode: str
    share: float
    warm: bool


calls: list[Answer] = []
hold = threading.Event()


@experiment
def ask(
    people: Annotated[int, Range(1, 16, label="people asking")] = 4,
    mode: Literal["threads", "processes"] = "threads",
    share: Annotated[float, Range(0, 1, 0.05)] = 0.5,
    warm: bool = True,
) -> Answer:
    calls.append(Answer(people, mode, share, warm))
    while hold.is_set():
        checkpoint(people, 16, "thinking")
        time.sleep(0.005)
    if people == 13:
        raise ValueError("thirteen is <b>unlucky</b>")
    return calls[-1]


def plot(answer: Answer) -> Picture:
    if answer.people == 14:
        raise ArithmeticError("cannot draw fourteen")
    fig, ax = figure(2, 1)
    ax.bar([0], [answer.people])
    return fig


@pytest.fixture
def shown():
    calls.clear()
    hold.clear()
    exploration = explore(ask, plot)
    yield exploration
    hold.clear()
    exploration.close()
    assert exploration._runner.wait(DEADLINE)


def controls(exploration) -> dict[str, ipywidgets.Widget]:
    return {control.description: control for control in exploration._panel.box.children[0].children}


def experiment_threads() -> list[str]:
    ours = ("experiment", "progress", "core-meter")
    return [thread.name for thread in threading.enumerate() if thread.name in ours]


def settle(exploration) -> None:
    until(lambda: exploration._runner.wait(0.05), "the runs to end")
    until(lambda: not experiment_threads(), "the threads to end")


def test_controls_come_from_the_signature(shown):
    made = {label: type(control).__name__ for label, control in controls(shown).items()}
    assert made == {
        "people asking": "IntSlider",
        "mode": "Dropdown",
        "share": "FloatSlider",
        "warm": "Checkbox",
    }
    slider = controls(shown)["people asking"]
    assert (slider.min, slider.max, slider.value) == (1, 16, 4)


def test_the_default_has_run_when_explore_returns(shown):
    assert shown.result == Answer(4, "threads", 0.5, True)
    settle(shown)


def test_start_values_and_unknown_ones():
    exploration = explore(ask, plot, people=7, mode="processes")
    assert exploration.result == Answer(7, "processes", 0.5, True)
    exploration.close()
    with pytest.raises(TypeError, match="no parameter chairs"):
        explore(ask, plot, chairs=7)
    with pytest.raises(ValueError, match="people=17 is not allowed"):
        explore(ask, plot, people=17)


def test_dragging_runs_once_with_the_last_value(shown, monkeypatch):
    monkeypatch.setattr(module, "_QUIET", 1.0)  # so that a stalled machine is not a pause
    calls.clear()
    slider = controls(shown)["people asking"]
    for people in (5, 6, 7, 8, 9):
        slider.value = people
        time.sleep(0.02)  # a hand is slower than a loop: without quiet each value would run
    settle(shown)
    assert [answer.people for answer in calls] == [9]
    assert shown.result.people == 9


@pytest.mark.parametrize("people", [1, 16])
def test_slider_ends(shown, people):
    controls(shown)["people asking"].value = people
    settle(shown)
    assert shown.result.people == people


def test_run_pressed_twice_starts_one_run(shown):
    calls.clear()
    hold.set()
    shown._panel.run.click()
    until(lambda: calls, "the run")
    shown._panel.run.click()
    hold.clear()
    settle(shown)
    assert len(calls) == 1


def test_cancel_keeps_the_last_result_and_says_so(shown):
    hold.set()
    controls(shown)["people asking"].value = 8
    until(lambda: "8 of 16" in shown._panel._status.value, "progress shown")
    assert shown._panel.run.disabled and not shown._panel.cancel.disabled
    shown._panel.cancel.click()
    settle(shown)
    assert shown.result.people == 4
    assert "cancelled" in shown._panel._status.value
    assert shown._panel.cancel.disabled and not shown._panel.run.disabled


@pytest.mark.parametrize(
    ("people", "kind", "text"),
    [
        (13, ValueError, "ValueError: thirteen is &lt;b&gt;unlucky&lt;/b&gt;"),
        (14, ArithmeticError, "ArithmeticError: cannot draw fourteen"),
    ],
    ids=["experiment", "plot"],
)
def test_an_error_is_shown_in_place_and_goes_away(shown, people, kind, text):
    controls(shown)["people asking"].value = people
    settle(shown)
    assert text in shown._panel._error.value
    assert "<b>" not in shown._panel._error.value
    assert "Traceback" in shown._panel._error.value
    assert shown.result.people == 4
    with pytest.raises(kind):
        shown.run()
    assert shown.run(people=5).people == 5
    assert shown._panel._error.value == ""


def test_progress_moves_without_a_total():
    from utils.core.experiment import Control

    control = Control()
    seen = {module._describe(control, elapsed) for elapsed in (0.1, 0.2, 0.3)}
    assert len(seen) == 3


def test_no_widget_and_no_thread_is_left(shown):
    settle(shown)
    before = set(_instances)
    for _ in range(3):
        explore(ask, plot).close()
    settle(shown)
    assert set(_instances) == before


def test_only_the_last_result_and_no_picture_is_kept(shown):
    pictures: list[weakref.ref[Picture]] = []

    def remember(answer: Answer) -> Picture:
        picture = plot(answer)
        pictures.append(weakref.ref(picture))
        return picture

    exploration = explore(ask, remember)
    first = weakref.ref(exploration.result)
    exploration.run(people=5)
    calls.clear()  # the other place that holds results
    settle(exploration)
    gc.collect()
    assert first() is None
    assert [picture() for picture in pictures] == [None, None]
    exploration.close()


class FakeShell:
    """As much of a kernel's shell as `explore` asks for."""

    def __init__(self) -> None:
        self.cell, self.execution = "a", "1"

    def get_parent(self):
        return {"header": {"msg_id": self.execution}, "metadata": {"cellId": self.cell}}


def test_running_a_cell_again_replaces_only_what_it_showed(monkeypatch):
    shell = FakeShell()
    monkeypatch.setattr(module, "get_ipython", lambda: shell)
    monkeypatch.setattr(module.Exploration, "show", lambda self: None)
    closed = []
    monkeypatch.setattr(module.Exploration, "close", lambda self: closed.append(self))
    a1, a2 = explore(ask, plot), explore(ask, plot)  # two in one execution
    shell.cell, shell.execution = "b", "2"
    b = explore(ask, plot)
    assert closed == []
    shell.cell, shell.execution = "a", "3"
    again = explore(ask, plot)
    assert closed == [a1, a2]
    monkeypatch.undo()
    module._in_cell.clear()
    for exploration in (a1, a2, b, again):
        exploration.close()


NOTEBOOK = """
from tests.core.test_explore import ask, plot
from utils.core.explore import explore
explore(ask, plot, people={people})
"""


def execute(people: int) -> nbformat.NotebookNode:
    cell = nbformat.v4.new_code_cell(NOTEBOOK.format(people=people))
    notebook = nbformat.v4.new_notebook(cells=[cell])
    NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    ).execute()
    return notebook


def test_a_headless_run_holds_the_picture_as_a_plain_output():
    outputs = execute(people=4).cells[0].outputs
    assert [kind for output in outputs for kind in output.data if kind == "image/png"]
    assert all(output.output_type == "display_data" for output in outputs)


def test_a_failing_default_fails_the_cell():
    with pytest.raises(CellExecutionError, match="thirteen"):
        execute(people=13)


def test_the_interpreter_ends_in_the_middle_of_a_run():
    script = (
        "import threading, time\n"
        "from utils.core.experiment import checkpoint\n"
        "from utils.core.runner import Runner\n"
        "began = threading.Event()\n"
        "def work(values):\n"
        "    try:\n"
        "        while True: began.set(); checkpoint(); time.sleep(0.01)\n"
        "    finally: print('cleaned up', flush=True)\n"
        "runner = Runner(work, lambda outcome: None)\n"
        "runner.request({}); began.wait(20)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "cleaned up\n", "")
