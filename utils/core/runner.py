"""Run a slow function for an impatient person: one run at a time, and the last wish counts.

A slider that is dragged asks for twenty runs and means the last. `Runner` turns such wishes into
runs: a new one cancels the run in progress, replaces one that has not begun, and never starts a
second thread. It knows no widget; `explore` is its user, and `experiment.one_at_a_time` keeps the
runs of several users apart.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from utils.core.experiment import Cancelled, Control, controlled

T = TypeVar("T")
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """How a run ended: a `result`, or an `error` (`Cancelled` among them)."""

    result: T | None = None
    error: BaseException | None = None


@dataclass(frozen=True)
class _Job:
    values: dict[str, Any]
    control: Control = field(default_factory=Control)


class Runner(Generic[T]):
    """Calls `work(values)` in a thread of its own and hands the outcome to `report` there.

    Invariants, each kept by changing the state only while holding `_changed`:
    - at most one thread exists, it exists while there is a job, and it ends with the last one;
    - `_wanted` is the last job asked for and not begun; older ones are overwritten, never run;
    - when a job waits in `_wanted`, the one in `_running` has been cancelled;
    - a job cancelled before its work returned never counts as finished, even if it did finish.
    Neither `work` nor `report` is called with the lock held, so both may call the runner.
    """

    def __init__(self, work: Callable[[Values], T], report: Callable[[Outcome[T]], None]) -> None:
        self._work, self._report = work, report
        self._changed = threading.Condition()
        self._wanted: _Job | None = None
        self._running: _Job | None = None
        self._due = 0.0
        self._thread: threading.Thread | None = None
        self._closed = False
        _runners.add(self)

    def request(self, values: Values, *, quiet: float = 0.0) -> None:
        """Run with `values` once nobody has asked for anything else for `quiet` seconds.

        Asking for what is being run already changes nothing.
        """
        job = _Job(dict(values))
        with self._changed:
            if self._closed:
                raise RuntimeError("this runner is closed")
            now = self._running
            if now and self._wanted is None and not now.control.cancelled:
                if now.values == job.values:
                    return
                now.control.cancel()
            self._wanted = job
            self._due = time.monotonic() + quiet
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="experiment", daemon=True)
                self._thread.start()

    def cancel(self) -> None:
        """Stop the run in progress at its next checkpoint, and the one that has not begun."""
        with self._changed:
            for job in (self._wanted, self._running):
                if job is not None:
                    job.control.cancel()
            self._due = 0.0  # a cancelled job need not wait for quiet
            self._changed.notify()

    def close(self) -> None:
        """Cancel, and accept nothing more."""
        with self._changed:
            self._closed = True
            self.cancel()  # the condition's lock is reentrant

    def wait(self, timeout: float) -> bool:
        """Wait until nothing is left to do and the thread has ended; False after `timeout` s."""
        thread = self._thread
        if thread is None:
            return True
        thread.join(timeout)
        return not thread.is_alive()

    @property
    def control(self) -> Control | None:
        """The control of the run in progress."""
        job = self._running
        return job.control if job else None

    def _loop(self) -> None:
        try:
            while (job := self._next()) is not None:
                outcome = self._perform(job)
                with self._changed:
                    if job.control.cancelled:
                        outcome = Outcome(error=Cancelled())
                    self._running = None  # from here on a cancel comes too late
                    superseded = self._wanted is not None
                if not superseded:
                    self._report(outcome)
        finally:  # reached early only if `report` failed: the next request starts afresh
            with self._changed:
                if self._thread is threading.current_thread():
                    self._thread = None

    def _next(self) -> _Job | None:
        """The job to run now, after its quiet period; None ends the thread."""
        with self._changed:
            while (rest := self._due - time.monotonic()) > 0:
                self._changed.wait(rest)
            self._running, self._wanted = self._wanted, None
            if self._running is None:
                # In the same step as the decision to end: a request now starts a new thread.
                self._thread = None
            return self._running

    def _perform(self, job: _Job) -> Outcome[T]:
        if job.control.cancelled:
            return Outcome(error=Cancelled())
        try:
            with controlled(job.control):
                return Outcome(self._work(job.values))
        except BaseException as error:  # shown to the person who asked, whatever it is
            return Outcome(error=error)


_runners: weakref.WeakSet[Runner[Any]] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """Let runs end properly before the interpreter does, so that they clean up what they hold."""
    runners = list(_runners)
    for runner in runners:
        runner.close()
    deadline = time.monotonic() + 3
    for runner in runners:
        runner.wait(max(0.0, deadline - time.monotonic()))
