"""Two ways to load an engine. In an open loop nobody waits for anybody; in a closed one all do.

An open loop sends each request at its planned moment, whatever the engine does: so do people who
don't know of each other. In a closed loop a client sends its next request when it has the answer to
the last one, so a slow engine is asked less. (B. Schroeder, A. Wierman, M. Harchol-Balter, "Open
Versus Closed: A Cautionary Tale", NSDI 2006.)
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError

from torch import Tensor

from utils.core.experiment import Control, checkpoint, gather
from utils.core.trace import now
from utils.core.workers import crew
from utils.deep_learning.serving.engine import Engine, Request
from utils.deep_learning.serving.intake import QueueFull
from utils.deep_learning.serving.served import Record
from utils.performance.queueing.requests import SECOND, poisson

DEADLINE = 60.0  # seconds for the answers after the last request
LOOK = 0.05  # seconds between two looks at whether to stop


def arrivals(rate: float, seconds: float, seed: int = 0) -> tuple[int, ...]:
    """Moments (ns) at which `rate` requests a second come at random, about `seconds` long."""
    count = max(2, round(rate * seconds))
    return tuple(job.due for job in poisson(rate, 1.0, count, seed=seed))


def open_loop(
    engine: Engine, images: Tensor, planned: Sequence[int], timeout: float | None = None
) -> tuple[Record, ...]:
    """Submit images (n, *shape) in turn at the planned moments (ns); wait for what becomes of them.

    TimeoutError if something is under way `DEADLINE` seconds after the last was sent.
    """
    images, sent = images.unbind(), []
    began = now()
    for number, due in enumerate(planned):
        while (early := (began + due - now()) / SECOND) > 0:
            checkpoint(number, len(planned), "requests sent")
            time.sleep(min(early, LOOK))
        moment, request = now(), None
        with contextlib.suppress(QueueFull):
            request = engine.submit(images[number % len(images)], timeout)
        sent.append((due, moment, request))
    end = time.monotonic() + DEADLINE
    for _, _, request in sent:
        while request is not None and not _over(request):
            checkpoint()
            if time.monotonic() > end:
                raise TimeoutError(f"a request was still under way after {DEADLINE} s")
    return tuple(record(request, began + due, moment) for due, moment, request in sent)


def closed_loop(engine: Engine, images: Tensor, clients: int, requests: int) -> tuple[Record, ...]:
    """`clients` threads send `requests` images (n, *shape) each, always one after the answer."""
    images, control = images.unbind(), Control()

    def client(number: int) -> list[Record]:
        records = []
        while len(records) < requests and not control.cancelled:
            moment = now()
            image = images[(number * requests + len(records)) % len(images)]
            request = engine.submit(image, block=True)
            request.exception(DEADLINE)
            records.append(record(request, moment, moment))
        return records

    with crew(clients, "client") as pool:
        try:
            futures = [pool.submit(client, number) for number in range(clients)]
            everything = gather(futures, timeout=DEADLINE)
        finally:
            control.cancel()
    return tuple(sorted(entry for some in everything for entry in some))


def record(request: Request | None, planned: int, sent: int) -> Record:
    """What became of a request that is over (None: it was rejected); times in ns of `now()`."""
    if request is None:
        return Record(planned, sent, sent, "rejected")
    if request.fate is None:
        return Record(planned, sent, now(), "cancelled")
    return Record(planned, sent, request.ended, request.fate, request.batch)


def _over(request: Request) -> bool:
    """Whether the request is over; waits for it a moment."""
    with contextlib.suppress(TimeoutError, CancelledError):
        request.exception(LOOK)
    return request.done()
