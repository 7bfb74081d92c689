"""Lock striping: n locks instead of one, and the key says which.

Threads that touch different keys seldom want the same lock, so they seldom wait. Java's
`ConcurrentHashMap` (D. Lea) was built like this up to Java 7, with 16 locks unless told otherwise;
the name stands in B. Goetz et al., "Java Concurrency in Practice", 2006, section 11.4.3. The price:
what concerns all keys (a size, a snapshot) has to take every lock. And a key that everybody wants
stays one key under one lock, however many stripes there are.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Annotated, Generic, TypeVar

from utils.core import plots
from utils.core.experiment import Range, checkpoint, current, experiment, gather
from utils.core.trace import now
from utils.core.workers import crew
from utils.threads.primitives.mutex import Mutex

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class StripedLock:
    """`stripes` mutexes. Keys that are equal have the same one."""

    def __init__(self, stripes: int = 16) -> None:
        if stripes < 1:
            raise ValueError(f"stripes={stripes} is not allowed: give 1 or more")
        self.mutexes = tuple(Mutex(f"stripe {number}") for number in range(stripes))

    def stripe(self, key: Hashable) -> int:
        """The number of the key's mutex."""
        # An int is its own hash, so the keys 0, 16, 32, … would share a stripe; a tuple's hash
        # mixes that of its item.
        return hash((key,)) % len(self.mutexes)

    def of(self, key: Hashable) -> Mutex:
        return self.mutexes[self.stripe(key)]

    @contextmanager
    def all(self) -> Iterator[None]:
        """Hold every mutex in this block."""
        with ExitStack() as stack:
            for mutex in self.mutexes:  # always in this order, so that nobody can deadlock
                stack.enter_context(mutex)
            yield


class StripedMap(Generic[K, V]):
    """A dictionary whose operations on different keys seldom wait for each other.

    Each operation on a key is atomic. `len` and `copy` show one moment. Iterating is weaker: it
    sees every key that is there all the time exactly once, and of the changes made meanwhile some.
    """

    def __init__(self, stripes: int = 16) -> None:
        self.locks = StripedLock(stripes)
        # mutexes[i] must be held whenever _parts[i] is used. A key is in the part of its mutex.
        self._parts: tuple[dict[K, V], ...] = tuple({} for _ in range(stripes))

    def _part(self, key: K) -> dict[K, V]:
        return self._parts[self.locks.stripe(key)]

    def __getitem__(self, key: K) -> V:
        with self.locks.of(key):
            return self._part(key)[key]

    def get(self, key: K, default: V | None = None) -> V | None:
        with self.locks.of(key):
            return self._part(key).get(key, default)

    def __contains__(self, key: K) -> bool:
        with self.locks.of(key):
            return key in self._part(key)

    def __setitem__(self, key: K, value: V) -> None:
        with self.locks.of(key):
            self._part(key)[key] = value

    def __delitem__(self, key: K) -> None:
        with self.locks.of(key):
            del self._part(key)[key]

    def compute(self, key: K, change: Callable[[V], V], default: V) -> V:
        """Set the key's value to `change(value)` in one step, and return it.

        `default` stands in for a value that is missing. `change` must not use this map: it runs
        while the key's stripe is held.
        """
        with self.locks.of(key):
            part = self._part(key)
            part[key] = value = change(part.get(key, default))
            return value

    def __len__(self) -> int:
        with self.locks.all():
            return sum(map(len, self._parts))

    def copy(self) -> dict[K, V]:
        with self.locks.all():
            return {key: value for part in self._parts for key, value in part.items()}

    def __iter__(self) -> Iterator[K]:
        for mutex, part in zip(self.locks.mutexes, self._parts, strict=True):
            with mutex:
                keys = list(part)
            yield from keys


KEYS, UPDATES, HELD = 1000, 128, 0.001  # HELD: seconds that an update holds its lock
SWEEP = (1, 2, 4, 8, 16, 32, 64)
DEADLINE = 30.0  # seconds for anything that blocks


@dataclass(frozen=True)
class Striping:
    """`rate[n]`: updates a second with n stripes; `load[n]`: share of the updates by stripe."""

    threads: int
    skew: float
    stripes: int
    rate: dict[int, float]
    load: dict[int, tuple[float, ...]]
    lost: int  # updates that were made and are not in the map

    def speedup(self, stripes: int) -> float:
        """Times the throughput with one lock."""
        return self.rate[stripes] / self.rate[1]

    def expected(self, stripes: int) -> float:
        """The same for threads that come back at once and hold for random (exponential) times.

        Mean value analysis: who comes meets the queue that the others alone would make.
        (M. Reiser, S. Lavenberg, "Mean-Value Analysis of Closed Multichain Queuing Networks",
        Journal of the ACM 27(2), 1980.)
        """
        queues, rate = [0.0] * stripes, 0.0
        for threads in range(1, self.threads + 1):
            times = [p * (1 + q) for p, q in zip(self.load[stripes], queues, strict=True)]
            rate = threads / sum(times)
            queues = [rate * time for time in times]
        return rate

    def bound(self, stripes: int) -> float:
        """What the busiest stripe allows."""
        return min(self.threads, 1 / max(self.load[stripes]))


@experiment
def count(
    stripes: Annotated[int, Range(1, 64)] = 16,
    threads: Annotated[int, Range(1, 16)] = 8,
    skew: Annotated[float, Range(0, 2, 0.1, label="skew (0: all keys alike)")] = 0.0,
) -> Striping:
    """Count words, so to speak: the key of rank r comes up in proportion to 1/r**skew (Zipf)."""
    weights = [rank**-skew for rank in range(1, KEYS + 1)]
    keys = random.Random(1).choices(range(KEYS), weights, k=UPDATES // threads * threads)
    sizes = sorted({*SWEEP, stripes})
    rate, load, lost = dict.fromkeys(sizes, 0.0), {}, 0
    for done, size in enumerate([*sizes, *sizes]):  # the better of two: what disturbs only delays
        checkpoint(done, 2 * len(sizes), f"{size} stripes")
        counts: StripedMap[int, int] = StripedMap(size)
        rate[size] = max(rate[size], len(keys) / _count(counts, keys, threads))
        lost += len(keys) - sum(counts.copy().values())
        visits = Counter(map(counts.locks.stripe, keys))
        load[size] = tuple(visits[stripe] / len(keys) for stripe in range(size))
    return Striping(threads, skew, stripes, rate, load, lost)


def _count(counts: StripedMap[int, int], keys: list[int], threads: int) -> float:
    """Seconds to count all keys, dealt out to the threads."""
    control = current()

    def add(value: int) -> int:
        time.sleep(HELD)  # an update that waits for something while it holds the lock
        return value + 1

    def work(mine: list[int]) -> None:
        for key in mine:
            if control.cancelled:
                return
            counts.compute(key, add, 0)

    with crew(threads) as pool:
        start = now()
        futures = [pool.submit(work, keys[first::threads]) for first in range(threads)]
        gather(futures, timeout=DEADLINE)
        return (now() - start) / 1e9


def plot(result: Striping) -> plots.Picture:
    """Speed-up over stripes, and where the updates went with the chosen number."""
    fig, (ax, bars) = plots.figure(9, 3, cols=2, gridspec_kw={"width_ratios": [3, 2]})
    sizes = list(result.rate)
    curves = {"bound": result.bound, "theory": result.expected, "measured": result.speedup}
    styles = {"bound": ":", "theory": "--", "measured": "o-"}
    for name, curve in curves.items():
        color = plots.color("theory" if name == "bound" else name)
        ax.plot(sizes, [*map(curve, sizes)], styles[name], color=color, label=name)
    ax.axvline(result.stripes, color=plots.ORANGE, linewidth=6, alpha=0.25)
    ax.set_xscale("log", base=2)
    ax.set_xticks(SWEEP, SWEEP)
    ax.minorticks_off()
    ax.set_ylim(bottom=0)
    ax.set_xlabel("stripes", fontsize=9)
    ax.set_title(f"threads: {result.threads}; times as fast as with one lock", loc="left")
    ax.legend(frameon=False, fontsize=9)
    load = sorted(result.load[result.stripes], reverse=True)
    bars.xaxis.get_major_locator().set_params(integer=True)
    bars.bar(range(1, len(load) + 1), [100 * share for share in load], color=plots.BLUE)
    bars.axhline(100 / len(load), color=plots.color("theory"), linestyle="--")
    bars.set_xlim(0, len(load) + 1)
    bars.set_title(f"% of updates, by stripe ({len(load)})", loc="left")
    bars.set_xlabel("stripes, busiest first (dashed: an equal share)", fontsize=9)
    return fig
