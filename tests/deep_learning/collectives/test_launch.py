"""Whatever ranks do, the caller hears of it, and nothing is left behind."""

import gc
import multiprocessing
import os
import pickle
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from utils.core.experiment import Cancelled, Control, checkpoint, controlled
from utils.deep_learning.collectives import mesh as mesh_module
from utils.deep_learning.collectives.launch import (
    RankFailed,
    _hear_from,
    _process,
    _run,
    launch,
)
from utils.deep_learning.collectives.mesh import mesh

SHARED_MEMORY = Path("/dev/shm")  # where Linux shows it


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch):
    threads, names = set(threading.enumerate()), []

    class Noted(mesh_module.Ring):
        """Others' tests may have shared memory as well: these are the names of ours."""

        def __init__(self, *args):
            super().__init__(*args)
            semaphores = self.sender._filled, self.sender._freed
            names.extend([self.name, *(f"sem.{s._semlock.name}" for s in semaphores)])

    monkeypatch.setattr(mesh_module, "Ring", Noted)
    yield
    assert not [thread.name for thread in set(threading.enumerate()) - threads]
    assert not multiprocessing.active_children()
    gc.collect()  # an error's traceback holds what was there
    assert not [name for name in names if SHARED_MEMORY.joinpath(name.replace("/", "")).exists()]


def total(group, numbers):
    tensor = torch.tensor(numbers, dtype=torch.float64) + group.rank
    group.all_reduce(tensor)
    group.report(("was", os.getpid()))
    return tensor.tolist(), torch.get_num_threads(), threading.current_thread().name


def fail(group, rank):
    if group.rank == rank:
        raise KeyError("no such digit")
    group.barrier()


def kill_myself(group, rank):
    group.report("here")
    if group.rank == rank:
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
    group.barrier()


def meet(group):
    group.barrier()


def wait_for_nobody(group):
    group.recv(torch.zeros(1), (group.rank + 1) % group.size)


def compute_on(group):
    if group.rank == 0:
        raise ValueError("enough")
    while True:
        checkpoint()
        time.sleep(0.01)


def return_a_lock(group):
    return threading.Lock()


def explode(*_):
    raise RuntimeError("cannot be unpickled here")


class Unreadable:
    """Can be sent and not be read."""

    def __reduce__(self):
        return explode, ()


def return_unreadable(group):
    return Unreadable()


@pytest.mark.parametrize(("on", "size"), [("threads", 1), ("threads", 8), ("processes", 2)])
def test_ranks_return_report_and_record(on, size):
    heard = []
    outcome = launch(
        total, size, [1.0, 2.0], on=on, hear=lambda rank, message: heard.append((rank, message))
    )
    extra = sum(range(size))
    for rank, (result, threads, name) in enumerate(outcome.results):
        assert result == [size + extra, 2 * size + extra]
        assert threads == 1 and name == f"rank {rank}"
    assert sorted(rank for rank, _ in heard) == list(range(size))
    assert (os.getpid() in {pid for _, (_, pid) in heard}) == (on == "threads")
    assert set(outcome.trace.lanes) == {f"rank {rank}" for rank in range(size)}


def test_the_error_is_of_the_rank_that_failed_first():
    with pytest.raises(RankFailed, match="rank 1 raised KeyError: 'no such digit'") as error:
        launch(fail, 3, 1, on="threads")
    assert error.value.rank == 1 and "raise KeyError" in error.value.details


def test_a_killed_rank_is_noticed_and_its_report_kept():
    """Long before the deadline, which is beyond a test's."""
    heard = []
    with pytest.raises(RankFailed, match="rank 1 died with exit code"):
        launch(kill_myself, 2, 1, deadline=600, hear=lambda *told: heard.append(told))
    assert (1, "here") in heard


def test_a_rank_killed_before_it_began(monkeypatch):
    start = multiprocessing.get_context("spawn").Process.start

    def start_and_kill(process):
        start(process)
        if process.name == "rank 1":
            process.kill()

    monkeypatch.setattr(multiprocessing.get_context("spawn").Process, "start", start_and_kill)
    with pytest.raises(RankFailed, match="rank 1 died with exit code"):
        launch(meet, 2)


def test_a_rank_that_cannot_be_started_ends_those_that_were(monkeypatch):
    start = multiprocessing.get_context("spawn").Process.start

    def refuse(process):
        if process.name == "rank 1":
            raise OSError("no more processes")
        start(process)

    monkeypatch.setattr(multiprocessing.get_context("spawn").Process, "start", refuse)
    with pytest.raises(OSError, match="no more processes"):
        launch(meet, 2)


def as_a_process_would(payload):
    """What the caller hears of a rank that is sent `payload`, without the 3 s of a process."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    with ours, mesh(1) as ends:
        thread = threading.Thread(target=_process, args=(payload, 0, ends[0], theirs))
        thread.start()  # one of its own: a rank names its thread, and limits its torch
        thread.join()
        theirs.close()
        [(_, kind, (reason, _))] = _hear_from({ours: 0}, [])
    return kind, reason


def test_what_cannot_be_pickled_or_unpickled_is_named():
    lock = as_a_process_would(pickle.dumps(partial(_run, return_a_lock, (), 1, 5.0)))
    assert lock == ("failed", "raised TypeError: cannot pickle '_thread.lock' object")
    kind, reason = as_a_process_would(pickle.dumps(partial(_run, meet, (Unreadable(),), 1, 5.0)))
    assert kind == "failed" and reason.startswith("cannot unpickle what it should do: RuntimeError")
    kind, reason = as_a_process_would(pickle.dumps(partial(_run, return_unreadable, (), 1, 5.0)))
    assert kind == "failed" and reason.startswith("sent what cannot be unpickled: RuntimeError")


def test_an_error_of_the_listener_ends_everything():
    def hear(rank, message):
        raise ZeroDivisionError("listener")

    with pytest.raises(ZeroDivisionError, match="listener"):
        launch(total, 2, [1.0], on="threads", hear=hear)


@pytest.mark.parametrize(("on", "after"), [("threads", 0), ("threads", 0.3), ("processes", 0.3)])
def test_cancel_ends_ranks_that_wait_for_each_other(on, after):
    control = Control()
    timer = threading.Timer(after, control.cancel)
    timer.start()
    with controlled(control), pytest.raises(Cancelled):
        launch(wait_for_nobody, 2, on=on, deadline=600)  # a test has less
    timer.join()


def test_a_failure_ends_threads_that_compute():
    with pytest.raises(RankFailed, match="rank 0 raised ValueError: enough"):
        launch(compute_on, 2, on="threads")


def test_nobody_waits_longer_than_the_deadline():
    with pytest.raises(RankFailed, match="raised TimeoutError: nothing came"):
        launch(wait_for_nobody, 2, on="threads", deadline=0.4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size=0, threads=1: give at least 1"),
        ({"size": 2, "threads": 0}, "size=2, threads=0: give at least 1"),
        ({"size": 2, "on": "moons"}, "on='moons' is not allowed: give 'processes' or 'threads'"),
        ({"size": 2, "deadline": -1}, "deadline=-1 is not allowed: give seconds above 0"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError) as error:
        launch(meet, **arguments)
    assert message in str(error.value)


def test_the_number_of_torchs_threads_comes_back():
    before = torch.get_num_threads()
    launch(total, 2, [1.0], on="threads", threads=3)
    assert torch.get_num_threads() == before
