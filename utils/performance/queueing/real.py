"""The same queue on real threads: who sends does not wait, the servers take turns at one queue.

A request counts from the moment it is *due*, also if the sender was late: what a busy machine adds
belongs to the answer's time, and leaving it out is how measurements flatter themselves.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from utils.core.experiment import checkpoint, gather
from utils.core.trace import now
from utils.core.workers import crew
from utils.performance.queueing.requests import SECOND, Job, Request, Run
from utils.threads.channels.message_queue import MessageQueue

DEADLINE = 60.0  # seconds to answer what is left after the last request
LOOK = 0.05  # seconds between two looks at whether to stop


def serve(
    load: Sequence[Job], servers: int = 1, *, work: Callable[[float], object] = time.sleep
) -> Run:
    """Serve `load` in an open loop with `servers` threads; `work` does so many seconds of work."""
    if not load:
        raise ValueError("load is empty: give at least one job")
    inbox: MessageQueue[Job] = MessageQueue()
    stop = threading.Event()

    def server(number: int) -> list[Request]:
        answered = []
        for job in inbox:
            if stop.is_set():
                break
            start = now() - begun
            work(job.service / SECOND)
            answered.append(Request(job.due, job.due, start, now() - begun, number))
        return answered

    with crew(servers, "server") as pool:
        begun = now() - load[0].due
        futures = [pool.submit(server, number) for number in range(servers)]
        try:
            for number, job in enumerate(load):
                while (early := (begun + job.due - now()) / SECOND) > 0:
                    checkpoint(number, len(load), f"{inbox.qsize()} in the queue")
                    for future in futures:
                        if future.done():
                            future.result()  # only a server that failed has ended already
                    time.sleep(min(early, LOOK))
                inbox.put(job)
            inbox.close()
            answers = gather(futures, timeout=DEADLINE)
        except BaseException:
            stop.set()
            inbox.close()
            raise
    return Run(servers, tuple(sorted(request for some in answers for request in some)))
