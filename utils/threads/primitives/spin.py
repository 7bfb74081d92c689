"""Before sleeping locks: the spin lock and Peterson's algorithm, and what spinning costs.

A spin lock needs one atomic *test-and-set*: set a flag and say whether it was set before. Peterson
showed that two threads need not even that, only reads and writes (G. L. Peterson, "Myths About the
Mutual Exclusion Problem", Information Processing Letters 12(3), 1981), provided that all threads
see all reads and writes in one order. With a GIL they do, as only one thread at a time runs
bytecode; processors do not promise it (`store_buffer`), and nor do the documented guarantees of
free-threaded Python ("Thread Safety Guarantees", docs.python.org).

Both wait by asking again and again. That suits a kernel whose locks are held for nanoseconds on
another core. With a GIL it is the worst a thread can do: the owner of the lock needs the GIL to
finish, and the one who spins has it, for a whole switch interval.
"""

from __future__ import annotations

import threading
import time
from _thread import allocate_lock
from dataclasses import dataclass
from time import monotonic
from typing import Annotated, Literal, Self

from utils.core import machine, plots
from utils.core.experiment import Range, checkpoint, experiment, gather
from utils.core.trace import Span, Trace, now
from utils.core.workers import crew, lanes

DEADLINE = 20.0  # seconds for anything that blocks


class SpinLock:
    """`threading.Lock`, but a thread that has to wait keeps asking instead of sleeping."""

    def __init__(self) -> None:
        self._flag = allocate_lock()  # only ever asked without blocking: a test-and-set

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock and return True, or return False if it is not free (in `timeout` s)."""
        if not blocking and timeout != -1:
            raise ValueError("can't specify a timeout for a non-blocking call")
        if timeout < 0 and timeout != -1:
            raise ValueError(f"timeout={timeout} is not allowed: give a number from 0, or -1")
        until = monotonic() + timeout
        while not self._flag.acquire(blocking=False):
            if not blocking or (timeout != -1 and monotonic() >= until):
                return False
        return True

    def release(self) -> None:
        """Give the lock back; RuntimeError if nobody holds it."""
        self._flag.release()

    def locked(self) -> bool:
        """Whether somebody holds it."""
        return self._flag.locked()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


class Peterson:
    """Mutual exclusion of two threads, called 0 and 1, by reads and writes alone."""

    def __init__(self) -> None:
        self.wants = [False, False]
        self.turn = 0

    def acquire(self, me: Literal[0, 1]) -> None:
        other = 1 - me
        self.wants[me] = True
        self.turn = other  # after you: of two who say so at once, the last one waits
        while self.wants[other] and self.turn == other:
            pass

    def release(self, me: Literal[0, 1]) -> None:
        self.wants[me] = False


class TurnFirst(Peterson):
    """The same two assignments in the other order. Wrong: both may enter."""

    def acquire(self, me: Literal[0, 1]) -> None:
        other = 1 - me
        self.turn = other
        self.wants[me] = True
        while self.wants[other] and self.turn == other:
            pass


class WantsOnly(Peterson):
    """Without `turn`. Nobody enters with the other, but both may wait forever: a livelock."""

    def acquire(self, me: Literal[0, 1]) -> None:
        other = 1 - me
        self.wants[me] = True
        while self.wants[other]:
            pass


def _two_threads(algorithm: type[Peterson]) -> None:
    """Two threads add one to a number, read and written in separate steps."""
    door, number = algorithm(), 0

    def add(me: Literal[0, 1]) -> None:
        nonlocal number
        door.acquire(me)
        seen = number
        number = seen + 1
        door.release(me)

    threads = [threading.Thread(target=add, args=(me,)) for me in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert number == 2, f"two threads added one each, and the number is {number}"


def peterson_program() -> None:
    """For the schedule explorer: correct under every schedule."""
    _two_threads(Peterson)


def turn_first_program() -> None:
    """For the schedule explorer: loses an update under some schedule."""
    _two_threads(TurnFirst)


def wants_only_program() -> None:
    """For the schedule explorer: never ends under some schedule."""
    _two_threads(WantsOnly)


@dataclass(frozen=True)
class Spinning:
    """Per kind of lock: how long the owner held it, and the CPU seconds its waiters used."""

    owner: Literal["sleeps", "computes"]
    waiters: int
    alone: float  # seconds the owner holds the lock when nobody waits
    held: dict[str, float]
    burnt: dict[str, float]
    trace: dict[str, Trace]

    @property
    def expected_held(self) -> float:
        """Seconds that the spin lock is held, if the system and the GIL share out evenly."""
        if self.owner == "sleeps":
            return self.alone  # to wake it needs the GIL back: a switch interval or two more
        cores = 1 if machine.gil() else machine.cores()
        return self.alone * max(1, (1 + self.waiters) / cores)


@experiment
def spin(
    owner: Literal["sleeps", "computes"] = "computes",
    waiters: Annotated[int, Range(1, 4)] = 2,
    milliseconds: Annotated[int, Range(10, 200, 10, label="lock held for [ms]")] = 40,
) -> Spinning:
    """One thread holds the lock while it sleeps, or computes in Python; the others want it."""
    seconds = milliseconds / 1e3
    locks: dict[str, SpinLock | threading.Lock] = {
        "sleeping lock": threading.Lock(),
        "spin lock": SpinLock(),
    }
    held, burnt, traces = {}, {}, {}
    for done, (kind, lock) in enumerate(locks.items()):
        checkpoint(done, len(locks), kind)
        with crew(waiters + 1, "thread") as pool:
            taken = threading.Event()
            own = pool.submit(_hold, lock, taken, owner, seconds)
            rest = [pool.submit(_want, lock, taken) for _ in range(waiters)]
            (span, _), *wanted = gather([own, *rest], timeout=DEADLINE)
        held[kind] = span.seconds
        burnt[kind] = sum(cpu for _, cpu in wanted)
        traces[kind] = _number_lanes([span, *(span for span, _ in wanted)])
    return Spinning(owner, waiters, seconds, held, burnt, traces)


def _hold(
    lock: SpinLock | threading.Lock, taken: threading.Event, owner: str, seconds: float
) -> tuple[Span, float]:
    with lock:
        start = now()
        taken.set()
        if owner == "sleeps":
            time.sleep(seconds)
        else:
            end = time.thread_time() + seconds  # this thread's own CPU time
            while time.thread_time() < end:
                sum(range(500))
        return Span("owner", "compute" if owner == "computes" else "sleep", "", start, now()), 0.0


def _want(lock: SpinLock | threading.Lock, taken: threading.Event) -> tuple[Span, float]:
    if not taken.wait(DEADLINE):
        raise TimeoutError(f"nobody took the lock within {DEADLINE} s")
    start, cpu = now(), time.thread_time()
    if not lock.acquire(timeout=DEADLINE):
        raise TimeoutError(f"no lock within {DEADLINE} s")
    end, cpu = now(), time.thread_time() - cpu
    lock.release()
    return Span("waiter", "lock", "", start, end), cpu


def _number_lanes(spans: list[Span]) -> Trace:
    names = ["owner", *lanes(len(spans) - 1, "waiter")]
    return Trace(span._replace(lane=name) for span, name in zip(spans, names, strict=True))


def plot(result: Spinning) -> plots.Picture:
    """Who waited how long (left), and what the waiting cost (right)."""
    fig = plots.Picture(figsize=(9, 2.2 + 0.3 * result.waiters), layout="constrained")
    grid = fig.add_gridspec(2, 2, width_ratios=[3, 1.2])
    until = 1.02 * max(trace.duration for trace in result.trace.values())
    for row, (kind, trace) in enumerate(result.trace.items()):
        ax = plots.style(fig.add_subplot(grid[row, 0]))
        title = f"{kind}: held for {1e3 * result.held[kind]:.0f} ms"
        names = ["owner", *lanes(result.waiters, "waiter")]
        plots.timeline(ax, trace, lanes=names, title=title, until=until)
        if row == 0:
            ax.set_xlabel("")
            ax.tick_params(labelbottom=False)
    ax = plots.style(fig.add_subplot(grid[:, 1]))
    bars = ax.bar(
        [kind.replace(" ", "\n") for kind in result.burnt],
        [1e3 * seconds for seconds in result.burnt.values()],
        color=plots.color("late"),
        width=0.6,
    )
    ax.bar_label(bars, fmt="%.1f", fontsize=9, padding=2)
    ax.set_title("CPU ms burnt by waiting", loc="left")
    ax.margins(y=0.15)
    doing = "compute" if result.owner == "computes" else "sleep"
    plots.legend(fig, [doing, "lock"], {doing: f"owner {result.owner}", "lock": "wants the lock"})
    return fig
