"""Work of a given length for real workers: hashing so many bytes, outside the GIL, or sleeping.

Imported by every worker process, so it needs the standard library only.
"""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

Kind = Literal["compute", "sleep"]

_DATA = bytes(2**20)


def hash_bytes(count: int) -> None:
    """Hash `count` bytes. hashlib gives the GIL up while it hashes more than 2047 bytes."""
    digest = hashlib.sha256()
    for _ in range(count // len(_DATA)):
        digest.update(_DATA)
    digest.update(memoryview(_DATA)[: count % len(_DATA)])


def bytes_a_second(threads: int, seconds: float = 0.06) -> float:
    """How much each of `threads` threads hashes in a second while all of them do (the median).

    Cores that share a cache, a power budget or an execution unit are slower together, and a task
    costs what it takes while everybody is at work.
    """
    probe = 2**21

    def turn(_: int) -> float:
        start = time.perf_counter()
        hash_bytes(probe)
        return time.perf_counter() - start

    with ThreadPoolExecutor(threads) as pool:
        deadline = time.perf_counter() + seconds
        times = list(pool.map(turn, range(5 * threads)))
        while time.perf_counter() < deadline:
            times += pool.map(turn, range(threads))
    return probe / sorted(times)[len(times) // 2]
