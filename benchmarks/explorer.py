"""The schedule explorer on the suite of seeded bugs, beside frontrun on the cases both can run.

For the comparison set FRONTRUN_PYTHON to a Python of the same version with frontrun installed:
`python -m venv DIR`, then `DIR/bin/pip install frontrun`. Each of its cases runs in a process of
its own; the time is that of the search alone, for both. frontrun checks no invariants during a run:
those pairs are left out. Where a program uses this course's semaphores or conditions, it gets those
of `threading`, which frontrun replaces by its own.

Our programs keep their state in variables that nested functions share. frontrun 0.7 follows
attributes better: with the state in an object's attributes it finds "one seat sold twice", "None
after the check" and "flag before data" as well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from utils.threads import bugs, classics, schedules
from utils.threads.bugs import Pair

SECONDS = 20.0  # a search may take
_LIMIT = 60.0  # seconds for a process with frontrun, its start included
Side = Literal["wrong", "right"]
SIDES: tuple[Side, Side] = ("wrong", "right")


@dataclass(frozen=True)
class Verdict:
    """What a tool says of one program: right or wrong (None: it can't tell), after how much."""

    holds: bool | None
    runs: int | None = None
    seconds: float = 0.0

    def __str__(self) -> str:
        word = {True: "holds", False: "fails", None: "?"}[self.holds]
        runs = "" if self.runs is None else f"{self.runs:5}"
        return f"{word:5} {runs:>5} {self.seconds:6.2f} s"


def ours(pair: Pair, side: Side) -> Verdict:
    report = schedules.check(getattr(pair, side), preemptions=2, seconds=SECONDS)
    holds = {"proved": True, "failed": False, "inconclusive": None}[report.verdict]
    return Verdict(holds, report.tried, report.seconds)


def theirs(pair: Pair, side: Side, python: str) -> Verdict:
    """The same by frontrun, in a process of its own with a hard limit."""
    search = os.pathsep.join(path for path in sys.path if path)  # numpy and so on are ours
    try:
        done = subprocess.run(
            [python, "-m", "benchmarks.with_frontrun", pair.name, side],
            env=os.environ | {"PYTHONPATH": search, "FRONTRUN_ACTIVE": "1"},
            capture_output=True,
            text=True,
            timeout=_LIMIT,
        )
    except subprocess.TimeoutExpired:
        return Verdict(None, None, _LIMIT)
    if done.returncode != 0:
        raise RuntimeError(f"{pair.name!r} with frontrun: {done.stderr[-500:]}")
    return Verdict(**json.loads(done.stdout.splitlines()[-1]))


def figures() -> Iterator[str]:
    pairs = (*bugs.PAIRS, *classics.PAIRS)
    python = os.environ.get("FRONTRUN_PYTHON")
    mine: dict[tuple[str, Side], Verdict] = {}
    other: dict[tuple[str, Side], Verdict] = {}
    heading = "".join(f"{f'{tool}, {side}':24}" for tool in ("ours", "frontrun") for side in SIDES)
    yield f"{'verdict, schedules, time':42}{heading if python else heading[:48]}".rstrip()
    for pair in pairs:
        line = f"{pair.name:42}"
        for side in SIDES:
            mine[pair.name, side] = ours(pair, side)
            line += f"{mine[pair.name, side]!s:24}"
        for side in SIDES if python and pair.kind != "invariant" else ():
            other[pair.name, side] = theirs(pair, side, python)
            line += f"{other[pair.name, side]!s:24}"
        yield line.rstrip()
    yield f"ours: {_summary(mine)}"
    if python:
        same = {case: verdict for case, verdict in mine.items() if case in other}
        yield f"ours, cases of both: {_summary(same)}"
        yield f"frontrun, cases of both: {_summary(other)}"
    else:
        yield "frontrun: set FRONTRUN_PYTHON to a Python with frontrun installed to compare"


def _summary(verdicts: dict[tuple[str, Side], Verdict]) -> str:
    parts = []
    for side, wanted, verb in (("wrong", False, "found"), ("right", True, "proved")):
        those = [verdict for (_, which), verdict in verdicts.items() if which == side]
        correct = sum(verdict.holds is wanted for verdict in those)
        slowest = max(verdict.seconds for verdict in those)
        parts.append(
            f"{correct} of {len(those)} {side} ones {verb} in "
            f"{sum(v.seconds for v in those):.1f} s, slowest {slowest:.2f} s"
        )
    return "; ".join(parts)
