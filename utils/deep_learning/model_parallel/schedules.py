"""Pipeline schedules as data: for each rank the list of what it does, in order.

The model is cut into *stages*, the batch into *micro-batches*. A schedule says nothing of time:
whoever runs it, the virtual clock or real ranks, does the next action as soon as what it needs is
there. So the same object can be looked at, checked, simulated and run.

Sources: Huang et al., "GPipe", 2019; Narayanan et al., "Efficient Large-Scale Language Model
Training on GPU Clusters Using Megatron-LM", 2021 (1F1B, interleaved); Qi et al., "Zero Bubble
Pipeline Parallelism", 2023 (ZB-H1).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal["F", "B", "W"]


class Action(NamedTuple):
    """What is done to which micro-batch, counted from 0, in which stage.

    F: forward. B: backward, for the input and the weights. Where the schedule splits the two, B is
    for the input only, which the stage before waits for, and W for the weights, which nobody does.
    """

    kind: Kind
    stage: int
    micro: int

    def __str__(self) -> str:
        return f"{self.kind}{self.micro} of stage {self.stage}"


@dataclass(frozen=True)
class Schedule:
    """`ranks[r]` is what rank r does, in order. Stage s lives on rank s mod p."""

    name: str
    micro: int
    stages: int
    ranks: tuple[tuple[Action, ...], ...]
    split: bool = False

    def rank_of(self, stage: int) -> int:
        return stage % len(self.ranks)

    def needs(self, action: Action) -> tuple[Action, ...]:
        """What must have been done before, on this rank or on others."""
        kind, stage, micro = action
        if kind == "F":
            return (Action("F", stage - 1, micro),) if stage else ()
        if kind == "W":
            return (Action("B", stage, micro),)
        own = (Action("F", stage, micro),)
        return own if stage == self.stages - 1 else (*own, Action("B", stage + 1, micro))

    def feeds(self, action: Action) -> Action | None:
        """What works on that which `action` makes, in the stage after or before; None: nothing."""
        kind, stage, micro = action
        other = {"F": stage + 1, "B": stage - 1}.get(kind, -1)
        return Action(kind, other, micro) if 0 <= other < self.stages else None

    def message(self, action: Action) -> tuple[int, Action] | None:
        """The other rank that `action` sends to, and what for; None if it stays on this rank."""
        fed = self.feeds(action)
        own = fed is None or self.rank_of(fed.stage) == self.rank_of(action.stage)
        return None if own else (self.rank_of(fed.stage), fed)


def order(schedule: Schedule, buffer: float = float("inf")) -> Iterator[Action]:
    """The actions in an order that is possible, if a channel holds `buffer` messages.

    Who sends into a full channel waits, and so does who needs what has not come. ValueError: the
    schedule lacks an action, does one twice or on another rank, or its ranks wait for each other.
    """
    kinds: tuple[Kind, ...] = ("F", "B", "W") if schedule.split else ("F", "B")
    wanted = {
        Action(kind, stage, micro)
        for kind in kinds
        for stage in range(schedule.stages)
        for micro in range(schedule.micro)
    }
    for rank, actions in enumerate(schedule.ranks):
        for action in actions:
            if action not in wanted or schedule.rank_of(action.stage) != rank:
                raise ValueError(f"{schedule.name}: rank {rank} must not do {action} (again)")
            wanted.remove(action)
    if wanted:
        raise ValueError(f"{schedule.name}: nobody does {min(wanted)}")
    done: set[Action] = set()
    channels: dict[tuple[int, int], deque[Action]] = {}  # messages on their way, first sent first
    to_do = [deque(actions) for actions in schedule.ranks]
    while any(to_do):
        moved = False
        for rank, actions in enumerate(to_do):
            while actions and done.issuperset(schedule.needs(actions[0])):
                out = schedule.message(actions[0])
                if out and len(channels.get((rank, out[0]), ())) >= buffer:
                    break
                _take(channels, rank, actions[0])
                done.add(actions[0])
                yield actions.popleft()
                moved = True
                if out:
                    channels.setdefault((rank, out[0]), deque()).append(out[1])
        if not moved:
            stuck = ", ".join(f"rank {r} at {a[0]}" for r, a in enumerate(to_do) if a)
            raise ValueError(f"{schedule.name}: ranks wait for each other: {stuck}")


def _take(channels: dict[tuple[int, int], deque[Action]], rank: int, action: Action) -> None:
    """Receive what `action` needs, and what stands before it in the channel."""
    for (_, to), messages in channels.items():
        if to == rank and action in messages:
            while messages.popleft() != action:
                pass


def validate(schedule: Schedule) -> int:
    """How many messages a channel must hold, at least, so that the schedule ends.

    ValueError: it cannot end, however many that are (see `order`).
    """
    for _ in order(schedule):
        pass
    for buffer in range(1, schedule.micro * schedule.stages):
        try:
            for _ in order(schedule, buffer):
                pass
            return buffer
        except ValueError:
            pass
    return schedule.micro * schedule.stages


# ── The schedules ─────────────────────────────────────────────────────────────────────────────


def gpipe(p: int, m: int) -> Schedule:
    """All forwards, then all backwards: simple, and all m micro-batches wait in memory."""
    ranks = tuple(
        tuple(Action(kind, rank, micro) for kind in ("F", "B") for micro in range(m))
        for rank in range(p)
    )
    return Schedule("GPipe", m, p, ranks)


def one_f_one_b(p: int, m: int) -> Schedule:
    """Rank r runs p−r−1 forwards ahead; then one forward, one backward; then the rest."""
    ranks = []
    for rank in range(p):
        forward = [Action("F", rank, micro) for micro in range(m)]
        backward = [Action("B", rank, micro) for micro in range(m)]
        ranks.append(_one_each(forward, backward, ahead=p - rank - 1))
    return Schedule("1F1B", m, p, tuple(ranks))


def interleaved(p: int, m: int, v: int = 2) -> Schedule:
    """1F1B with v stages a rank, each 1/v as long: to fill the pipeline takes 1/v of the time.

    Micro-batches go through a rank's stages in groups of p. ValueError: p does not divide m.
    """
    if m % p:
        raise ValueError(f"m={m} is not allowed: interleaving needs a multiple of p={p}")
    ranks = []
    for rank in range(p):
        turns = [
            (chunk, micro)
            for group in range(0, m, p)
            for chunk in range(v)
            for micro in range(group, group + p)
        ]
        forward = [Action("F", chunk * p + rank, micro) for chunk, micro in turns]
        backward = [Action("B", (v - 1 - chunk) * p + rank, micro) for chunk, micro in turns]
        ranks.append(_one_each(forward, backward, ahead=2 * (p - rank - 1) + (v - 1) * p))
    return Schedule("interleaved", m, v * p, tuple(ranks))


def zero_bubble(p: int, m: int) -> Schedule:
    """ZB-H1: 1F1B whose weight gradients wait: rank r stays r of them behind, and ends with them.

    Between the last backwards, where 1F1B idles, each rank does one that it owes.
    """
    ranks = []
    for rank in range(p):
        forward = [Action("F", rank, micro) for micro in range(m)]
        backward = [Action("B", rank, micro) for micro in range(m)]
        actions: list[Action] = []
        for action in _one_each(forward, backward, ahead=p - rank - 1):
            actions.append(action)
            if action.kind == "B" and action.micro >= rank:
                actions.append(Action("W", rank, action.micro - rank))
        actions += [Action("W", rank, micro) for micro in range(max(0, m - rank), m)]
        ranks.append(tuple(actions))
    return Schedule("zero bubble", m, p, tuple(ranks), split=True)


def _one_each(forward: list[Action], backward: list[Action], ahead: int) -> tuple[Action, ...]:
    ahead = min(ahead, len(forward))
    turns = zip(forward[ahead:], backward, strict=False)
    pairs = [action for turn in turns for action in turn]
    return (*forward[:ahead], *pairs, *backward[len(forward) - ahead :])


SCHEDULES: dict[str, Callable[[int, int], Schedule]] = {
    "GPipe": gpipe,
    "1F1B": one_f_one_b,
    "interleaved": interleaved,
    "zero bubble": zero_bubble,
}


def make_schedule(name: str, p: int, m: int) -> Schedule:
    """A schedule by name for p ranks and m micro-batches. ValueError: what is not allowed."""
    if name not in SCHEDULES:
        raise ValueError(f"name={name!r} is no schedule: choose one of {', '.join(SCHEDULES)}")
    if p < 1 or m < 1:
        raise ValueError(f"p={p}, m={m}: give at least 1 of each")
    return SCHEDULES[name](p, m)
