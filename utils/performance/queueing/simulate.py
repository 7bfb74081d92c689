"""A queue on a virtual clock: exact, and instant, so that a slider can move thousands of requests.

The queue is served in order of arrival. Who sends the requests makes all the difference. In an
*open* loop they come when they are due, whatever became of the others: users who don't know each
other. In a *closed* loop each of a number of clients waits for its answer before it sends the next
one: a load generator. A slow server slows it down, and so hides its own queue. (B. Schroeder, A.
Wierman, M. Harchol-Balter, "Open Versus Closed: A Cautionary Tale", NSDI 2006.)
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from heapq import heapify, heappop, heappush

from utils.performance.queueing.requests import Job, Request, Run, merge


def simulate(load: Sequence[Job], servers: int = 1, *, clients: int | None = None) -> Run:
    """Serve the jobs of `load`, which are in order of `due`.

    With `clients` the loop is closed: client k has every `clients`-th job from the k-th on, and
    sends it when it is due and the answer to its last one is there. Without, it is open.
    """
    if servers < 1 or (clients is not None and clients < 1):
        raise ValueError(f"servers={servers}, clients={clients}: give 1 or more")
    if not load:
        raise ValueError("load is empty: give at least one job")
    clients = len(load) if clients is None else clients  # open: each job has a client of its own
    sending = [(job.due, number) for number, job in enumerate(load[:clients])]
    free = [(load[0].due, server) for server in range(servers)]  # since when, for the next job
    heapify(sending)
    done = []
    while sending:
        # Who is not in this heap yet waits for an answer, and so sends later than its first.
        sent, number = heappop(sending)
        since, server = heappop(free)
        start = max(sent, since)
        end = start + load[number].service
        done.append(Request(load[number].due, sent, start, end, server))
        heappush(free, (end, server))
        if number + clients < len(load):
            following = number + clients
            heappush(sending, (max(end, load[following].due), following))
    return Run(servers, tuple(done))


def separate(load: Sequence[Job], servers: int, *, seed: int = 0) -> Run:
    """Serve the jobs with a queue a server, each job in one drawn at random when it comes."""
    if servers < 1:
        raise ValueError(f"servers={servers}: give 1 or more")
    chance = random.Random(seed)
    queues: list[list[Job]] = [[] for _ in range(servers)]
    for job in load:
        chance.choice(queues).append(job)
    return merge([simulate(queue) if queue else Run(1, ()) for queue in queues])
