"""The life of threads, observed: created, ready, running, blocked, terminated.

Three witnesses, because none sees everything:

- the *starter* knows when a thread was created and started;
- the thread notes which *step* it is in: computing, asleep, or waiting for a lock;
- the *operating system* (`observer`, every 2 ms) knows whether it had a core, waited for one, or
  was asleep. Where the system doesn't tell, the steps alone are drawn: then "running" includes
  waiting for a core and for the GIL.

With a GIL there is a sixth state. A thread that waits for the GIL sleeps in the kernel, so it is
blocked for the operating system; but it has everything it asked for and only waits for its turn,
so it is ready for Python. It is recognised by the contradiction: asleep in a computing step.
"""

from __future__ import annotations

import bisect
import hashlib
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, Literal

from utils.core import machine, plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.core.trace import Recorder, Span, Trace, now
from utils.threads.life import observer

Work = Literal["mixed", "python", "hash", "sleep", "lock"]
_STEPS: dict[Work, tuple[str, ...]] = {
    "mixed": ("hash", "sleep", "locked"),
    "python": ("compute",),  # holds the GIL
    "hash": ("hash",),  # gives the GIL up while it computes
    "sleep": ("hash", "sleep", "hash"),
    "lock": ("locked", "locked", "locked"),
}
STATES = ("created", "ready", "running", "gil", "blocked", "terminated")
_DATA = bytes(2**18)  # hashed in a fraction of a millisecond
_APART = 0.01  # seconds between two starts
DEADLINE = 30.0  # seconds for anything that blocks


@dataclass
class Life:
    """The dates of one thread, in ns of `now()`; it notes `first` and `last` itself."""

    name: str
    created: int
    started: int = 0
    first: int = 0
    last: int = 0
    native_id: int = 0
    error: BaseException | None = None


@dataclass(frozen=True)
class Lives:
    """`trace` has a lane a thread and a span a state; `asked` says whether the system told."""

    work: Work
    cores: int
    asked: bool
    trace: Trace


@experiment
def live(
    work: Work = "mixed",
    threads: Annotated[int, Range(1, 6)] = 3,
    milliseconds: Annotated[int, Range(20, 200, 10, label="work a thread [ms]")] = 90,
    one_core: bool = False,
) -> Lives:
    """Create `threads` threads, start them one after another, and watch them to their end.

    The work of each is `milliseconds` of one core (for a sleep: of time), in equal steps.
    Raises OSError if `one_core` is asked for where Python cannot pin.
    """
    recorder, stop, lock = Recorder(), threading.Event(), threading.Lock()
    asked = observer.available()
    with (
        observer.watching() if asked else nullcontext() as watch,
        machine.pinned(1) if one_core else nullcontext(),
    ):
        lives = [Life(f"thread {number}", now()) for number in range(1, threads + 1)]
        crew = [
            threading.Thread(
                target=_live,
                name=life.name,
                args=(life, _STEPS[work], milliseconds / 1e3, recorder, stop, lock, watch),
            )
            for life in lives
        ]
        try:
            for done, (life, thread) in enumerate(zip(lives, crew, strict=True)):
                checkpoint(done, 2 * threads, "starting")
                time.sleep(_APART)
                life.started = now()
                thread.start()
            _join(crew, lives)
        finally:
            stop.set()
            for thread in crew:
                if thread.ident is not None:
                    thread.join(DEADLINE)
        until = now() + int(_APART * 1e9)
    samples = watch.samples if watch else []
    steps = recorder.trace()
    spans = (span for life in lives for span in _states(life, steps, samples, until))
    return Lives(work, 1 if one_core else machine.cores(), asked, Trace(spans))


def _join(crew: Sequence[threading.Thread], lives: Sequence[Life]) -> None:
    deadline = time.monotonic() + DEADLINE
    while alive := sum(thread.is_alive() for thread in crew):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{alive} of {len(crew)} threads unfinished after {DEADLINE} s")
        next(thread for thread in crew if thread.is_alive()).join(0.05)
        checkpoint(2 * len(crew) - alive, 2 * len(crew), "running")
    for life in lives:
        if life.error:
            raise life.error


def _live(
    life: Life,
    steps: Sequence[str],
    seconds: float,
    recorder: Recorder,
    stop: threading.Event,
    lock: threading.Lock,
    watch: observer.Watch | None,
) -> None:
    life.first, life.native_id = now(), threading.get_native_id()
    try:
        if watch:
            watch.add(life.native_id)
        for step in steps:
            _do(step, seconds / len(steps), recorder, stop, lock)
    except BaseException as error:  # raised again by the main thread: join does not
        life.error = error
    life.last = now()


def _do(
    step: str, seconds: float, recorder: Recorder, stop: threading.Event, lock: threading.Lock
) -> None:
    if step == "sleep":
        with recorder.span("sleep"):
            time.sleep(seconds)
    elif step == "locked":
        with recorder.span("lock"):
            if not lock.acquire(timeout=DEADLINE):
                raise TimeoutError(f"no lock within {DEADLINE} s")
        try:
            _spend(seconds, stop, "hash", recorder)
        finally:
            lock.release()
    else:
        _spend(seconds, stop, step, recorder)


def _spend(seconds: float, stop: threading.Event, step: str, recorder: Recorder) -> None:
    """Use a core for that long. `thread_time` stands still while this thread doesn't run."""
    end = time.thread_time() + seconds
    with recorder.span(step):
        while time.thread_time() < end and not stop.is_set():
            if step == "hash":
                hashlib.sha256(_DATA).digest()
            else:
                sum(range(500))


def _states(life: Life, steps: Trace, samples: Iterable[observer.Sample], until: int) -> list[Span]:
    """One thread's life as spans without gaps, from its creation to `until`."""
    own_steps = steps.select(lane=life.name).spans
    own = [sample for sample in samples if sample.thread == life.native_id]
    seen = _by_system(own, own_steps) if own else _by_steps(own_steps)
    moments = [
        _Moment(life.created, "created"),
        _Moment(life.started, "ready"),
        _Moment(life.first, "running"),
        *(moment for moment in seen if life.first < moment.at < life.last),
        _Moment(life.last, "terminated"),
    ]
    changes = [moments[0]]
    for moment in moments[1:]:
        if (moment.state, moment.waits_for) != (changes[-1].state, changes[-1].waits_for):
            changes.append(moment)
    ends = [change.at for change in changes[1:]] + [until]
    return [
        Span(life.name, change.state, change.waits_for or change.state, change.at, end)
        for change, end in zip(changes, ends, strict=True)
    ]


@dataclass(frozen=True)
class _Moment:
    """From `at` on, the thread is in `state`."""

    at: int
    state: str
    waits_for: str = ""


def _by_steps(steps: Sequence[Span]) -> Iterator[_Moment]:
    for step in steps:
        if step.category in ("sleep", "lock"):
            yield _Moment(step.start, "blocked", step.category)
            yield _Moment(step.end, "running")


def _by_system(samples: Sequence[observer.Sample], steps: Sequence[Span]) -> Iterator[_Moment]:
    """The state at each sample, taken to last until the next one."""
    starts = [step.start for step in steps]
    queued = list(_queued(samples))
    for sample in samples:
        position = bisect.bisect(starts, sample.at) - 1
        step = steps[position].category if position >= 0 else ""
        if sample.letter == "R":
            waiting = any(start <= sample.at < end for start, end in queued)
            yield _Moment(sample.at, "ready" if waiting else "running")
        elif step in ("sleep", "lock"):
            yield _Moment(sample.at, "blocked", step)
        else:
            yield _Moment(sample.at, "gil" if machine.gil() else "blocked")


def _queued(samples: Sequence[observer.Sample]) -> Iterator[tuple[int, int]]:
    """When the thread waited for a core: the kernel says how long, once the wait is over.

    The wait ended between two samples, before the time on a core that the second one shows.
    """
    for before, after in zip(samples, samples[1:], strict=False):
        if waited := after.waited - before.waited:
            ran = min(after.on_core - before.on_core, after.at - before.at)
            yield after.at - ran - waited, after.at - ran


def plot(result: Lives) -> plots.Picture:
    """A row a thread, a colour a state; what a blocked thread waits for is written on its bar."""
    lanes = result.trace.lanes
    fig, ax = plots.figure(9, 1.5 + 0.42 * len(lanes))
    where = "one core" if result.cores == 1 else f"{result.cores} cores"
    told = "" if result.asked else " (this system does not tell: as the program sees itself)"
    plots.timeline(ax, result.trace, title=f"work: {result.work}, on {where}{told}")
    for span in result.trace.select(category="blocked").spans:
        if span.seconds > result.trace.duration / 25:
            middle = ((span.start + span.end) / 2 - result.trace.start) / 1e9
            row = lanes.index(span.lane)
            ax.text(middle, row, span.name, ha="center", va="center", fontsize=9, color="white")
    shown = [state for state in STATES if len(result.trace.select(category=state))]
    plots.legend(fig, shown, {"gil": "ready, waits for the GIL"})
    return fig
