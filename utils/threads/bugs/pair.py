"""What a seeded bug is: a wrong program, its corrected twin, and what tells them apart."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Program = Callable[[], None]
Kind = Literal["assertion", "exception", "deadlock", "livelock", "invariant"]


@dataclass(frozen=True)
class Pair:
    """`wrong` fails under some schedule, in the way `kind` says; `right` under none.

    A program takes no arguments, makes its own state and locks, runs two or three threads to
    their end and asserts what must hold. Run a wrong one only in `schedules.check`: outside it
    nobody frees its deadlock.
    """

    name: str
    kind: Kind
    wrong: Program
    right: Program
    moral: str


def together(*bodies: Callable[[], object]) -> None:
    """Run each of `bodies` in a thread of its own, all at once, and wait for all of them."""
    threads = [
        threading.Thread(target=body, name=f"{body.__name__} {number}")
        for number, body in enumerate(bodies, start=1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
