"""The mended variants do what a serial run does; the unsafe ones are kept out of this process."""

import threading
from dataclasses import replace
from functools import partial

import pytest
import torch

from utils.core.experiment import Cancelled, Control, controlled
from utils.deep_learning.document import ladder
from utils.deep_learning.document.program import UNSAFE, VARIANTS, Job, Settings, run, shared_step

SMALL = Settings(samples=130, batch=30, epochs=2, workers=3, inside=1)  # the last batch has 10
SAFE = [name for name in VARIANTS if name not in UNSAFE]


@pytest.mark.parametrize("variant", SAFE)
def test_every_gradient_counts_once(variant) -> None:
    report = run(variant, SMALL)
    assert report.applied == (1,) * SMALL.steps == (1,) * 10
    assert sorted(report.order) == list(range(10))
    assert report.sound and report.rate > 0 and not report.errors


@pytest.mark.parametrize("variant", ["one lock", "bounded window"])
def test_behind_a_lock_the_threads_are_a_serial_run_in_some_order(variant) -> None:
    report = run(variant, SMALL)
    job = Job(SMALL)
    batches = dict([*job.batches(), *job.batches()])
    torch_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        for number in report.order:
            shared_step(job, number, batches[number])
    finally:
        torch.set_num_threads(torch_threads)
    again = torch.cat([parameter.detach().flatten() for parameter in job.model.parameters()])
    assert torch.equal(report.parameters, again)  # to the bit


@pytest.mark.parametrize(
    "workers", [1, 2, 3, 16]
)  # 16: more threads than the last batch has digits
def test_own_gradients_reach_the_parameters_of_a_serial_run(workers) -> None:
    settings = replace(SMALL, workers=workers)
    threaded, alone = (run(name, settings, torch.float64) for name in ("own gradients", "serial"))
    assert (threaded.parameters - alone.parameters).abs().max() <= 1e-12
    assert threaded.order == alone.order
    assert threaded.accuracy == alone.accuracy


def test_own_gradients_can_be_repeated_to_the_bit() -> None:
    one, other = (run("own gradients", SMALL) for _ in range(2))
    assert torch.equal(one.parameters, other.parameters)
    assert not torch.equal(one.parameters, run("own gradients", replace(SMALL, seed=1)).parameters)


def test_the_seed_decides_on_the_batches() -> None:
    def labels(seed: int) -> list[list[int]]:
        return [batch.labels.tolist() for _, batch in Job(replace(SMALL, seed=seed)).batches()]

    assert labels(0) == labels(0) != labels(1)


def test_a_window_bounds_the_batches_in_memory() -> None:
    settings = Settings(samples=400, batch=10, workers=2, inside=1)
    assert run("bounded window", settings).held <= 2 * settings.workers + 1
    assert run("serial", settings).held == 1


def test_all_at_once_makes_every_batch_before_the_first_is_done(monkeypatch) -> None:
    settings = Settings(samples=400, batch=10, workers=2, inside=1)
    everything_made = threading.Event()
    original = Job.batches

    def batches(job):
        yield from original(job)
        everything_made.set()  # all are submitted

    def patiently(job, number, batch):
        assert everything_made.wait(10)
        shared_step(job, number, batch)

    monkeypatch.setattr(Job, "batches", batches)
    monkeypatch.setattr("utils.deep_learning.document.program.shared_step", patiently)
    report = run("one lock", settings)
    assert report.held == settings.steps == 40 and report.sound


@pytest.mark.parametrize("variant", ["one lock", "bounded window", "serial"])
def test_a_step_that_fails_is_counted_and_makes_the_report_unsound(variant, monkeypatch) -> None:
    def loss(job, number, batch):
        if number == 3:
            raise ArithmeticError("no loss today")
        return original(job, number, batch)

    original = Job.loss
    monkeypatch.setattr(Job, "loss", loss)
    report = run(variant, SMALL)
    assert report.errors == ("ArithmeticError: no loss today",)
    assert report.applied[3] == 0 and sum(report.applied) == 9
    assert not report.sound and report.rate is None


def test_own_gradients_raise_what_a_thread_raised(monkeypatch) -> None:
    monkeypatch.setattr(Job, "loss", lambda *_: 1 / 0)
    threads = set(threading.enumerate())
    with pytest.raises(ZeroDivisionError):
        run("own gradients", SMALL)
    assert set(threading.enumerate()) == threads


@pytest.mark.parametrize("variant", UNSAFE)
def test_what_may_crash_is_not_run_here(variant) -> None:
    with pytest.raises(ValueError, match="may corrupt this process"):
        run(variant, SMALL)


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="'three locks' is none: choose one of as printed"):
        run("three locks", SMALL)


def test_the_article_as_printed_fails_in_every_step() -> None:
    """It fails before anything is shared, so this process is safe."""
    report = run("as printed", SMALL, expendable=True)
    assert len(report.errors) == SMALL.steps
    assert set(report.errors) == {"NameError: name 'F' is not defined"}
    assert set(report.applied) == {0} and report.rate is None


def test_shared_gradients_with_one_thread_are_a_serial_run() -> None:
    alone = replace(SMALL, workers=1)
    for variant in ("import mended", "zeroed in place"):
        report = run(variant, alone, expendable=True)
        assert report.sound
        assert torch.equal(report.parameters, run("serial", alone).parameters)


# ---------------------------------------------------------------- ladder


def test_the_ladder_runs_every_mended_variant_in_every_round(monkeypatch) -> None:
    monkeypatch.setattr(ladder, "Settings", partial(Settings, inside=1))  # quick on busy cores
    before = torch.get_num_threads()
    result = ladder.climb(workers=2, batch=100, rounds=2)
    for reports in result.reports.values():
        assert len(reports) == 2 and all(report.sound for report in reports)
    for serial in (ladder.SERIAL, ladder.SERIAL_ALL_CORES):
        assert result.speedup(serial, serial) == 1 and result.repeatable(serial)
    assert result.speedup(ladder.SERIAL) == 1
    assert result.repeatable("own gradients, threads ≤ cores")
    assert torch.get_num_threads() == before
    ladder.plot(result)
    ladder.plot_timelines(result, ["one lock", "own gradients"])


@pytest.mark.parametrize("cores", [1, 2, 3, 64])
def test_the_last_rung_has_no_more_threads_than_cores(cores, monkeypatch) -> None:
    monkeypatch.setattr("utils.core.machine.cores", lambda: cores)
    for workers in (1, 4, 16):
        _, fitted = ladder.rungs(Settings(workers=workers))["own gradients, threads ≤ cores"]
        assert 1 <= fitted.workers * fitted.inside <= cores and fitted.workers <= workers


def test_cancel_leaves_no_thread_behind() -> None:
    threads, control = set(threading.enumerate()), Control()
    control.cancel()
    with controlled(control), pytest.raises(Cancelled):
        ladder.climb()
    for variant in SAFE:
        with controlled(control), pytest.raises(Cancelled):
            run(variant, SMALL)
    assert set(threading.enumerate()) == threads


@pytest.mark.parametrize("bad", [{"workers": 0}, {"batch": 5}, {"rounds": 0}, {"epochs": 1.5}])
def test_bad_input_is_refused_at_the_call(bad) -> None:
    (name,) = bad
    with pytest.raises(ValueError, match=f"^{name}=.* is not allowed: give"):
        ladder.climb(**bad)
