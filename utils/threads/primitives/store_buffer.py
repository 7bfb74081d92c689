"""Why Peterson's algorithm needs a fence on a real processor: a machine small enough to search.

An x86 core puts its stores into a queue of its own, the store buffer, from where they reach memory
later and in order; its loads look into its own buffer first, then into memory. So a load can
overtake an earlier store, and each of two threads can read that the other doesn't want to enter,
while both announcements are still on their way. A fence waits until the buffer is empty.

Model: P. Sewell et al., "x86-TSO: A Rigorous and Usable Programmer's Model for x86
Multiprocessors", CACM 53(7), 2010. The rule: Intel, Software Developer's Manual vol. 3A, section
"Memory Ordering" ("Loads May Be Reordered with Earlier Stores to Different Locations"). ARM and
POWER also let stores overtake stores. `search` visits every state such a machine can reach.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

Store = tuple[str, int]  # variable, value
State = tuple["Core", "Core", tuple[Store, ...]]  # the two cores, and memory in sorted order


class Core(NamedTuple):
    """Position in the program, and stores that the other core can't see yet, oldest first."""

    at: str
    buffer: tuple[Store, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """`steps` is a shortest way into the critical section for both; empty if there is none."""

    states: int
    steps: tuple[str, ...]

    @property
    def safe(self) -> bool:
        return not self.steps


def search(*, buffered: bool, fenced: bool = False) -> Verdict:
    """Visit all states of two cores that run Peterson's algorithm, breadth first."""
    memory = (("turn", 0), ("wants0", 0), ("wants1", 0))
    start: State = (Core("announce"), Core("announce"), memory)
    came: dict[State, tuple[State, str] | None] = {start: None}
    todo = deque([start])
    while todo:
        state = todo.popleft()
        if state[0].at == state[1].at == "critical":
            return Verdict(len(came), tuple(_way(state, came)))
        for step, following in _steps(state, buffered, fenced):
            if following not in came:
                came[following] = state, step
                todo.append(following)
    return Verdict(len(came), ())


def _way(state: State, came: dict[State, tuple[State, str] | None]) -> list[str]:
    steps: list[str] = []
    while origin := came[state]:
        state, step = origin
        steps.append(step)
    return steps[::-1]


def _steps(state: State, buffered: bool, fenced: bool) -> Iterator[tuple[str, State]]:
    """All that can happen next: one core's next instruction, or one store reaches memory."""
    *cores, memory = state
    for me in (0, 1):
        core: Core = cores[me]
        if core.buffer:
            (variable, value), *rest = core.buffer
            visible = _written(memory, variable, value)
            text = f"thread {me}'s {variable} = {value} reaches memory"
            yield text, _moved(state, me, Core(core.at, tuple(rest)), visible)
        for text, following, store in _instruction(me, core, dict(memory), fenced):
            if store and buffered:
                after = Core(following, (*core.buffer, store))
                yield f"thread {me}: {text} (buffered)", _moved(state, me, after, memory)
            else:
                visible = _written(memory, *store) if store else memory
                after = Core(following, core.buffer)
                yield f"thread {me}: {text}", _moved(state, me, after, visible)


def _instruction(
    me: int, core: Core, memory: dict[str, int], fenced: bool
) -> Iterator[tuple[str, str, Store | None]]:
    """The core's next instruction: what it does, where it leads, and what it stores."""
    other = 1 - me
    seen = memory | dict(core.buffer)  # a core sees its own stores at once, the newest counts
    if core.at == "announce":
        yield f"wants{me} = 1", "yield", (f"wants{me}", 1)
    elif core.at == "yield":
        yield f"turn = {other}", "fence" if fenced else "ask", ("turn", other)
    elif core.at == "fence":
        if not core.buffer:
            yield "fence", "ask", None
    elif core.at == "ask":
        wants = seen[f"wants{other}"]
        yield f"reads wants{other}: {wants}", "whose turn" if wants else "critical", None
    elif core.at == "whose turn":
        turn = seen["turn"]
        yield f"reads turn: {turn}", "ask" if turn == other else "critical", None
    elif core.at == "critical":
        yield f"leaves, wants{me} = 0", "announce", (f"wants{me}", 0)


def _written(memory: tuple[Store, ...], variable: str, value: int) -> tuple[Store, ...]:
    return tuple(sorted((dict(memory) | {variable: value}).items()))


def _moved(state: State, me: int, core: Core, memory: tuple[Store, ...]) -> State:
    return (core, state[1], memory) if me == 0 else (state[0], core, memory)
