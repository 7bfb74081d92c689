"""How much faster `workers` can be: the laws of Amdahl, of Gustafson, and of universal scalability.

Amdahl: the work is given; its serial share takes as long as ever, only the rest is divided. (G.
Amdahl, "Validity of the Single Processor Approach to Achieving Large Scale Computing
Capabilities", AFIPS 1967.) Gustafson: the time is given; the work grows with the workers, and the
share is that of the time of the *parallel* run. (J. Gustafson, "Reevaluating Amdahl's Law", CACM
31(5), 1988.) Universal scalability: every worker must also agree with every other one, so that more
workers can be slower. (N. Gunther, "A General Theory of Computational Scalability Based on
Rational Functions", 2008, https://arxiv.org/abs/0808.1431.)

Numbers may be arrays, as NumPy broadcasts them. `workers` are 1 or more, shares are 0 to 1.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np

Numbers = TypeVar("Numbers", float, np.ndarray)


def amdahl(workers: Numbers, serial: Numbers) -> Numbers:
    """Times as fast as one worker, if the share `serial` of one worker's time can't be divided."""
    return usl(workers, _share("serial", serial), 0.0)


def amdahl_limit(serial: float) -> float:
    """What `amdahl` tends to with ever more workers."""
    return math.inf if _share("serial", serial) == 0 else 1 / serial


def gustafson(workers: Numbers, serial: Numbers) -> Numbers:
    """Times as much as one worker does in that time, if its share `serial` does not grow."""
    share = _share("serial", serial)
    return share + (1 - share) * _workers(workers)


def usl(workers: Numbers, contention: Numbers, coherence: Numbers) -> Numbers:
    """Times as fast as one worker, if workers queue (`contention`) and exchange (`coherence`).

    Of one worker's time, `contention` (σ) is the share that only one at a time may do, and
    `coherence` (κ) what each adds for every other worker. κ = 0 leaves Amdahl's law.
    """
    share, pairs = _share("contention", contention), _cost("coherence", coherence)
    n = _workers(workers)
    return n / (1 + share * (n - 1) + pairs * n * (n - 1))


def optimum(contention: float, coherence: float) -> float:
    """How many workers are fastest; more are slower. `inf` if each one more still helps."""
    share, pairs = _share("contention", contention), _cost("coherence", coherence)
    if pairs == 0:
        return math.inf if share < 1 else 1.0
    return max(1.0, math.sqrt((1 - share) / pairs))


def _workers(workers: Numbers) -> Numbers:
    if not np.all(np.isfinite(workers) & (np.asarray(workers) >= 1)):
        raise ValueError(f"workers={workers!r} is not allowed: give finite numbers, 1 or more")
    return workers


def _share(name: str, value: Numbers) -> Numbers:
    if not np.all((np.asarray(value) >= 0) & (np.asarray(value) <= 1)):  # false for nan
        raise ValueError(f"{name}={value!r} is not allowed: give a share, 0 to 1")
    return value


def _cost(name: str, value: Numbers) -> Numbers:
    if not np.all((np.asarray(value) >= 0) & np.isfinite(value)):
        raise ValueError(f"{name}={value!r} is not allowed: give a finite number, 0 or more")
    return value
