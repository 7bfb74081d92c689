"""Every request ends once, in the way that the engine counts, with the answer to its own image."""

import random
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait

import pytest
import torch

from utils.core.workers import intra_op
from utils.deep_learning import models
from utils.deep_learning.serving.engine import DeadlinePassed, Engine
from utils.deep_learning.serving.intake import EngineClosed, QueueFull

IMAGES = torch.arange(64.0)[:, None, None, None].expand(64, 1, 2, 2)
SHAPE = (1, 2, 2)
FATES = {"answered", "rejected", "cancelled", "timed out", "failed"}


def total(images: torch.Tensor) -> torch.Tensor:
    return images.sum((1, 2, 3))


def balanced(engine: Engine) -> dict[str, int]:
    """The counts of an engine that is closed: everybody is accounted for."""
    counts = engine.counts()
    assert set(counts) <= FATES | {"submitted"}
    assert counts["submitted"] == sum(counts.get(fate, 0) for fate in FATES)
    return counts


class Gate:
    """A model that says when it has begun and computes only when it is let."""

    def __init__(self) -> None:
        self.begun, self.open = threading.Semaphore(0), threading.Event()
        self.sizes: list[int] = []

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(images))
        self.begun.release()
        assert self.open.wait(20)
        return total(images)


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.open.set()


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("max_wait", [0, 0.002])
def test_everybody_gets_the_answer_to_the_own_image(workers, max_wait) -> None:
    network = models.make("small").eval()
    images = torch.randn(200, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with Engine(network, workers=workers, max_batch=16, max_wait=max_wait) as engine:
        requests = [engine.submit(image) for image in images]
        answers = torch.stack([request.result(20) for request in requests])
    with torch.inference_mode():
        assert torch.allclose(answers, network(images), atol=1e-5)
    assert balanced(engine) == {"submitted": 200, "answered": 200}
    assert all(1 <= request.batch.size <= 16 for request in requests)


def test_a_model_that_hands_its_input_on_does_not_mix_up_batches() -> None:
    with Engine(lambda images: images, max_batch=4, shape=SHAPE) as engine:
        first = engine.submit(IMAGES[1])
        assert torch.equal(first.result(20), IMAGES[1])
        for image in IMAGES:
            engine.submit(image).result(20)
        assert torch.equal(first.result(), IMAGES[1])


def test_workers_compute_in_inference_mode_with_the_threads_of_the_caller() -> None:
    seen = []

    def look(images: torch.Tensor) -> torch.Tensor:
        seen.append((torch.is_inference_mode_enabled(), torch.get_num_threads()))
        return images

    with intra_op(3), Engine(look, shape=SHAPE) as engine:
        engine.submit(IMAGES[0]).result(20)
    assert seen == [(True, 3)] and not torch.is_inference_mode_enabled()


def test_a_request_knows_its_batch(gate) -> None:
    with Engine(gate, workers=1, max_batch=2, shape=SHAPE) as engine:
        first = engine.submit(IMAGES[0])
        assert gate.begun.acquire(timeout=20)
        others = [engine.submit(image) for image in IMAGES[:3]]
        gate.open.set()
    assert [request.batch.size for request in (first, *others)] == [1, 2, 2, 1] == [
        gate.sizes[0], *[gate.sizes[1]] * 2, gate.sizes[2]
    ]  # fmt: skip
    for request in others:
        batch = request.batch
        assert request.arrival <= batch.released <= batch.begun <= batch.ended <= request.ended
    assert others[0].batch == others[1].batch


# ---------------------------------------------------------------- the call


@pytest.mark.parametrize(
    ("image", "allowed"),
    [
        (torch.zeros(2, 2), r"\[1, 2, 2\]"),
        (torch.zeros(1, 1, 2, 2), r"\[1, 2, 2\]"),
        (torch.zeros(1, 2, 2, dtype=torch.float64), "float32"),
        (torch.zeros(1, 2, 2, device="meta"), "cpu"),
        ("digit", "a tensor"),
        (None, "a tensor"),
    ],
)
def test_a_bad_image_fails_at_the_call(image, allowed) -> None:
    with (
        Engine(total, shape=SHAPE) as engine,
        pytest.raises((TypeError, ValueError), match=f"image=.*give.*{allowed}"),
    ):
        engine.submit(image)
    assert engine.counts() == {"submitted": 0}


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_bad_timeout_fails_at_the_call(timeout) -> None:
    with Engine(total, shape=SHAPE) as engine, pytest.raises(ValueError, match="timeout="):
        engine.submit(IMAGES[0], timeout=timeout)


@pytest.mark.parametrize("setting", ["workers", "max_batch", "capacity"])
@pytest.mark.parametrize("value", [0, 1.5])
def test_a_bad_setting_starts_no_thread(setting, value) -> None:
    with pytest.raises(ValueError, match=f"{setting}={value}"):
        Engine(total, **{setting: value})


# ---------------------------------------------------------------- back-pressure


def test_a_full_line_refuses_and_forgets_nobody(gate) -> None:
    with Engine(gate, capacity=2, max_batch=1, shape=SHAPE) as engine:
        accepted = [engine.submit(IMAGES[0])]
        assert gate.begun.acquire(timeout=20)
        accepted += [engine.submit(image) for image in IMAGES[1:3]]
        with pytest.raises(QueueFull):
            engine.submit(IMAGES[3])
        with pytest.raises(QueueFull):
            engine.submit(IMAGES[3], timeout=0.02, block=True)
        gate.open.set()
        assert [request.result(20).item() for request in accepted] == [0, 4, 8]
    assert balanced(engine) == {"submitted": 5, "answered": 3, "rejected": 2}


def test_who_blocks_gets_in_when_there_is_room(gate) -> None:
    with Engine(gate, capacity=1, max_batch=1, shape=SHAPE) as engine, ThreadPoolExecutor(1) as one:
        engine.submit(IMAGES[0])
        assert gate.begun.acquire(timeout=20)
        engine.submit(IMAGES[1])
        waiting = one.submit(engine.submit, IMAGES[2], block=True)
        assert not wait([waiting], timeout=0.05).done
        gate.open.set()
        assert waiting.result(20).result(20) == 8
    assert balanced(engine)["answered"] == 3


# ---------------------------------------------------------------- deadlines, cancels, errors


def test_a_request_whose_deadline_passed_is_not_computed(gate) -> None:
    with Engine(gate, max_batch=4, shape=SHAPE) as engine:
        first = engine.submit(IMAGES[0])
        assert gate.begun.acquire(timeout=20)
        late, patient = engine.submit(IMAGES[1], timeout=0.01), engine.submit(IMAGES[2], timeout=20)
        time.sleep(0.03)
        gate.open.set()
        with pytest.raises(DeadlinePassed, match="passed"):
            late.result(20)
        assert first.result(20) == 0 and patient.result(20) == 8
    assert gate.sizes == [1, 1] and late.batch is None and late.fate == "timed out"
    assert balanced(engine) == {"submitted": 3, "answered": 2, "timed out": 1}


def test_a_cancelled_request_leaves_the_line_and_is_not_computed(gate) -> None:
    with Engine(gate, capacity=2, max_batch=4, shape=SHAPE) as engine:
        first = engine.submit(IMAGES[0])
        assert gate.begun.acquire(timeout=20)
        gone, stays = engine.submit(IMAGES[1]), engine.submit(IMAGES[2])
        assert gone.cancel() and gone.cancel() and not first.cancel()
        assert wait([gone], timeout=20).done == {gone}
        instead = engine.submit(IMAGES[3])  # the place is free at once
        gate.open.set()
        assert stays.result(20) == 8 and instead.result(20) == 12
        with pytest.raises(CancelledError):
            gone.result()
    assert gate.sizes == [1, 2]
    assert balanced(engine) == {"submitted": 4, "answered": 3, "cancelled": 1}


def picky(images: torch.Tensor) -> torch.Tensor:
    if (images == 7).any():
        raise ArithmeticError("seven is right out")
    return total(images)


@pytest.mark.parametrize(
    ("model", "error"),
    [(picky, "seven is right out"), (lambda images: total(images)[:-1], "1 answers to 2 images")],
)
def test_an_error_reaches_the_requests_of_its_batch_and_no_other(gate, model, error) -> None:
    def gated(images: torch.Tensor) -> torch.Tensor:
        gate(images)
        return model(images) if 7 in images else total(images)

    with Engine(gated, max_batch=2, shape=SHAPE) as engine:
        first = engine.submit(IMAGES[0])
        assert gate.begun.acquire(timeout=20)
        requests = [engine.submit(IMAGES[number]) for number in (1, 2, 7, 3, 4)]
        gate.open.set()
        wait([first, *requests], timeout=20)
    errors = [request.exception(0) for request in requests]
    assert [error is None for error in errors] == [True, True, False, False, True]
    assert errors[2] is errors[3] and error in str(errors[2])
    assert [requests[number].result(0) for number in (0, 1, 4)] == [4, 8, 16]
    assert balanced(engine) == {"submitted": 6, "answered": 4, "failed": 2}


# ---------------------------------------------------------------- the end


def test_a_drained_engine_answers_who_waits(gate) -> None:
    engine = Engine(gate, max_batch=4, max_wait=600, shape=SHAPE)
    requests = [engine.submit(image) for image in IMAGES[:6]]
    gate.open.set()
    engine.close()
    engine.close(drain=False)
    assert [request.result(0).item() for request in requests] == [0, 4, 8, 12, 16, 20]
    with pytest.raises(EngineClosed):
        engine.submit(IMAGES[0])
    assert balanced(engine) == {"submitted": 7, "answered": 6, "rejected": 1}


def test_an_engine_that_is_left_by_an_error_cancels_who_waits(gate) -> None:
    with pytest.raises(KeyError), Engine(gate, max_batch=1, shape=SHAPE) as engine:
        first = engine.submit(IMAGES[0])
        assert gate.begun.acquire(timeout=20)
        requests = [engine.submit(image) for image in IMAGES[:3]]
        requests[-1].add_done_callback(lambda _: gate.open.set())
        raise KeyError
    assert first.result(0) == 0 and all(request.cancelled() for request in requests)
    assert wait(requests, timeout=0).done == set(requests)
    assert balanced(engine) == {"submitted": 4, "answered": 1, "cancelled": 3}


def test_to_close_says_who_does_not_end(gate) -> None:
    engine = Engine(gate, shape=SHAPE)
    request = engine.submit(IMAGES[0])
    assert gate.begun.acquire(timeout=20)
    with pytest.raises(TimeoutError, match="engine worker 1 still computes after 0.05 s"):
        engine.close(timeout=0.05)
    gate.open.set()
    engine.close()
    assert request.result(0) == 0


def test_a_callback_may_close_the_engine() -> None:
    engine = Engine(total, shape=SHAPE)
    closed = threading.Event()
    with engine:
        request = engine.submit(IMAGES[0])
        request.add_done_callback(lambda _: (engine.close(), closed.set()))
        assert closed.wait(20)
    assert request.result(0) == 0


@pytest.mark.timeout(60)
@pytest.mark.parametrize("drain", [True, False])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_thousand_requests_with_everything_that_can_happen(drain, seed) -> None:
    """Cancels, deadlines, bad shapes, errors, a full line, and an engine closed in the middle."""
    computed, lock = [], threading.Lock()

    def model(images: torch.Tensor) -> torch.Tensor:
        with lock:
            computed.extend(images[:, 0, 0, 0].tolist())
        time.sleep(0.001)
        return picky(images)

    engine = Engine(model, workers=2, max_batch=8, max_wait=0.001, capacity=40, shape=SHAPE)
    asked, refused, bad = [], [], []

    def client(number: int) -> None:
        chance = random.Random(f"{seed} {number}")
        for count in range(250):
            key = 8 + 250 * number + count if chance.random() < 0.97 else 7
            image = torch.full(SHAPE, float(key))
            try:
                if chance.random() < 0.03:
                    bad.append(key)
                    engine.submit(image[0])
                timeout = chance.choice([None, None, 1e-4, 2e-3, 5])
                request = engine.submit(image, timeout, block=chance.random() < 0.8)
                asked.append((key, request))
                if chance.random() < 0.1:
                    time.sleep(chance.random() / 500)
                    request.cancel()
            except ValueError:
                continue
            except (QueueFull, EngineClosed):
                refused.append(key)

    def close() -> None:
        while len(asked) < 600:
            time.sleep(0.001)
        engine.close(drain)

    with ThreadPoolExecutor(5) as pool:
        for done in [pool.submit(client, number) for number in range(4)] + [pool.submit(close)]:
            done.result(50)
    counts = balanced(engine)
    assert counts["submitted"] == len(asked) + len(refused) == 1000 - len(bad)
    assert counts["rejected"] == len(refused)
    fates = {fate: [] for fate in FATES}
    for key, request in asked:
        assert request.done()
        fates["cancelled" if request.cancelled() else request.fate].append(key)
        if request.fate == "answered":
            assert request.result(0) == 4 * key
    assert {fate: len(keys) for fate, keys in fates.items() if fate != "rejected"} == {
        fate: counts.get(fate, 0) for fate in FATES - {"rejected"}
    }
    assert sorted(computed) == sorted(fates["answered"] + fates["failed"])  # nobody else, nor twice
    assert fates["answered"]
