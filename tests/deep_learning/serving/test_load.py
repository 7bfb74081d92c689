"""Both clocks make the same batches; the formulas say what they should; a load can be stopped."""

import threading
import time
from collections import deque

import pytest
import torch

from utils.core.experiment import Cancelled, Control, controlled
from utils.core.trace import now, validate_chrome
from utils.deep_learning.serving import intake, intensity, service, sweep
from utils.deep_learning.serving.batching import Batcher
from utils.deep_learning.serving.engine import Batch, Engine
from utils.deep_learning.serving.load import arrivals, closed_loop, open_loop
from utils.deep_learning.serving.served import Record, Served
from utils.deep_learning.serving.simulate import simulate
from utils.performance.queueing.requests import SECOND

MS = 10**6  # ns
SHAPE = (1, 2, 2)
IMAGES = torch.zeros(8, *SHAPE)


def members(served: Served) -> list[tuple[int, ...]]:
    """Who went with whom, batch by batch in the order of release."""
    return [numbers for _, numbers in served.batches]


def five_and_one(worker: int, size: int) -> float:
    return (5 + size) / 1e3


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


# ---------------------------------------------------------------- virtual


@pytest.mark.parametrize(
    ("policy", "workers", "expected"),
    [
        (Batcher(4), 1, [(0,), (1, 2, 3, 4), (5, 6)]),  # whatever is there
        (Batcher(4, 0.004), 1, [(0, 1, 2, 3), (4, 5, 6)]),  # full before it is due
        (Batcher(4, 0.0015), 1, [(0, 1), (2, 3, 4, 5), (6,)]),
        (Batcher(1), 1, [(0,), (1,), (2,), (3,), (4,), (5,), (6,)]),
        (Batcher(4), 2, [(0,), (1,), (2, 3, 4, 5), (6,)]),
    ],
)
def test_batches_on_the_virtual_clock(policy, workers, expected) -> None:
    planned = [number * MS for number in range(6)] + [8 * MS]
    records = simulate(policy, planned, five_and_one, workers=range(workers))
    served = Served(workers, records, "virtual")
    assert members(served) == expected
    for batch, _ in served.batches:
        assert batch.ended - batch.released == (5 + batch.size) * MS


def test_a_virtual_request_is_refused_late_or_answered() -> None:
    records = simulate(
        Batcher(1), [0, 1 * MS, 2 * MS, 3 * MS], five_and_one, capacity=2, timeout=0.007
    )
    assert [record.fate for record in records] == ["answered", "answered", "timed out", "rejected"]
    assert [record.ended // MS for record in records] == [6, 12, 12, 3]


def test_a_line_for_all_waits_less_than_one_a_worker_if_a_worker_is_slow() -> None:
    shared, own = (
        service.virtual(workers=4, slow=4, rate=600, line=line)
        for line in ("one for all", "one a worker")
    )
    assert shared.latency(95) < own.latency(95)
    assert [record.planned for record in shared.records] == [r.planned for r in own.records]
    assert {batch.worker for batch, _ in own.batches} == {0, 1, 2, 3}


# ---------------------------------------------------------------- both clocks


@pytest.mark.parametrize(
    ("workers", "max_batch", "max_wait", "milliseconds"),
    [
        (1, 4, 0.0, [0, 24, 54, 84, 96, 120, 130, 138, 162]),
        (2, 3, 0.0, [0, 10, 18, 28, 58, 82, 106, 126, 150]),
        (1, 4, 0.036, [0, 30, 60, 90, 110, 122, 132, 142, 150]),
        (1, 1, 0.0, [0, 24, 54, 78, 94, 118, 132, 146, 160]),
    ],
)
@pytest.mark.timeout(60)
def test_both_clocks_make_the_same_batches(
    workers, max_batch, max_wait, milliseconds, monkeypatch
) -> None:
    """Real threads, and a clock that stands still until all of them compute or sleep."""
    planned = [moment * MS for moment in milliseconds]
    virtual = Served(
        workers,
        simulate(
            Batcher(max_batch, max_wait),
            planned,
            lambda _, size: (30 + 5 * size) / 1e3,
            workers=range(workers),
        ),
        "virtual",
    )
    clock, inside, batches = [0], [], []
    monkeypatch.setattr(intake, "now", lambda: clock[0])

    def model(images: torch.Tensor) -> torch.Tensor:
        numbers, end = tuple(int(image.sum()) for image in images), threading.Event()
        batches.append((clock[0], numbers))
        inside.append((clock[0] + (30 + 5 * len(images)) * MS, end))
        assert end.wait(50)
        return images

    settings = {"workers": workers, "max_batch": max_batch, "max_wait": max_wait}
    with Engine(model, shape=(1,), **settings) as engine:
        door = engine._intake
        moments = {*planned, *(moment + round(max_wait * SECOND) for moment in planned)}
        while moments or inside:
            clock[0] = min(moments | {end for end, _ in inside})
            moments.discard(clock[0])
            for entry in [entry for entry in inside if entry[0] == clock[0]]:
                inside.remove(entry)
                entry[1].set()
            if clock[0] in planned:
                engine.submit(torch.tensor([float(planned.index(clock[0]))]))
            with door._lock:
                door._batch.notify_all()  # who sleeps until a moment looks whether it has come
            while len(inside) + len(door._batch._waiters) < workers:
                time.sleep(0.0005)
    assert batches == [(batch.released, numbers) for batch, numbers in virtual.batches]


@pytest.mark.parametrize(
    ("workers", "max_batch", "max_wait"), [(1, 4, 0.0), (1, 4, 0.004), (3, 3, 0.002), (2, 1, 0.0)]
)
def test_the_engine_does_what_the_policy_says_at_every_moment(workers, max_batch, max_wait) -> None:
    """Whatever the machine did: asked again about the same moments, the policy says the same."""

    def model(images: torch.Tensor) -> torch.Tensor:
        time.sleep(0.001)
        return images

    settings = {"workers": workers, "max_batch": max_batch, "max_wait": max_wait}
    requests, start = [], now()
    with Engine(model, shape=SHAPE, **settings) as engine:
        for moment in arrivals(1500, 0.2):
            time.sleep(max(0.0, (start + moment - now()) / SECOND))
            requests.append(engine.submit(IMAGES[0]))
        for request in requests:
            request.exception(20)
    policy, expected, line = Batcher(max_batch, max_wait), [], deque(requests)
    real = sorted({request.batch for request in requests}, key=lambda batch: batch.released)
    for batch in real:
        while line and line[0].arrival <= batch.released:
            policy.arrive(line.popleft())
        expected.append(policy.take(batch.released)[0])
    assert [[r.batch for r in taken] for taken in expected] == [[b] * b.size for b in real]


# ---------------------------------------------------------------- load


def test_an_open_loop_counts_from_the_plan_and_does_not_wait() -> None:
    """The model stops for a while: all that were planned meanwhile count their wait."""

    def model(images: torch.Tensor) -> torch.Tensor:
        time.sleep(0.1)
        return images

    planned = [number * 5 * MS for number in range(10)]
    with Engine(model, max_batch=16, shape=SHAPE) as engine:
        records = open_loop(engine, IMAGES, planned)
    served = Served(1, records)
    assert [r.planned - records[0].planned for r in records] == planned
    assert all(record.sent >= record.planned for record in records)
    assert records[0].ended > records[1].planned and len(members(served)) < 10
    assert served.latencies == tuple((r.ended - r.planned) / SECOND for r in records)
    assert min(served.latencies) >= 0.09  # a sleep may be a little short


def test_an_open_loop_notes_who_was_refused_and_who_was_late() -> None:
    def model(images: torch.Tensor) -> torch.Tensor:
        while engine.counts()["submitted"] < 20:
            time.sleep(0.001)
        time.sleep(0.06)
        return images

    with Engine(model, max_batch=1, capacity=2, shape=SHAPE) as engine:
        records = open_loop(engine, IMAGES, [0] * 20, timeout=0.05)
    served = Served(1, records)
    assert served.fates == {k: n for k, n in engine.counts().items() if k != "submitted"}
    assert served.fates["rejected"] > 0 and not served.in_time(9) and not served.kept_up


def test_a_closed_loop_has_a_request_a_client_at_a_time() -> None:
    with Engine(lambda images: images, max_batch=8, shape=SHAPE) as engine:
        records = closed_loop(engine, IMAGES, clients=3, requests=10)
    assert len(records) == 30 and Served(1, records).fates == {"answered": 30}
    changes = sorted([(r.sent, 1) for r in records] + [(r.ended, -1) for r in records])
    present = [sum(step for _, step in changes[: number + 1]) for number in range(60)]
    assert max(present) <= 3


def test_arrivals_are_random_by_seed_at_the_rate() -> None:
    planned = arrivals(1000, 5, seed=1)
    assert planned == arrivals(1000, 5, seed=1) != arrivals(1000, 5, seed=2)
    assert list(planned) == sorted(planned) and 4 < planned[-1] / SECOND < 6


@pytest.mark.timeout(30)
@pytest.mark.parametrize("loop", ["open", "closed"])
def test_a_load_can_be_cancelled(loop) -> None:
    control = Control()

    def model(images: torch.Tensor) -> torch.Tensor:
        control.cancel()
        return images

    with controlled(control), pytest.raises(Cancelled), Engine(model, shape=SHAPE) as engine:
        if loop == "open":
            open_loop(engine, IMAGES, [number * SECOND for number in range(1000)])
        else:
            closed_loop(engine, IMAGES, clients=2, requests=10**9)
    assert engine.counts()["submitted"] < 10**9


# ---------------------------------------------------------------- formulas


def test_the_figures_of_a_run_by_hand() -> None:
    """Four requests, one a second; two went together, the last was refused."""
    first, both = Batch(0, 1, 0, 0, SECOND), Batch(0, 2, 2 * SECOND, 2 * SECOND, 3 * SECOND)
    records = (
        Record(0, 0, SECOND, "answered", first),
        Record(SECOND, SECOND, 3 * SECOND, "answered", both),
        Record(2 * SECOND, 2 * SECOND, 3 * SECOND, "answered", both),
        Record(3 * SECOND, 3 * SECOND, 3 * SECOND, "rejected"),
    )
    served = Served(1, records)
    assert served.seconds == 3 and served.throughput == 1 and served.offered == 4 / 3
    assert served.latencies == (1, 2, 1) and served.latency(50) == 1
    assert served.goodput(1) == pytest.approx(2 / 3) and served.mean_batch == 1.5
    assert not served.in_time(2) and Served(1, records[:3]).in_time(2)
    assert not Served(1, records[:3]).in_time(1.5)
    assert members(served) == [(0,), (1, 2)]
    spans = [(s.lane, s.category, s.start, s.end) for s in served.trace.spans if s.seconds]
    assert [(lane, kind, start // SECOND, end // SECOND) for lane, kind, start, end in spans] == [
        ("request 0", "compute", 0, 1),
        ("worker 1", "compute", 0, 1),
        ("request 1", "queue", 1, 2),
        ("request 1", "compute", 2, 3),
        ("request 2", "compute", 2, 3),
        ("worker 1", "compute", 2, 3),
    ]
    validate_chrome(served.trace.to_chrome())


@pytest.mark.parametrize(("spacing", "kept"), [(100, True), (101, True), (103, False)])
def test_an_engine_keeps_up_if_answers_come_at_the_rate_of_requests(spacing, kept) -> None:
    records = tuple(Record(100 * n, 100 * n, 10**6 + spacing * n, "answered") for n in range(100))
    assert Served(1, records).kept_up is kept


# ---------------------------------------------------------------- experiments


def test_a_run_and_a_virtual_run_are_drawn() -> None:
    real = service.run("tower", rate=200)
    assert real.fates == {"answered": 100} and service.plot(real)._repr_png_()
    virtual = service.virtual(workers=16, rate=1000)
    assert virtual.fates == {"answered": 1000} and service.plot(virtual)._repr_png_()


def test_a_sweep_stops_each_mode_when_it_is_hopeless() -> None:
    result = sweep.sweep("tower", limit=5, seconds=0.2)
    one, many = (result.runs[mode] for mode in sweep.MODES)
    assert set(one) <= set(many) or set(many) <= set(one)
    for runs in (one, many):
        assert all(served.latency(95) <= 0.02 for served in list(runs.values())[:-1])
        assert all(batch.size <= 64 for served in runs.values() for batch, _ in served.batches)
    assert all(batch.size == 1 for served in one.values() for batch, _ in served.batches)
    assert sweep.plot(result)._repr_png_()


def test_a_bigger_batch_moves_fewer_bytes_an_item() -> None:
    result = intensity.intensity(width=256, depth=2)
    assert result.weights == 784 * 256 + 256 * 256 + 256 * 10
    assert result.activations == (784 + 256) + (256 + 256) + (256 + 10)
    assert result.moved(1) == 4 * (result.weights + result.activations)
    assert result.moved(1) - result.moved(2) == 4 * result.weights / 2
    assert result.intensity(64) > result.intensity(1) and result.intensity(1) < 0.5
    assert len(result.seconds) == len(intensity.SIZES) and intensity.plot(result)._repr_png_()
