"""Name a deadlock instead of hanging in it, and find the one that did not happen this time.

Two graphs. The *wait-for graph* says who waits for whom right now: a thread waits for a mutex, and
a mutex is held by a thread. A cycle in it never resolves, so the thread that is about to close one
gets `Deadlock` instead. (R. Holt, "Some Deadlock Properties of Computer Systems", ACM Computing
Surveys 4(3), 1972.) It costs nothing while mutexes are free: a thread looks only when it is about
to sleep, which takes far longer than looking.

The *lock-order graph* says which mutex was ever asked for while which other was held. A cycle in it
is a deadlock waiting for its moment, even if every run so far was lucky. Linux proves its locking
this way (Documentation/locking/lockdep-design.rst). Here it is read off a recorded trace.
"""

from __future__ import annotations

import threading
from _thread import allocate_lock
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from threading import get_ident
from typing import NamedTuple, Protocol

from utils.core.trace import Trace


class Owned(Protocol):
    """A lock that knows which thread holds it."""

    name: str
    _owner: int | None


class Wait(NamedTuple):
    """`thread` waits for `mutex`, which `holder` holds."""

    thread: str
    mutex: str
    holder: str


class Deadlock(RuntimeError):
    """To wait here would mean to wait forever. `cycle` says for whom, starting with this thread."""

    def __init__(self, cycle: tuple[Wait, ...]) -> None:
        steps = (f"{w.thread} waits for {w.mutex}, held by {w.holder}" for w in cycle)
        super().__init__("deadlock: " + "; ".join(steps))
        self.cycle = cycle


# _graph must be held whenever _waiting changes or is followed. Nothing blocks while it is held.
_graph = allocate_lock()
_waiting: dict[int, Owned] = {}  # by the identifier of the thread that waits


def begin_wait(mutex: Owned) -> None:
    """Enter "this thread waits for `mutex`" into the graph; Deadlock if that closes a cycle.

    No cycle is missed: a thread names itself the owner of what it takes before it waits for
    anything else, so whoever closes the cycle sees all of it. And none is invented: a thread
    leaves the graph before it becomes an owner, and while it is in the graph it sleeps, so it
    releases nothing.
    """
    me = get_ident()
    chain: list[tuple[int, Owned, int]] = []
    with _graph:
        waiter, wanted = me, mutex
        while wanted is not None and (holder := wanted._owner) is not None:
            chain.append((waiter, wanted, holder))
            if holder == me:
                break
            waiter, wanted = holder, _waiting.get(holder)
        else:
            _waiting[me] = mutex
            return
    raise Deadlock(
        tuple(Wait(thread_name(w), wanted.name, thread_name(h)) for w, wanted, h in chain)
    )


def end_wait() -> None:
    """Take this thread out of the graph again."""
    with _graph:
        del _waiting[get_ident()]


def thread_name(identifier: int) -> str:
    """The name of a running thread; threads that `threading` did not start have only a number."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return names.get(identifier, f"thread {identifier}")


@dataclass(frozen=True)
class LockOrder:
    """`edges[A, B]`: the threads that asked for B while they held A."""

    edges: Mapping[tuple[str, str], tuple[str, ...]]

    def inversions(self) -> list[tuple[str, ...]]:
        """The cycles: ("A", "B") says that B was asked for under A, and A under B.

        Each is a shortest one through one of its edges, and starts with its smallest name.
        """
        found = set()
        for before, after in self.edges:
            if cycle := self._path(after, before):  # and the edge leads back to its start
                first = cycle.index(min(cycle))
                found.add((*cycle[first:], *cycle[:first]))
        return sorted(found)

    def _path(self, start: str, goal: str) -> list[str]:
        """The mutexes on a shortest way, both ends included; empty if there is none."""
        came_from: dict[str, str] = {start: start}
        todo = deque([start])
        while todo:
            here = todo.popleft()
            if here == goal:
                way = [here]
                while way[-1] != start:
                    way.append(came_from[way[-1]])
                return way[::-1]
            for before, after in self.edges:
                if before == here and after not in came_from:
                    came_from[after] = here
                    todo.append(after)
        return []


def lock_order(trace: Trace) -> LockOrder:
    """Who asked for which mutex under which, from a trace that was recorded meanwhile.

    As in lockdep, mutexes of one name are one: nest two of them, and their order is unknown. An
    attempt that would not wait (`blocking=False`) adds no edge: backing off is a cure. A mutex
    still held when the recording ends has no span yet.
    """
    edges: dict[tuple[str, str], dict[str, None]] = {}
    for lane in trace.lanes:
        spans = trace.select(lane=lane).spans
        holds = [s for s in spans if s.category == "hold" and "blocking" in (s.args or {})]
        asked = [s for s in spans if (s.args or {}).get("blocking")]
        for held in holds:
            for other in asked:
                if other is not held and held.start <= other.start < held.end:
                    edges.setdefault((held.name, other.name), {})[lane] = None
    return LockOrder({edge: tuple(lanes) for edge, lanes in edges.items()})
