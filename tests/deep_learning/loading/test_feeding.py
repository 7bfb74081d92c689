"""Every way delivers the same batches, and nothing is left behind, wherever one stops."""

import gc
import itertools
import multiprocessing
import os
import pickle
import threading
from pathlib import Path

import psutil
import pytest
import torch

from utils.core.experiment import Cancelled, Control, checkpoint, controlled
from utils.deep_learning import digits
from utils.deep_learning.loading import feeding
from utils.deep_learning.loading.augmented import Augmented, distort
from utils.deep_learning.loading.feeding import feed, loader, plot, step_time
from utils.deep_learning.loading.prefetch import prefetched


def segments() -> list[str]:
    """torch's shared memory (torch_<pid>_…) that is ours, or of a process that has ended."""
    names = [path.name for path in Path("/dev/shm").glob("torch_*")]
    pids = {name: int(name.split("_")[1]) for name in names}
    return [name for name, pid in pids.items() if pid == os.getpid() or not psutil.pid_exists(pid)]


def ended(before: set[threading.Thread]) -> bool:
    """No thread but those of `before` is left. A queue's thread ends soon after its processes."""
    for thread in set(threading.enumerate()) - before:
        thread.join(20)
    return set(threading.enumerate()) == before


# ---------------------------------------------------------------- digits that take work


@pytest.mark.parametrize("fineness", [1, 4])
def test_a_digit_neither_turned_nor_sheared_stays_as_it_is(fineness) -> None:
    image = digits.load()[0].images[0]
    same = distort(image, 0.0, fineness)
    assert same.shape == (1, 28, 28)
    assert (same - image).abs().mean() < (1e-5 if fineness == 1 else 0.1)


def test_a_turned_digit_is_another_one_and_keeps_its_label() -> None:
    data, train = Augmented(10, 2), digits.load()[0]
    image, label = data[3]
    assert label == train.labels[3]
    assert not torch.allclose(image, train.images[3])
    assert torch.equal(image, data[3][0])  # the angle depends on the index alone


def test_finer_is_more_work_and_nearly_the_same_picture() -> None:
    coarse, fine, finer = (Augmented(1, fineness)[0][0] for fineness in (1, 4, 8))
    assert (fine - finer).abs().mean() < (coarse - finer).abs().mean()


def test_a_batch_is_its_digits_and_says_who_made_it_when() -> None:
    data = Augmented(10, 2)
    batch = data.__getitems__([4, 1])
    assert torch.equal(batch.images, torch.stack([data[4][0], data[1][0]]))
    assert batch.labels.tolist() == [data[4][1], data[1][1]]
    assert batch.start < batch.end and batch.lane == threading.current_thread().name
    assert len(pickle.dumps(data)) < 500  # settings, not images


# ---------------------------------------------------------------- prefetching


def test_prefetching_keeps_the_order_and_loses_nothing() -> None:
    with prefetched(range(100), 3) as ready:
        assert list(ready) == list(range(100))


def test_prefetching_is_never_further_ahead_than_it_may() -> None:
    made = []
    source = (made.append(number) or number for number in range(50))
    with prefetched(source, 2) as ready:
        for taken, _ in enumerate(ready, start=1):
            assert len(made) <= taken + 2 + 1


def test_the_loader_works_while_we_do() -> None:
    """It makes the next batch although we have not asked for it yet."""
    second = threading.Event()
    source = (second.set() or number if number else number for number in range(2))
    with prefetched(source, 1) as ready:
        assert next(ready) == 0
        assert second.wait(10)


def test_an_error_comes_after_the_batches_before_it() -> None:
    def source():
        yield 1
        raise ArithmeticError("a bad picture")

    threads = set(threading.enumerate())
    with prefetched(source(), 4) as ready:
        assert next(ready) == 1
        with pytest.raises(ArithmeticError, match="a bad picture"):
            next(ready)
    assert set(threading.enumerate()) == threads


def test_who_leaves_early_leaves_no_thread_behind() -> None:
    threads = set(threading.enumerate())
    with pytest.raises(KeyError), prefetched(itertools.count(), 2) as ready:
        next(ready)
        raise KeyError
    assert set(threading.enumerate()) == threads


# ---------------------------------------------------------------- the experiment


def test_a_step_by_theory() -> None:
    assert step_time(load=6, compute=2, loaders=0, cores=8) == 8
    assert step_time(load=6, compute=2, loaders=1, cores=8) == 6  # loading is the bottleneck
    assert step_time(load=6, compute=2, loaders=2, cores=8) == 3
    assert step_time(load=6, compute=2, loaders=4, cores=8) == 2  # computing is
    assert step_time(load=6, compute=2, loaders=4, cores=2) == 4  # the cores are
    assert step_time(load=6, compute=2, loaders=4, cores=1) == 8


def test_all_ways_train_on_the_same_batches_and_nothing_is_left() -> None:
    before, torch_threads = set(threading.enumerate()), torch.get_num_threads()
    result = feed(fineness=2, processes=1, batch=16, steps=5)
    assert [way.name for way in result.ways] == ["in turn", "a thread", "1 process"]
    truth = tuple(digits.load()[0].labels[: 5 * 16].tolist())
    for way in result.ways:
        assert way.labels == truth
        for category in ("load", "compute"):
            assert len(way.trace.select(category=category)) == 5
        assert way.step > 0 and 0 < way.waiting < 1 and way.first > 0
    assert set(result.ways[0].trace.lanes) == {"main"}
    assert set(result.ways[1].trace.lanes) == {"main", "loader 1"}
    assert set(result.ways[2].trace.lanes) == {"main", "process 1"}
    assert result.theory(0) == pytest.approx(result.load + result.compute)
    plot(result)
    gc.collect()
    assert not multiprocessing.active_children()
    assert ended(before) and torch.get_num_threads() == torch_threads
    assert not segments()


def test_without_processes_two_ways_are_left() -> None:
    result = feed(fineness=1, processes=0, batch=16, steps=4)
    assert [way.loaders for way in result.ways] == [0, 1]
    plot(result)


def test_cancel_leaves_no_thread_and_no_process_behind(monkeypatch) -> None:
    """Cancelled at the first step that a process has fed."""
    control, threads = Control(), set(threading.enumerate())

    def stop(*progress) -> None:
        if progress[-1] == "1 process":
            control.cancel()
        checkpoint(*progress)

    monkeypatch.setattr(feeding, "checkpoint", stop)
    with controlled(control), pytest.raises(Cancelled):
        feed(fineness=1, processes=1, batch=16, steps=4)
    assert not multiprocessing.active_children()
    assert ended(threads)


def test_cancel_ends_the_loading_thread(monkeypatch) -> None:
    control, threads = Control(), set(threading.enumerate())

    def stop(*progress) -> None:
        if progress[-1] == "a thread":
            control.cancel()
        checkpoint(*progress)

    monkeypatch.setattr(feeding, "checkpoint", stop)
    with controlled(control), pytest.raises(Cancelled):
        feed(fineness=1, processes=0, batch=16, steps=4)
    assert set(threading.enumerate()) == threads


def test_a_failing_data_set_is_an_error_and_leaves_nothing() -> None:
    data = Augmented(20, fineness=0)  # a grid of 0 points
    with pytest.raises(Exception, match="0"), loader(data, batch=10) as batches:
        next(iter(batches))


@pytest.mark.parametrize("bad", [{"fineness": 0}, {"steps": 99}, {"processes": -1}, {"ahead": 0.5}])
def test_bad_input_is_refused_at_the_call(bad) -> None:
    (name,) = bad
    with pytest.raises(ValueError, match=f"^{name}=.* is not allowed: give"):
        feed(**bad)
