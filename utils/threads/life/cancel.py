"""How a thread ends: by itself, by an exception, because it was asked to; never by being killed.

A killed thread would leave its locks held and its data half written. Python has no way to do it.
Java had `Thread.stop` and withdrew it ("Java Thread Primitive Deprecation", Oracle); Windows has
`TerminateThread` and warns of it; pthread_cancel(3) by default waits for the thread to reach a
cancellation point. What works is a flag that the thread looks at where stopping is safe: it stays
in charge of its cleanup. The price is the delay until it looks, which is the thread's choice.
"""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Literal

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.core.trace import Recorder, Trace, now

DEADLINE = 10.0  # seconds for anything that blocks
_ASK_AFTER = 0.1  # seconds


def work_until_asked(stop: threading.Event, step: Callable[[], None], cleanup: list[str]) -> None:
    """The pattern: look at `stop` between steps, and tidy up whichever way you leave."""
    try:
        while not stop.is_set():
            step()
    finally:
        cleanup.append(threading.current_thread().name)


@dataclass(frozen=True)
class Stopped:
    """`trace` has each thread's steps, and in red from the request to the thread's end."""

    step: float  # seconds
    waits: Literal["sleep", "event"]
    cleaned_up: tuple[str, ...]
    trace: Trace

    @property
    def delays(self) -> list[float]:
        """Seconds from the request to each thread's end."""
        return [span.seconds for span in self.trace.select(category="late").spans]


@experiment
def ask_to_stop(
    threads: Annotated[int, Range(1, 8)] = 4,
    milliseconds: Annotated[int, Range(5, 200, 5, label="one step [ms]")] = 60,
    waits: Literal["sleep", "event"] = "sleep",
) -> Stopped:
    """Ask `threads` threads to stop in the middle of their work.

    A step is a wait of that length. `sleep` can't be woken; an `event` is the request itself.
    """
    recorder, stop, cleanup = Recorder(), threading.Event(), list[str]()
    seconds = milliseconds / 1e3
    ended: dict[str, int] = {}

    def step() -> None:
        with recorder.span("sleep"):
            if waits == "sleep":
                time.sleep(seconds)
            else:
                stop.wait(seconds)

    def run(offset: float) -> None:
        time.sleep(offset)  # so that the request finds everybody elsewhere in a step
        work_until_asked(stop, step, cleanup)
        ended[threading.current_thread().name] = now()

    crew = [
        threading.Thread(target=run, name=f"thread {n + 1}", args=(n * seconds / threads,))
        for n in range(threads)
    ]
    try:
        for thread in crew:
            thread.start()
        time.sleep(seconds + _ASK_AFTER)
        checkpoint(1, 2, "asking")
    finally:
        asked = now()
        stop.set()
        for thread in crew:
            if thread.ident is not None:
                thread.join(DEADLINE)
    for name, at in ended.items():
        recorder.add(name, "late", "asked, not stopped yet", asked, max(asked, at))
    return Stopped(seconds, waits, tuple(cleanup), recorder.trace())


def plot(result: Stopped) -> plots.Picture:
    """Steps, the request (line), and how long each thread took to notice (red)."""
    late = result.trace.select(category="late")
    lanes = sorted(late.lanes)
    fig, ax = plots.figure(9, 1.4 + 0.33 * len(lanes))
    mean = 1e3 * sum(result.delays) / len(lanes)
    title = f"steps of {1e3 * result.step:g} ms; stopped {mean:.1f} ms after the request on average"
    plots.timeline(ax, result.trace, lanes=lanes, title=title)
    ax.axvline((late.start - result.trace.start) / 1e9, color=plots.INK, linewidth=1)
    plots.legend(fig, ["sleep", "late"], {"sleep": "a step", "late": "asked, not stopped yet"})
    return fig


class _Interrupt(Exception):
    pass


@dataclass(frozen=True)
class NotAKill:
    """Seconds since the thread began to block: when it was told to stop, and when it noticed."""

    blocked: float
    raised: float
    noticed: float


def raise_in_blocked_thread(blocked: float = 0.3) -> NotAKill:
    """Use CPython's `PyThreadState_SetAsyncExc` on a thread that sleeps for `blocked` seconds.

    It raises an exception in another thread, but only between that thread's bytecodes: a call that
    blocks must return first. So it is no kill, and as it may strike anywhere, also within a
    `finally`, it is no way to stop a thread either.
    """
    times: dict[str, float] = {}

    def block() -> None:
        with contextlib.suppress(_Interrupt):
            time.sleep(blocked)
            while time.monotonic() < start + DEADLINE:  # it strikes here, not in the sleep
                pass
        times["noticed"] = time.monotonic()

    thread = threading.Thread(target=block)
    start = time.monotonic()
    thread.start()
    time.sleep(blocked / 4)
    raised = time.monotonic()
    ident = ctypes.c_ulong(thread.ident or 0)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(_Interrupt))
    thread.join(DEADLINE)
    return NotAKill(blocked, raised - start, times["noticed"] - start)


@dataclass(frozen=True)
class Failure:
    """Where an exception of a thread was seen, and where not."""

    join_raised: bool
    hook_saw: str
    future_raised: str


def fail() -> None:
    """What a failing thread does."""
    raise ValueError("the work failed")


def fail_in_threads() -> Failure:
    """Let `fail` run in a plain thread and in a pool, and report who hears of it."""
    seen: list[str] = []
    before = threading.excepthook
    threading.excepthook = lambda args: seen.append(repr(args.exc_value))
    try:
        thread = threading.Thread(target=fail)
        thread.start()
        try:
            thread.join(DEADLINE)
            join_raised = False
        except ValueError:
            join_raised = True
    finally:
        threading.excepthook = before
    with ThreadPoolExecutor(1) as pool:
        error = pool.submit(fail).exception(timeout=DEADLINE)
    return Failure(join_raised, ", ".join(seen), repr(error))


AT_EXIT = """
import threading, time

def work():
    try:
        time.sleep(0.2)
        print("thread: done")
    finally:
        print("thread: cleaned up")

threading.Thread(target=work, daemon={daemon}).start()
print("main: end", flush=True)
"""


def at_exit(daemon: bool) -> list[str]:
    """What a program prints whose main thread ends first. It runs in an interpreter of its own."""
    program = AT_EXIT.format(daemon=daemon)
    done = subprocess.run(
        [sys.executable, "-I", "-c", program],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=True,
    )
    return done.stdout.splitlines()
