"""Soft tokens are read like words, and only the projector learns."""

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.core import plots
from utils.core.experiment import Cancelled, Control, controlled
from utils.core.workers import intra_op
from utils.deep_learning import digits
from utils.llm import tokens, weights
from utils.llm.decoder import Cache, Config, Decoder
from utils.llm.multimodal import seeing as module
from utils.llm.multimodal import training
from utils.llm.multimodal.seeing import DIGITS, Projector, Seeing, encoder, share_right

TINY = Config(layers=2, hidden=32, heads=4, kv_heads=2, head_dim=8, intermediate=64)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with intra_op(1):
        yield


@pytest.fixture(scope="module")
def tiny() -> Seeing:
    torch.manual_seed(0)
    model = Decoder(TINY).double().eval().requires_grad_(False)
    model.embed_tokens.weight *= 0.1
    return Seeing(model, tokens.smollm2())


def task(seeing: Seeing) -> tuple[Projector, torch.Tensor, torch.Tensor]:
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(1)).double()
    projector = Projector(6, 2, seeing.model.embed_tokens.weight[:10].mean(0))
    return projector, features, features[:, :3].argmax(1) + 500


def fingerprint(model: torch.nn.Module) -> str:
    numbers = (value.numpy().tobytes() for value in model.state_dict().values())
    return hashlib.sha256(b"".join(numbers)).hexdigest()


@given(prefix=st.sampled_from(["", "Look:", "the digit"]), word=st.sampled_from(DIGITS))
@settings(max_examples=12, deadline=None)
def test_the_vector_of_a_word_is_read_as_the_word(tiny, prefix, word):
    soft = tiny.vectors(word)[None]
    read = tiny.scores(prefix + "{}, the", soft)
    whole = tiny.model(torch.tensor([tiny.vocabulary.encode(prefix + word + ", the")]))
    torch.testing.assert_close(read, whole[:, -1], rtol=0, atol=1e-10)


def test_vectors_run_like_tokens_with_a_cache_and_padding_too(tiny):
    row = torch.randint(0, 900, (2, 7), generator=torch.Generator().manual_seed(2))
    real = torch.ones(2, 7, dtype=torch.bool)
    real[0, :3] = False
    whole = tiny.model.hidden(row, real=real)
    cache = Cache(TINY, 2, 7, torch.float64)
    vectors = tiny.model.embed_tokens(row)
    first = tiny.model.run(vectors[:, :4], cache, real[:, :4])
    second = tiny.model.run(vectors[:, 4:], cache, real)
    parts = torch.cat([first, second], 1)
    torch.testing.assert_close(parts[real], whole[real], rtol=0, atol=1e-10)


def test_the_gradient_reaches_the_projector_and_nothing_else(tiny):
    projector, features, _ = task(tiny)
    tiny.scores("a{} b", projector(features[:3])).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in projector.parameters())
    assert all(p.grad is None for p in tiny.model.parameters())


def test_training_lowers_the_loss_and_leaves_the_model_as_it_was(tiny):
    before = fingerprint(tiny.model)
    projector, features, targets = task(tiny)
    losses = training.train(tiny, projector, features, targets, steps=25)
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])
    assert fingerprint(tiny.model) == before
    again, *_ = task(tiny)
    assert training.train(tiny, again, features, targets, steps=25) == losses
    assert torch.equal(again.weight, projector.weight)
    other, *_ = task(tiny)
    assert training.train(tiny, other, features, targets, steps=25, seed=1) != losses


def test_a_cancelled_training_stops(tiny):
    control = Control()
    control.cancel()
    with controlled(control), pytest.raises(Cancelled):
        training.train(tiny, *task(tiny), steps=5)


def test_the_encoder_is_the_trained_network_before_its_last_layer():
    practice, held_out = digits.load()
    found = encoder()(practice.images)
    assert found.shape == (4000, 50)
    assert found.mean(0).abs().max() < 1e-4
    network = module.recipe.trained()
    raw = found[:9] * encoder().deviation + encoder().mean
    torch.testing.assert_close(network.fc2(raw), network(practice.images[:9]), rtol=0, atol=1e-4)
    assert not any(p.requires_grad for p in encoder().parameters())


def test_every_digit_is_one_token_and_the_nearest_to_itself(tiny):
    assert len(DIGITS) == 10 and len({tiny.token(word) for word in DIGITS}) == 10
    real = Seeing(weights.smollm2(), tokens.smollm2())
    assert [row[0] for row in real.nearest(torch.cat([real.vectors(w) for w in DIGITS]))] == list(
        DIGITS
    )


def test_only_the_best_of_all_tokens_counts_as_said():
    scores = torch.zeros(3, 20)
    scores[0, 7], scores[1, 8], scores[2, 19] = 1, 1, 1
    assert share_right(scores, torch.tensor([0, 0, 1]), [7, 8]) == pytest.approx(1 / 3)


@pytest.mark.parametrize("prompt", ["no picture", "{} and {}"])
def test_a_prompt_has_one_picture(tiny, prompt):
    with pytest.raises(ValueError, match="give a text with one {}"):
        tiny.scores(prompt, torch.zeros(1, 1, 32).double())


def test_bad_numbers_are_refused(tiny):
    with pytest.raises(ValueError, match="tokens=0"):
        Projector(5, 0, torch.zeros(3))
    with pytest.raises(ValueError, match="' 12'.* tokens, give one"):
        tiny.token(" 12")
    for wrong in ({"steps": 0}, {"soft_tokens": 9}, {"sees": "nothing"}):
        with pytest.raises(ValueError, match="is not allowed"):
            training.learn(**wrong)


@pytest.mark.parametrize("sees", ["network", "pixels"])
def test_the_real_model_learns_by_the_experiment(sees, monkeypatch):
    monkeypatch.setattr(training, "HELD_OUT", 27)
    learnt = training.learn(steps=1, soft_tokens=1, sees=sees)
    assert len(learnt.losses) == 1 and len(learnt.before) == len(learnt.after) == 27
    labels = digits.load()[1].labels[:27]
    said = [word == DIGITS[label] for word, label in zip(learnt.after, labels, strict=True)]
    assert learnt.right[1] == pytest.approx(sum(said) / 27)
    assert all(p.grad is None for p in weights.smollm2().parameters())
    assert plots.png(training.plot(learnt)).startswith(b"\x89PNG")
