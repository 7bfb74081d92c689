"""A rendezvous: two threads meet, and neither goes on before the other is there.

Each says "I am here" with one semaphore and waits for the other one's. Say it first, then wait;
the other way round both wait for a word that nobody gives.

Source: A. Downey, "The Little Book of Semaphores", section 3.3.
"""

from __future__ import annotations

from utils.threads.bugs.pair import Pair, together
from utils.threads.primitives.semaphore import Semaphore


def wrong() -> None:
    steps: list[str] = []
    ada_is_here, bob_is_here = Semaphore(0), Semaphore(0)

    def ada() -> None:
        steps.append("ada comes")
        bob_is_here.acquire()
        ada_is_here.release()
        steps.append("ada goes")

    def bob() -> None:
        steps.append("bob comes")
        ada_is_here.acquire()
        bob_is_here.release()
        steps.append("bob goes")

    together(ada, bob)
    assert {step.split()[1] for step in steps[:2]} == {"comes"}


def right() -> None:
    steps: list[str] = []
    ada_is_here, bob_is_here = Semaphore(0), Semaphore(0)

    def ada() -> None:
        steps.append("ada comes")
        ada_is_here.release()
        bob_is_here.acquire()
        steps.append("ada goes")

    def bob() -> None:
        steps.append("bob comes")
        bob_is_here.release()
        ada_is_here.acquire()
        steps.append("bob goes")

    together(ada, bob)
    assert {step.split()[1] for step in steps[:2]} == {"comes"}


PAIR = Pair(
    "rendezvous",
    "deadlock",
    wrong,
    right,
    "Say that you are here before you wait for the others.",
)
