"""What the room of section 5.1 says of tokens, probabilities and losses is so."""

import math
import sys
import threading

import pytest
import torch

from utils.core.experiment import Cancelled, Control, controlled
from utils.core.workers import intra_op
from utils.llm import tokens, weights
from utils.llm.decoder import Config, Decoder
from utils.llm.language import (
    answer,
    coloured,
    context,
    next_token,
    perplexity,
    texts,
    training,
)
from utils.llm.sampling import Sampling, probabilities

ROW = torch.randint(97, (30,), generator=torch.Generator().manual_seed(2)).tolist()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with intra_op(1):
        yield


@pytest.fixture
def tiny() -> Decoder:
    config = Config(
        layers=2, hidden=32, heads=4, kv_heads=2, head_dim=8, intermediate=64, vocabulary=97
    )
    return training.fresh(config, seed=0).double().requires_grad_(False)


def width(picture) -> int:
    return picture._repr_png_()[1]["width"]


# ---------------------------------------------------------------- tokens that can be seen


@pytest.mark.parametrize(
    ("piece", "shown"),
    [
        (b" the", "␣the"), (b"\n\n", "↵↵"), (b"\t", "→"), ("é".encode(), "é"),
        (b"\xe4\xbd", "⟨e4 bd⟩"), ("你".encode(), "⟨e4 bd a0⟩"), (b"\x00", "⟨00⟩"), (b"$x$", "$x$"),
    ],
)  # fmt: skip
def test_every_token_can_be_drawn(piece, shown) -> None:
    assert coloured.visible(piece) == shown


def test_text_is_set_in_lines_that_fit_and_do_not_overlap() -> None:
    shown = ["word" * (1 + n % 3) for n in range(60)]
    places = coloured.lines(shown, 4)
    assert places[0] == (0, 0) and places[-1][0] > 5
    for (line, column), (later, start), text in zip(places, places[1:], shown, strict=False):
        assert later == line + 1 and start == 0 or later == line and start >= column + len(text)
    assert max(c + len(t) for (_, c), t in zip(places, shown, strict=True)) * 0.096 <= 4


# ---------------------------------------------------------------- the next token


def test_the_stages_end_with_what_the_dice_see() -> None:
    how = Sampling(1.3, top_k=20, top_p=0.8, min_p=0.05, repetition_penalty=1.5)
    text = "A rose is a rose is a"
    result = next_token.after(text, how)
    said = tokens.smollm2().encode(text)
    expected = probabilities(next_token.scores(text), how, said)
    assert torch.equal(result.stages[-1].chances, expected)
    own = next_token.scores(text).softmax(0)
    torch.testing.assert_close(result.stages[0].chances, own, rtol=1e-4, atol=0)
    left = [stage.left for stage in result.stages]
    assert left == sorted(left, reverse=True) and left[3] == 20
    for token in result.likeliest:
        assert (result.cut(token) == "") == (expected[token] > 0)
    assert width(next_token.plot(result)) > 0


def test_a_rule_that_is_off_changes_nothing() -> None:
    result = next_token.after("One, two, three,", Sampling(1))
    assert all(torch.equal(s.chances, result.stages[0].chances) for s in result.stages)
    assert not any(map(result.cut, result.likeliest))


def test_greedy_leaves_one_token_and_no_choice() -> None:
    last = next_token.run(temperature=0).stages[-1]
    assert last.left == 1 and last.bits == 0


def test_entropy_counts_in_bits() -> None:
    assert next_token.Stage("", torch.full((8,), 0.125)).bits == pytest.approx(3)


def test_sliders_do_not_ask_the_model_again() -> None:
    next_token.run(text="Das Wetter ist heute")
    before = next_token.scores.cache_info().misses
    for temperature in (0, 0.5, 2):
        next_token.run(text="Das Wetter ist heute", temperature=temperature, top_p=0.5)
    assert next_token.scores.cache_info().misses == before


def test_no_text_is_refused() -> None:
    with pytest.raises(ValueError, match="text=''"):
        next_token.scores("")


# ---------------------------------------------------------------- an answer


def test_an_answer_depends_on_its_seed_alone_and_its_chances_are_the_model_s() -> None:
    one, again, other = (answer.run(limit=5, temperature=1.5, seed=seed) for seed in (1, 1, 2))
    assert one.tokens == again.tokens != other.tokens
    assert len(one.tokens) == len(one.chances) == len(one.seconds) == 5
    assert list(one.seconds) == sorted(one.seconds)
    row = tokens.smollm2().chat(one.question)
    with torch.inference_mode():
        for token, chance in zip(one.tokens, one.chances, strict=True):  # one by one
            scores = weights.smollm2()(torch.tensor([row]))[0, -1]
            assert float(scores.softmax(0)[token]) == pytest.approx(chance, rel=1e-3)
            row.append(token)
    assert width(answer.plot(one)) > 0


def test_an_answer_of_one_token_is_drawn() -> None:
    assert width(answer.plot(answer.run(limit=1, temperature=0))) > 0


def test_an_answer_can_be_cancelled() -> None:
    control, before = Control(), threading.active_count()
    control.cancel()
    with controlled(control), pytest.raises(Cancelled):
        answer.run()
    assert threading.active_count() == before


# ---------------------------------------------------------------- losses of a text


def test_losses_multiply_to_the_probability_of_the_text(tiny) -> None:
    chance = 1.0
    for end in range(1, 8):  # one token after the other
        chance *= float(tiny(torch.tensor([ROW[:end]]))[0, -1].softmax(0)[ROW[end]])
    losses = perplexity.losses(tiny, ROW[:8])
    assert float(losses.sum()) == pytest.approx(-math.log(chance), rel=1e-9)
    assert float(losses.mean()) == pytest.approx(-math.log(chance) / 7, rel=1e-9)


@pytest.mark.parametrize("length", [2, 7, 8, 9, 16, 30])
@pytest.mark.parametrize("stride", [1, 3, 8])
def test_windows_score_every_token_once_with_enough_before_it(tiny, length, stride) -> None:
    found = perplexity.losses(tiny, ROW[:length], context=8, stride=stride)
    assert len(found) == length - 1
    whole, matches = perplexity.losses(tiny, ROW[:length]), 0
    for target in range(1, length):
        ways = [ROW[begin : target + 1] for begin in range(max(0, target - 8), target)]
        alone = [float(perplexity.losses(tiny, way)[-1]) for way in ways]
        used = [n for n, loss in enumerate(alone) if abs(loss - float(found[target - 1])) < 1e-9]
        assert used, "no window of at most 8 tokens gives this loss"
        seen = target - max(0, target - 8) - used[0]
        assert seen >= min(target, 8 - stride + 1)
        matches += abs(float(whole[target - 1]) - float(found[target - 1])) < 1e-12
    assert matches >= min(length - 1, 8)


@pytest.mark.parametrize(("row", "stride"), [([1], 4), ([], 4), (ROW, 9), (ROW, 0), (ROW, -1)])
def test_windows_that_cannot_be_are_refused(tiny, row, stride) -> None:
    with pytest.raises(ValueError, match=f"{len(row)} tokens, stride={stride}"):
        perplexity.losses(tiny, row, context=8, stride=stride)


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large(tiny) -> None:
    flat = tiny
    flat.embed_tokens.weight.zero_()  # tied: every score is 0
    mean = float(perplexity.losses(flat, ROW).mean())
    score = perplexity.Score(29, 58, 29 * mean)
    assert score.perplexity == pytest.approx(97)
    assert score.bits_per_byte == pytest.approx(math.log2(97) / 2)


def test_texts_that_mean_something_are_predicted_best() -> None:
    found = perplexity.run(length=32)
    bits = {kind: score.bits_per_byte for kind, score in found.items()}
    assert bits["Python's manual"] < bits["the manual's words, shuffled"] < bits["random letters"]
    assert bits["a diary"] < bits["the diary in German"]
    for score in found.values():
        assert score.tokens == 32 and score.perplexity > 1
    text = tokens.smollm2().encode(texts.corpus()["the diary in Chinese"])[:32]
    spelt = b"".join(map(tokens.smollm2().spell, text))
    assert found["the diary in Chinese"].bytes == len(spelt)
    assert width(perplexity.plot(found)) > 0


def test_texts_are_long_enough_and_follow_the_seed() -> None:
    kinds = texts.corpus(1)
    assert min(len(tokens.smollm2().encode(text)) for text in kinds.values()) >= 160
    assert kinds == texts.corpus(1) and kinds != texts.corpus(2)
    shuffled = kinds["the manual's words, shuffled"].split()
    assert sorted(shuffled) == sorted(kinds["Python's manual"][:4000].split())


def test_a_python_without_its_manual_says_so(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(texts.TextMissing, match="pydoc_data.topics"):
        perplexity.run()


def test_context_is_worth_more_where_words_have_an_order() -> None:
    result = context.run(windows=2)
    assert result.text.shape == result.shuffled.shape == (2, context.LENGTH)
    assert result.text[:, 32:].mean() < result.shuffled[:, 32:].mean()
    assert result.text[:, 32:].mean() < result.text[:, :8].mean()
    assert width(context.plot(result)) > 0


# ---------------------------------------------------------------- training


def test_one_pass_has_the_loss_of_every_position(tiny) -> None:
    together = float(training.loss_of(tiny, torch.tensor([ROW])))
    alone = [float(perplexity.losses(tiny, ROW[: end + 1])[-1]) for end in range(1, len(ROW))]
    assert together == pytest.approx(sum(alone) / len(alone), rel=1e-9)


def test_a_gradient_is_the_sum_of_those_of_all_positions(tiny) -> None:
    tiny.requires_grad_(True)
    training.gradient(tiny, torch.tensor([ROW]))
    together = [parameter.grad.clone() for parameter in tiny.parameters()]
    tiny.zero_grad()
    for end in range(1, len(ROW)):
        scores = tiny(torch.tensor([ROW[:end]]))[:, -1]
        loss = torch.nn.functional.cross_entropy(scores, torch.tensor([ROW[end]]))
        (loss / (len(ROW) - 1)).backward()
    for grad, parameter in zip(together, tiny.parameters(), strict=True):
        torch.testing.assert_close(grad, parameter.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("steps", [0, 25])
def test_a_small_step_lowers_the_loss_as_the_gradient_says(steps) -> None:
    result = training.run(steps=steps)
    rate = float(training.RATES[0])
    assert result.change[0] == pytest.approx(-rate * result.slope, rel=0.05)
    assert result.elsewhere[0] < 0  # what is learnt from one batch helps with another
    assert result.change[-1] > 0  # and much too large a one does not
    assert len(result.chances) == len(training.SENTENCE)
    assert width(training.plot(result)) > 0


def test_a_fresh_model_knows_nothing_and_training_teaches_it() -> None:
    nothing, something = training.run(steps=0), training.run(steps=50)
    assert nothing.before == pytest.approx(math.log(256), rel=0.02)
    assert something.before < 0.8 * nothing.before
    assert sum(something.chances) > 5 * sum(nothing.chances)


def test_training_can_be_cancelled() -> None:
    control, threads = Control(), torch.get_num_threads()
    control.cancel()
    with controlled(control), pytest.raises(Cancelled):
        training.run()
    assert torch.get_num_threads() == threads
