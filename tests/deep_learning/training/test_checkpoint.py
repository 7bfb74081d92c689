"""A training that is killed leaves its last checkpoint, and nothing else."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest
import torch

from utils.deep_learning import digits
from utils.deep_learning.collectives import mesh
from utils.deep_learning.recipe import Recipe
from utils.deep_learning.training import checkpoint
from utils.deep_learning.training.train import TrainingFailed, train

DATA = digits.load()[0][:500]
RECIPE = Recipe(epochs=4, batch=50)


@pytest.fixture
def segments(monkeypatch):
    """The names of all shared memory that is made meanwhile."""
    names = []

    class Noted(mesh.Ring):
        def __init__(self, *args):
            super().__init__(*args)
            names.append(self.name)

    monkeypatch.setattr(mesh, "Ring", Noted)
    return names


def kill_when(path: Path, name: str) -> None:
    """End the process called `name` as soon as there is a checkpoint."""
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    for process in multiprocessing.active_children():
        if process.name == name:
            os.kill(process.pid, signal.SIGKILL if sys.platform != "win32" else signal.SIGTERM)


def test_a_killed_worker_is_named_and_a_resumed_run_is_the_unbroken_one(tmp_path, segments):
    path = tmp_path / "saved"
    long = Recipe(epochs=400, batch=50)
    killer = threading.Thread(target=kill_when, args=(path, "rank 1"))
    killer.start()
    with pytest.raises(TrainingFailed, match="rank 1 died with exit code") as error:
        train("data parallel", recipe=long, data=DATA, checkpoint=path, save_every=10)
    killer.join()
    assert error.value.partial.losses  # what was reported until then
    assert not multiprocessing.active_children()
    assert segments
    for name in segments:
        with pytest.raises(FileNotFoundError):
            SharedMemory(name)

    done = torch.load(path, weights_only=True)["step"]
    options = {"recipe": long, "data": DATA, "on": "threads", "steps": done + 25}
    resumed = train("data parallel", checkpoint=path, **options)
    unbroken = train("data parallel", **options)
    assert len(resumed.losses) == 25
    assert resumed.losses == unbroken.losses[done:]  # to the bit
    for name, value in unbroken.state.items():
        assert torch.equal(resumed.state[name], value)


@pytest.mark.parametrize("strategy", ["serial", "overlapped", "accumulation"])
def test_in_two_halves_is_in_one_piece(tmp_path, strategy):
    options = {"recipe": RECIPE, "data": DATA, "on": "threads"}
    halves = {"checkpoint": tmp_path / "saved", "save_every": 9, **options}
    train(strategy, steps=20, **halves)
    second = train(strategy, **halves)
    whole = train(strategy, **options)
    assert second.losses == whole.losses[18:]
    assert all(torch.equal(second.state[name], value) for name, value in whole.state.items())


def test_the_checkpoint_of_another_training_is_refused(tmp_path):
    path = tmp_path / "saved"
    train("serial", recipe=RECIPE, data=DATA, steps=5, save_every=5, checkpoint=path, on="threads")
    for other in ({"recipe": Recipe(epochs=4, batch=50, rate=0.01)}, {"model": "tower"}):
        options = {"recipe": RECIPE, "data": DATA, "on": "threads", "checkpoint": path, **other}
        with pytest.raises(TrainingFailed, match="of another training"):
            train("serial", **options)


def test_a_save_that_breaks_off_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "saved"
    options = {"recipe": RECIPE, "data": DATA, "on": "threads", "checkpoint": path}
    train("serial", steps=5, save_every=5, **options)
    before = path.read_bytes()

    def disk_full(document, file):
        file.write(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", disk_full)
    with pytest.raises(TrainingFailed, match="no space left"):
        train("serial", steps=10, save_every=5, **options)
    assert path.read_bytes() == before
