"""Three kinds of work of about the same length, and the worker that does a share of it.

Imported by every process that `race` starts, so it needs the standard library only.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from utils.core.trace import Span, now

WAIT = 0.025  # seconds


def python(loops: int = 400_000) -> int:
    """Pure Python: every step is bytecode, so the GIL is held throughout."""
    total = 0
    for number in range(loops):
        total += number
    return total


def waiting(seconds: float = WAIT) -> None:
    """Waiting, as for a disk or a network: `sleep` gives the GIL up and needs no core."""
    time.sleep(seconds)


def torch(size: int = 384, repeats: int = 18) -> float:
    """Matrix products: torch gives the GIL up while its C++ code computes."""
    import torch as torch_

    matrix = torch_.full((size, size), 1 / size)
    product = matrix
    for _ in range(repeats):
        product = product @ matrix
    return float(product[0, 0])


KINDS: dict[str, Callable[[], object]] = {"python": python, "waiting": waiting, "torch": torch}


def prepare(kind: str) -> None:
    """Get ready off the clock. Torch would use every core: here the *workers* do."""
    if kind == "torch":
        import torch as torch_

        torch_.set_num_threads(1)
        torch(repeats=1)


def timed(kind: str, name: str, lane: str | None = None) -> Span:
    """Do one task; its span says when and, in `args`, what came out.

    The lane is the process and thread that did it, if not given.
    """
    start = now()
    result = KINDS[kind]()
    end = now()
    lane = lane or f"{os.getpid()} {threading.current_thread().name}"
    category = "sleep" if kind == "waiting" else "compute"
    return Span(lane, category, name, start, end, {"result": result})
