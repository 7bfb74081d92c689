"""What the operating system knows about a thread, and a process that keeps asking it.

The observer must be another process. A Python thread that looks at the others holds the GIL while
it looks, so it would never find one of them running Python code.

Linux tells, for each thread, in /proc/<pid>/task/<thread>/ (proc_pid_stat(5), proc_pid_wchan(5);
kernel documentation, sched-stats.rst):

- `stat`: one letter. R: running *or* waiting for a core; S: asleep until something happens.
- `schedstat`: ns spent on a core, and ns spent waiting for one. The second number grows when the
  thread is dispatched, by all the time it has just waited.
- `wchan`: the kernel function in which it is asleep.

This file also runs as a script and imports little, so that the observer starts quickly.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

EVERY = 0.002  # seconds between two looks: finer than the GIL's 5 ms


class Sample(NamedTuple):
    """At `at` (ns of `perf_counter_ns`) thread `thread` was in `letter`; the rest is in ns."""

    thread: int
    at: int
    letter: str
    on_core: int
    waited: int


def available() -> bool:
    """Whether this system tells (Linux with scheduler statistics)."""
    return Path("/proc/self/task").is_dir() and Path("/proc/self/schedstat").exists()


def letter(thread: int) -> str:
    """State letter of a thread of this process, by native id."""
    return _letter(Path(f"/proc/self/task/{thread}/stat").read_bytes())


def kernel_function(thread: int) -> str:
    """Where in the kernel a thread of this process is asleep; "0" if it is not, or on a secret."""
    return Path(f"/proc/self/task/{thread}/wchan").read_text()


class Watch:
    """A running observer. `add` may be called from any thread; `samples` are there at the end."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        self._process, self._pipe = process, process.stdin.fileno()
        self.samples: list[Sample] = []

    def add(self, thread: int) -> None:
        """Watch the thread with this native id from now on, until it ends."""
        os.write(self._pipe, f"{thread}\n".encode())  # atomic: shorter than PIPE_BUF, pipe(7)

    def _finish(self) -> None:
        # Closing the observer's input is the sign to report; it sees our death the same way.
        report, _ = self._process.communicate(timeout=10)
        self.samples = [Sample(*row) for row in json.loads(report)]


@contextlib.contextmanager
def watching() -> Iterator[Watch]:
    """Run an observer of this process during the block. It is ready when the block begins."""
    command = [sys.executable, "-I", __file__, str(os.getpid())]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        try:
            watch = Watch(process)
            assert process.stdout is not None
            if not select.select([process.stdout], [], [], 10)[0]:
                raise TimeoutError("the observer did not start within 10 s")
            process.stdout.readline()  # "ready"
            yield watch
            watch._finish()
        finally:
            process.kill()


def _letter(stat: bytes) -> str:
    # "12 (any name, even with brackets) S 1 …"
    return chr(stat[stat.rindex(b")") + 2])


def _observe(pid: int) -> list[Sample]:
    """Sample the threads whose ids arrive on standard input, until that is closed."""
    files: dict[int, tuple[int, int]] = {}
    samples: list[Sample] = []
    unfinished = b""
    look = time.perf_counter()
    while True:
        look += EVERY
        wait = max(0.0, look - time.perf_counter())
        if select.select([0], [], [], wait)[0]:
            arrived = os.read(0, 4096)
            if not arrived:
                return samples
            *lines, unfinished = (unfinished + arrived).split(b"\n")
            for line in lines:
                folder = f"/proc/{pid}/task/{int(line)}"
                with contextlib.suppress(FileNotFoundError):  # it has ended already
                    stat, schedstat = (
                        os.open(f"{folder}/{name}", os.O_RDONLY) for name in ("stat", "schedstat")
                    )
                    files[int(line)] = stat, schedstat
        for thread, (stat, schedstat) in list(files.items()):
            try:
                at = time.perf_counter_ns()
                state = _letter(os.pread(stat, 512, 0))
                on_core, waited, _ = os.pread(schedstat, 128, 0).split()
            except ProcessLookupError:  # the thread has ended
                os.close(stat)
                os.close(schedstat)
                del files[thread]
            else:
                samples.append(Sample(thread, at, state, int(on_core), int(waited)))


if __name__ == "__main__":
    print("ready", flush=True)
    json.dump(_observe(int(sys.argv[1])), sys.stdout)
