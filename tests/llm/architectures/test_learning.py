"""The small models learn, from the right text, and stop when told to."""

import datetime
import sys

import pytest
import torch

from utils.core.experiment import Cancelled, Control, controlled
from utils.llm.architectures import chain, characters, dates, learning, race
from utils.llm.architectures.networks import Encoder, EncoderDecoder, make
from utils.llm.decoder import Decoder
from utils.llm.language.texts import TextMissing


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_characters_there_and_back():
    text = "".join(characters.ALPHABET)
    assert characters.decode(characters.encode(text)) == text
    assert characters.decode(characters.encode("naïve")) == "na?ve"
    assert characters.decode([characters.HIDDEN]) == "▁"


def test_the_manual_is_split_without_overlap_or_loss():
    text = characters.manual()
    assert len(text.train) > 8 * len(text.held_out) > 0
    assert int(text.train.max()) < characters.HIDDEN
    numbered = "".join(f"{chr(97 + n % 26)}{n:04}" for n in range(6000))
    parts = characters.split(numbered)
    whole = [characters.decode(part) for part in (parts.train, parts.held_out)]
    pieces = [numbered[n : n + characters.PIECE] for n in range(0, 30_000, characters.PIECE)]
    assert whole[1] == pieces[9]
    assert whole[0] == "".join(pieces[:9] + pieces[10:])


def test_unigram_bits_of_a_fair_coin():
    text = characters.split("ab" * 20 * characters.PIECE)
    assert text.unigram_bits == pytest.approx(1, abs=0.01)


def test_windows_are_pieces_of_the_text():
    text = characters.manual()
    one, other = (text.windows(3, 20, torch.Generator().manual_seed(s)) for s in (0, 1))
    assert one.shape == (3, 20) and not one.equal(other)
    whole = characters.decode(text.train)
    assert all(characters.decode(row) in whole for row in one)
    held_out = characters.decode(text.held_out)
    assert all(characters.decode(row) in held_out for row in text.exam(3, 20))
    assert text.exam(3, 20).equal(text.exam(3, 20))
    with pytest.raises(ValueError, match="length=0"):
        text.windows(1, 0, torch.Generator())
    with pytest.raises(ValueError, match="too few"):
        characters.split("short")


def test_a_python_without_its_manual_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(TextMissing, match="pydoc_data"):
        characters.manual.__wrapped__()


def test_the_masked_loss_counts_only_hidden_characters_and_hides_them():
    model, text = make(Encoder, race.TINY), characters.manual().exam(4, 33)
    seen = []
    model.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    loss = learning.hidden_character(model, text, torch.Generator().manual_seed(0))
    hidden = seen[0].eq(characters.HIDDEN)
    assert 0 < hidden.double().mean() < 0.4 and hidden.any(1).all()
    assert seen[0][~hidden].equal(text[~hidden])
    scores = model(seen[0]).log_softmax(-1).gather(-1, text[..., None])[..., 0]
    torch.testing.assert_close(loss, -scores[hidden].mean())


def test_the_causal_loss_is_that_of_each_next_character():
    model, text = make(Decoder, race.TINY), characters.manual().exam(4, 33)
    scores = model(text[:, :-1]).log_softmax(-1).gather(-1, text[:, 1:, None])
    torch.testing.assert_close(learning.next_character(model, text), -scores.mean())


def test_recurrent_and_decoder_learn_more_than_letter_counts():
    result = race.run(steps=60, length=48)
    for curve in result.curves.values():
        assert curve.bits[0] > result.unigram > curve.bits[-1] + 0.4
        assert curve.steps == [6 * n for n in range(11)]
        assert curve.seconds[0] == 0 and curve.seconds == sorted(curve.seconds)
    tuned = race.fine_tune(
        result.models["Transformer (decoder)"], characters.split("the lock " * 4000), 20
    )
    pretrained, scratch = tuned.curves["pretrained"], tuned.curves["from scratch"]
    assert pretrained.bits[0] < scratch.bits[0] - 1
    assert pretrained.bits[-1] < pretrained.bits[0]
    changed = tuned.models["pretrained"].embed_tokens.weight
    assert not changed.equal(result.models["Transformer (decoder)"].embed_tokens.weight)


def test_the_same_seed_learns_the_same():
    def learnt() -> list[float]:
        dice, model = torch.Generator().manual_seed(0), make(Decoder, race.TINY)
        text = characters.manual()
        lesson = learning.Pupil(
            model,
            lambda: learning.next_character(model, text.windows(4, 17, dice)),
            lambda: learning.next_character(model, text.exam(2, 17)),
        )
        return learning.learn({"one": lesson}, 10, exams=5)["one"].bits

    assert learnt() == learnt()


def test_both_objectives_are_learnt():
    result = race.objectives(steps=60)
    causal, masked = result.curves.values()
    assert causal.bits[-1] < result.unigram - 0.4
    assert masked.bits[-1] < result.unigram + 0.1  # as yet little more than letter counts
    assert race.plot(result).axes


def test_dates_are_spelt_and_held_out_as_they_say():
    for day in (datetime.date(1987, 9, 3), datetime.date(2049, 12, 31)):
        assert all(len(text) <= dates.WIDTH for text in dates.spellings(day))
    assert dates.FIRST_DAY + datetime.timedelta(dates.DAYS) == datetime.date(2050, 1, 1)
    made = {held: dates.pairs(300, torch.Generator().manual_seed(0), held) for held in (0, 1)}
    for held, pairs in made.items():
        for source, target in zip(pairs.source, pairs.target, strict=True):
            day = datetime.date.fromisoformat(dates.decode(target))
            assert dates.decode(source) in dates.spellings(day)
            assert ((day - dates.FIRST_DAY).days % 10 == 0) is bool(held)
    for text in ("Ω", "1" * 30):
        with pytest.raises(ValueError, match="text="):
            dates.encode([text], dates.WIDTH)


def test_the_encoder_decoder_learns_dates():
    result = dates.run(steps=60)
    assert result.curve.bits[-1] < 1.2 < 3 < result.curve.bits[0]
    assert result.weights.shape == (200, 4, dates.ISO, dates.WIDTH)
    exact = [dates.decode(a) == dates.decode(t)
             for a, t in zip(result.answers, result.exam.target, strict=True)]  # fmt: skip
    assert result.exact == pytest.approx(sum(exact) / 200)
    assert dates.plot(result).axes


def test_each_step_and_layer_of_the_chain_is_a_span():
    result = chain.run(length=8)
    spans = {lane: result.trace.select(lane=lane).spans for lane in chain.LANES}
    assert [len(spans[lane]) for lane in chain.LANES] == [8, 3, 8, 8]
    for lane in spans.values():
        assert lane[0].start == 0
        assert all(a.end <= b.start for a, b in zip(lane, lane[1:], strict=False))
    assert chain.plot(result).axes


def test_lengths_measure_both_at_each_length():
    result = chain.lengths(longest=128)
    assert result.lengths == (8, 32, 128)
    assert {len(times) for times in result.seconds.values()} == {3}
    assert chain.plot_lengths(result).axes


def test_bad_input_is_refused():
    for call in (
        lambda: race.run(steps=5),
        lambda: race.run(length=7.5),
        lambda: dates.run(shown=0),
        lambda: chain.lengths(longest=100),
    ):
        with pytest.raises(ValueError, match="is not allowed"):
            call()
    with pytest.raises(ValueError, match="steps=3"):
        learning.learn({}, 3, exams=5)


@pytest.mark.parametrize("experiment", [race.run, race.objectives, dates.run, chain.run])
def test_cancel_ends_it_and_gives_the_threads_back(experiment):
    torch.set_num_threads(2)
    control = Control()
    control.cancel()
    with controlled(control), pytest.raises(Cancelled):
        experiment()
    assert torch.get_num_threads() == 2


def test_cancel_in_the_middle_of_learning():
    control, calls = Control(), []

    def lesson() -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            control.cancel()
        return model(dates_given.source, dates_given.real, dates_given.target)[0].sum()

    model, dates_given = make(EncoderDecoder, dates.CONFIG), dates.pairs(2, torch.Generator())
    with controlled(control), pytest.raises(Cancelled):
        learning.learn({"one": learning.Pupil(model, lesson, lesson)}, 20, exams=1)
    assert len(calls) == 3
