"""What this machine has, and what it reaches: the ceilings every measurement is held against.

Importing this module needs the standard library only, so `course.py doctor` can use it before
anything is installed.
"""

from __future__ import annotations

import math
import os
import platform
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_CGROUP = Path("/sys/fs/cgroup")


def affinity() -> int:
    """Logical cores this process may be scheduled on (sched_getaffinity(2) where it exists)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quota(root: Path = _CGROUP, membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """The cgroup's CPU quota in cores, or None without one.

    A container may *see* 64 cores and be allowed the time of 1.5. Every ancestor's limit
    counts, so the smallest wins. Sources: Linux kernel, cgroup-v2.rst (`cpu.max`) and
    sched-bwc.rst (`cpu.cfs_quota_us`).
    """
    limits = [_limit(folder) for folder in _folders(root, membership)]
    return min((limit for limit in limits if limit is not None), default=None)


def _folders(root: Path, membership: Path) -> Iterator[Path]:
    """The cgroup folders of this process, from its own up to the root."""
    yield from (root, root / "cpu")
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "cpu" if controllers else root
        folder = base / path.lstrip("/")
        yield from (folder, *(p for p in folder.parents if p != base and p.is_relative_to(base)))


def _limit(folder: Path) -> float | None:
    try:  # version 2: "max 100000" or "150000 100000"
        allowed, period = (folder / "cpu.max").read_text().split()
        return None if allowed == "max" else int(allowed) / int(period)
    except (OSError, ValueError):
        pass
    try:  # version 1: -1 means no limit
        allowed_us = int((folder / "cpu.cfs_quota_us").read_text())
        return (
            allowed_us / int((folder / "cpu.cfs_period_us").read_text()) if allowed_us > 0 else None
        )
    except (OSError, ValueError):
        return None


def cores() -> int:
    """Cores this process can really keep busy: the smaller of affinity and quota, at least 1.

    These are logical cores: two hardware threads of one core count as two. A quota of 2.5 cores
    counts as 2.
    """
    limit = quota()
    return max(1, affinity() if limit is None else min(affinity(), math.floor(limit)))


@contextmanager
def pinned(count: int) -> Iterator[None]:
    """Restrict this thread, and the threads and processes it starts, to `count` cores.

    A thread inherits the affinity of the one that starts it (sched_setaffinity(2)), so a worker
    pool made inside the block is confined as well. Linux only: elsewhere OSError says so.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise OSError(f"Python's os.sched_setaffinity does not exist on {platform.system()}")
    before = os.sched_getaffinity(0)
    if not 1 <= count <= len(before):
        raise ValueError(f"count={count} is not allowed: give 1 to {len(before)}")
    os.sched_setaffinity(0, set(sorted(before)[:count]))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def gil() -> bool:
    """Is the global interpreter lock on? (PEP 703; always on before Python 3.13.)"""
    return getattr(sys, "_is_gil_enabled", lambda: True)()


def about_gil() -> str:
    """Whether pure-Python threads can run at the same time here, and what to do if not."""
    if not gil():
        return "The GIL is off: pure-Python threads run at the same time."
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return (
            "The GIL is on: this Python can run without it, but a package has switched it on "
            "again. Try the environment variable PYTHON_GIL=0."
        )
    return (
        "The GIL is on: only one thread at a time runs Python code. For an interpreter without it, "
        "install a free-threaded Python 3.14, called python3.14t (python.org's installers offer "
        "it, or: uv python install 3.14t), remove the folder .venv, and start the course with "
        "it: python3.14t course.py lab"
    )


def gpu() -> str | None:
    """Name of the accelerator torch can use, or None."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return "Apple GPU (MPS)" if torch.backends.mps.is_available() else None


@dataclass(frozen=True)
class Ceilings:
    """What one thread and all cores reach here: `read` in GB/s, `matrix` in GFLOP/s."""

    threads: tuple[int, ...]
    read: tuple[float, ...]
    matrix: tuple[float, ...]


def ceilings(seconds: float = 1.0) -> Ceilings:
    """Measure memory read bandwidth and float32 matrix rate, within about `seconds`.

    Each figure is the best of the repeats that fit: a ceiling is what the machine can do, and
    noise only ever takes away from it. Torch's thread count is put back afterwards.
    """
    import torch

    from utils.core.workers import intra_op

    threads = tuple(sorted({1, cores()}))
    share = seconds / (2 * len(threads))
    big = torch.ones(128 * 2**20)  # 512 MiB: larger than any cache, about a small model
    square = torch.ones(768, 768)
    read, matrix = [], []
    for count in threads:
        with intra_op(count):
            read.append(big.nbytes / _best(lambda: big.sum(), share) / 1e9)
            matrix.append(2 * 768**3 / _best(lambda: square @ square, share) / 1e9)
    return Ceilings(threads, tuple(read), tuple(matrix))


def _best(function: object, seconds: float) -> float:
    deadline, best = time.perf_counter() + seconds, math.inf
    while time.perf_counter() < deadline or best == math.inf:
        start = time.perf_counter()
        function()  # type: ignore[operator]
        best = min(best, time.perf_counter() - start)
    return best


@dataclass(frozen=True)
class CoreUse:
    """Busy share (0 to 1) of each core over time.

    `busy[i][core]` is the mean from `at[i]` to `at[i + 1]`, in ns of `now()`.
    """

    at: tuple[int, ...]
    busy: tuple[tuple[float, ...], ...]


class CoreMeter:
    """Samples how busy each core is while its block runs (the whole machine, not us alone)."""

    def __init__(self, interval: float = 0.1) -> None:
        self._interval = interval
        self._started = 0
        self._samples: list[tuple[int, tuple[float, ...]]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="core-meter", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)

    @property
    def latest(self) -> tuple[float, ...]:
        """The last sample, one number a core; empty before the first."""
        return self._samples[-1][1] if self._samples else ()

    @property
    def use(self) -> CoreUse:
        samples = self._samples.copy()
        ends = (at for at, _ in samples)
        return CoreUse((self._started, *ends), tuple(busy for _, busy in samples))

    def _watch(self) -> None:
        import psutil

        before = psutil.cpu_times(percpu=True)
        self._started = time.perf_counter_ns()
        stopped = False
        while not stopped:  # once more when told to stop, so that the end is covered too
            stopped = self._stop.wait(self._interval)
            after = psutil.cpu_times(percpu=True)
            self._samples.append((time.perf_counter_ns(), tuple(map(_busy, before, after))))
            before = after


def _busy(before: tuple[float, ...], after: tuple[float, ...]) -> float:
    waiting = sum(
        getattr(after, name, 0.0) - getattr(before, name, 0.0) for name in ("idle", "iowait")
    )
    total = sum(after) - sum(before)
    return min(1.0, max(0.0, 1 - waiting / total)) if total > 0 else 0.0


def switches() -> tuple[int, int] | None:
    """Voluntary and involuntary context switches of this process's threads so far, ended ones too.

    None on Windows, which does not tell them apart (getrusage(2): ru_nvcsw, ru_nivcsw).
    """
    try:
        import resource
    except ImportError:
        return None
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_nvcsw, usage.ru_nivcsw


def cpu_seconds() -> float:
    """CPU seconds used so far by this process and its children, dead or alive."""
    import psutil

    me = psutil.Process()
    used = me.cpu_times()
    total = used.user + used.system + used.children_user + used.children_system
    for child in me.children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total
