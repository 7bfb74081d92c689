"""Vector clocks, and the data races they reveal.

An operation *happens before* another if a chain of "same thread, earlier", "release, then acquire
of that lock", "start" and "join" leads from one to the other (Lamport, "Time, Clocks, and the
Ordering of Events in a Distributed System", CACM 1978). Two accesses of which one writes and
neither happens before the other are a data race. Per place it is enough to remember each thread's
last write and read (Flanagan & Freund, "FastTrack", PLDI 2009, remember even less).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

Point = tuple[int, int]  # an instruction: id of its code object, offset


class Clock(list[int]):
    """What a thread knows of each thread's time: entry i counts thread i's starts and releases."""

    def join(self, other: Iterable[int]) -> None:
        """Learn what `other` knows."""
        for index, time in enumerate(other):
            self[index : index + 1] = [max(time, self.at(index))]

    def advance(self, index: int) -> None:
        """Thread `index` begins a new stretch that nobody else knows of."""
        self.join([0] * index + [self.at(index) + 1])

    def at(self, index: int) -> int:
        return self[index] if index < len(self) else 0


class Place(NamedTuple):
    """Something shared: of `group`, the one with `key`, or any (key None) if we cannot tell."""

    group: Hashable
    key: int | None
    writes: bool


class _Access(NamedTuple):
    time: int
    point: Point


@dataclass
class _History:
    writes: dict[int, _Access] = field(default_factory=dict)  # each thread's last one
    reads: dict[int, _Access] = field(default_factory=dict)


class Races:
    """The accesses of one run so far."""

    def __init__(self) -> None:
        self._groups: dict[Hashable, dict[int | None, _History]] = defaultdict(
            lambda: defaultdict(_History)
        )

    def visit(self, place: Place, thread: int, clock: Clock, point: Point) -> set[Point]:
        """Note an access; return the instructions it races with, and itself if there are any."""
        group = self._groups[place.group]
        mine = group[place.key]
        (mine.writes if place.writes else mine.reads)[thread] = _Access(clock.at(thread), point)
        others = group.values() if place.key is None else (mine, group.get(None))
        racing: set[Point] = set()
        for history in others:
            if history is None:
                continue
            for kind in (history.writes, history.reads) if place.writes else (history.writes,):
                for other, access in kind.items():
                    if other != thread and access.time > clock.at(other):
                        racing |= {access.point, point}
        return racing
