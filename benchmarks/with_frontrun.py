"""Run one program of a pair under frontrun: `python -m benchmarks.with_frontrun NAME wrong|right`.

frontrun (tried: 0.7) explores a state, workers on it and an
invariant at the end. Our programs are whole: they make their state, run threads, and assert. So the
program runs in a thread of its own up to the point where it would start its threads; frontrun runs
them; then the program goes on to its assertion. Needs a Python with frontrun and the course.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import traceback
from _thread import allocate_lock, start_new_thread
from collections.abc import Callable

import frontrun

from utils.threads import bugs, classics
from utils.threads.bugs.pair import Program

SECONDS = 20.0  # for the whole search, as for ours


class Paused:
    """`program`, run as far as its `together`, whose threads are somebody else's business.

    It waits on bare locks in a bare thread: frontrun replaces those of `threading`.
    """

    def __init__(self, program: Program) -> None:
        self.bodies: tuple[Callable[[], object], ...] = ()
        self.error: BaseException | None = None
        self._program = program
        self._reached, self._may_go_on, self._ended = (allocate_lock() for _ in range(3))
        for gate in (self._reached, self._may_go_on, self._ended):
            gate.acquire()
        start_new_thread(self._run, ())
        self._reached.acquire()

    def _run(self) -> None:
        names = self._program.__globals__  # where the program looks its helpers up
        names["together"] = self._together
        for name in {"Condition", "Semaphore"} & set(names):
            names[name] = getattr(threading, name)  # frontrun can't see the locks ours are made of
        try:
            self._program()
        except BaseException as error:
            self.error = error
        finally:
            if not self.bodies:
                self._reached.release()
            self._ended.release()

    def _together(self, *bodies: Callable[[], object]) -> None:
        self.bodies = bodies
        self._reached.release()
        self._may_go_on.acquire()

    def holds(self) -> bool:
        """Let the program go on to its assertions; whether they hold."""
        self._may_go_on.release()
        self._ended.acquire()
        return self.error is None


def explore(program: Program) -> dict[str, object]:
    """frontrun's verdict (True: holds, False: fails, None: don't know), schedules and seconds."""
    number = len(Paused(program).bodies)
    workers = [lambda state, index=index: state.bodies[index]() for index in range(number)]
    start = time.perf_counter()
    try:
        result = frontrun.explore(
            setup=lambda: Paused(program),
            workers=workers,
            invariant=Paused.holds,
            preemption_bound=2,
            clock="virtual",  # with the real one it times out wherever a condition is waited for
            detect_io=False,
            reproduce_on_failure=0,
            total_timeout=SECONDS,
        )
        holds, runs = result.property_holds, result.num_explored
    except Exception as error:  # it passes on what a worker raises
        frames = traceback.extract_tb(error.__traceback__)
        if not any(frame.filename == program.__code__.co_filename for frame in frames):
            raise
        holds, runs = False, None
    return {"holds": holds, "runs": runs, "seconds": time.perf_counter() - start}


if __name__ == "__main__":
    pairs = {pair.name: pair for pair in (*bugs.PAIRS, *classics.PAIRS)}
    print(json.dumps(explore(getattr(pairs[sys.argv[1]], sys.argv[2]))))
