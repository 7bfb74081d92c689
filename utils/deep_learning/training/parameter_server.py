"""A parameter server: rank 0 has the parameters and the optimiser, workers bring gradients.

Synchronous: the server waits for everybody, adds up, updates once. Asynchronous: it updates with
each gradient as it comes and sends that worker the newest parameters. Nobody waits, but meanwhile
others have updated, so a gradient belongs to parameters that are no longer there: it is *stale*.

Sources: Dean et al., "Large Scale Distributed Deep Networks", NIPS 2012 (asynchronous); Li et al.,
"Scaling Distributed Machine Learning with the Parameter Server", OSDI 2014.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from utils.core import trace
from utils.core.workers import crew
from utils.deep_learning.collectives.group import Group
from utils.deep_learning.digits import Digits
from utils.deep_learning.training.job import Job, Log
from utils.deep_learning.training.strategy import Serial
from utils.threads.primitives.mutex import Mutex

SERVER = 0  # its rank; worker w is rank w + 1


class ParameterServer(Serial):
    """One rank more than workers. All the server's links carry the whole model both ways."""

    resumable = False

    @staticmethod
    def layout(workers: int) -> tuple[int, int]:
        return workers + 1, 1

    def take(self, step: int, which: Tensor) -> Tensor | None:
        return which[:0] if self.group.rank == SERVER else self.job.share(which, self._worker)

    @property
    def _worker(self) -> int:
        return self.group.rank - 1

    def step(self, mine: Digits, whole: int) -> float:
        if self.group.rank == SERVER:
            self._serve_step()
            return 0.0
        loss = self.gradient(mine, whole)
        with trace.span("communicate", "push gradient"):
            self.group.send(self.flat.gradient, SERVER)
        with trace.span("communicate", "pull parameters"):
            self.group.recv(self.flat.values, SERVER)
        return loss

    def _serve_step(self) -> None:
        workers, theirs = range(1, self.group.size), torch.empty_like(self.flat.gradient)
        self.flat.gradient.zero_()
        with trace.span("communicate", "collect gradients"):
            for worker in workers:
                self.group.recv(theirs, worker)
                self.flat.gradient += theirs
        self.update()
        with trace.span("communicate", "hand out parameters"):
            for worker in workers:
                self.group.send(self.flat.values, worker)


class AsynchronousServer(ParameterServer):
    """Workers take whole batches in turn and wait for nobody; a thread serves each of them."""

    def __init__(self, group: Group, model: nn.Module, job: Job) -> None:
        super().__init__(group, model, job)
        # mutex must be held whenever the parameters or the list of stalenesses change, and while
        # parameters are sent: nobody is to get half of an update.
        self.mutex = Mutex(name="parameters")

    def take(self, step: int, which: Tensor) -> Tensor | None:
        return which if step % self.job.workers == self._worker else None

    def run(self, log: Log, stopped: Callable[[], object]) -> None:
        if self.group.rank != SERVER:
            return super().run(log, stopped)
        with crew(self.job.workers, "server") as pool:
            for served in [pool.submit(self._serve, w) for w in range(self.job.workers)]:
                served.result()

    def _serve(self, worker: int) -> None:
        torch.get_num_threads()  # this thread takes over how many its operations may use
        theirs, seen = torch.empty_like(self.flat.gradient), 0
        samples = len(self.job.digits)
        for _ in range(worker, self.job.end, self.job.workers):
            self.group.recv(theirs, worker + 1)
            with self.mutex:
                updates = len(self.staleness)
                self.staleness.append(updates - seen)
                rate = self.job.recipe.rate_at(updates, samples)
                self.optimizer.param_groups[0]["lr"] = rate
                self.flat.gradient.copy_(theirs)
                self.update()
                seen = updates + 1
                self.group.send(self.flat.values, worker + 1)
