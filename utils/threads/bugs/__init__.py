"""Small concurrent programs, each wrong in one way and right in one way.

They are read in Chapter 2, and they are the schedule explorer's examination: every wrong one must
be found, every right one proved, on `threading`'s primitives and on ours.
"""

from utils.threads.bugs.checks import CHECKS
from utils.threads.bugs.deadlocks import DEADLOCKS
from utils.threads.bugs.pair import Pair, together
from utils.threads.bugs.updates import UPDATES
from utils.threads.bugs.waits import WAITS

__all__ = ["PAIRS", "Pair", "together"]

PAIRS: tuple[Pair, ...] = (*UPDATES, *CHECKS, *WAITS, *DEADLOCKS)
