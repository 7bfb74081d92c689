"""The search finds what a comparison with every note finds, and a note changes the answer."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.core import assets, plots
from utils.core.experiment import Cancelled, Control, controlled
from utils.core.workers import intra_op
from utils.deep_learning import digits, models
from utils.llm import tokens, weights
from utils.llm.decoder import Config, Decoder
from utils.llm.knowledge import answering
from utils.llm.knowledge.notes import FACTS, library
from utils.llm.knowledge.retrieval import Hit, Library
from utils.overview.areas.nlp import encode


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with intra_op(1):
        yield


@pytest.fixture(scope="module")
def known() -> Library:
    return Library.of(library())


def test_a_vector_is_the_mean_of_its_real_tokens_and_has_length_1():
    from tokenizers import Tokenizer
    from transformers import BertModel

    texts = ["Short.", "A longer text, of more words than the other one, pads that one."]
    folder = assets.path("minilm")
    model = BertModel.from_pretrained(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    together = encode(texts)
    for text, vector in zip(texts, together, strict=True):
        with torch.inference_mode():
            states = model(torch.tensor([tokenizer.encode(text).ids])).last_hidden_state[0]
        mean = states.mean(0)  # alone there is no padding
        torch.testing.assert_close(vector, mean / mean.norm(), rtol=0, atol=1e-5)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(2))


@given(count=st.integers(0, 60), question=st.sampled_from([f.question for f in FACTS.values()]))
@settings(max_examples=15, deadline=None)
def test_a_search_is_a_sort_of_all_cosines(known, count, question):
    asked = encode([question])[0]
    scores = [torch.cosine_similarity(asked, vector, dim=0).item() for vector in known.vectors]
    order = sorted(range(len(scores)), key=lambda place: -scores[place])[:count]
    hits = known.search(question, count)
    assert [hit.place for hit in hits] == order
    assert [hit.score for hit in hits] == pytest.approx([scores[p] for p in order], abs=1e-5)


def test_the_best_of_all_is_among_the_best_of_each_part(known):
    question = FACTS["digits"].question
    parts = [
        [Hit(hit.place + start, hit.score) for hit in part.search(question, 5)]
        for start in range(0, 46, 10)
        for part in [Library(known.notes[start : start + 10], known.vectors[start : start + 10])]
    ]
    merged = sorted(sum(parts, []), key=lambda hit: -hit.score)[:5]
    whole = known.search(question, 5)
    assert [hit.place for hit in merged] == [hit.place for hit in whole]


def test_every_question_finds_its_note(known):
    for place, fact in enumerate(FACTS.values(), start=40):
        assert known.search(fact.question, 1)[0].place == place


def test_the_notes_are_true():
    practice, held_out = digits.load()
    truth = {
        "parameters": sum(p.numel() for p in models.make("small").parameters()),
        "digits": len(practice),
        "held out": len(held_out),
        "layers": len(weights.smollm2().layers),
        "vocabulary": len(weights.smollm2().embed_tokens.weight),
        "colour": next(name for name in ("blue", "green") if plots.color("compute") == plots.BLUE),
    }
    assert {subject: fact.answer for subject, fact in FACTS.items()} == {
        subject: str(value) for subject, value in truth.items()
    }


def test_a_lie_replaces_one_note():
    told = [(a, b) for a, b in zip(library(), library("layers"), strict=True) if a != b]
    assert told == [tuple(FACTS["layers"].text.format(n) for n in ("30", "84"))]


def test_bits_are_the_chances_of_each_token_multiplied():
    torch.manual_seed(0)
    config = Config(layers=2, hidden=32, heads=4, kv_heads=2, head_dim=8, intermediate=64)
    model, vocabulary = Decoder(config).double().eval(), tokens.smollm2()
    text, answer = "How many?", " 4000 of them"
    said, chance = vocabulary.encode(text), 1.0
    for token in vocabulary.encode(answer):
        chance *= model(torch.tensor([said]))[0, -1].softmax(0)[token].item()
        said.append(token)
    assert answering.bits(model, vocabulary, text, answer) == pytest.approx(-math.log2(chance))


def test_bad_input_is_refused(known):
    with pytest.raises(ValueError, match="notes is empty"):
        Library.of([])
    with pytest.raises(ValueError, match="count=-1"):
        known.search("what?", -1)
    with pytest.raises(ValueError, match="question=' '"):
        known.search(" ", 1)
    with pytest.raises(ValueError, match="answer=''"):
        answering.bits(weights.smollm2(), tokens.smollm2(), "a", "")
    with pytest.raises(ValueError, match="is not allowed"):
        answering.ask(notes=7)


@pytest.mark.parametrize("lie", [False, True])
def test_the_model_believes_its_note(lie):
    asked = answering.ask("vocabulary", 1, lie)
    fact = FACTS["vocabulary"]
    told, other = (fact.wrong, fact.answer) if lie else (fact.answer, fact.wrong)
    assert [hit.place for hit in asked.used] == [44] and told in asked.notes[44]
    assert asked.surprise["with", told] < asked.surprise["without", told] - 10
    assert asked.surprise["with", told] < asked.surprise["with", other] - 10
    assert told in asked.said["with"] and told not in asked.said["without"]
    assert plots.png(answering.plot(asked)).startswith(b"\x89PNG")


def test_without_notes_both_ways_are_one():
    asked = answering.ask("layers", 0)
    assert asked.used == [] and asked.said["with"] == asked.said["without"]
    for answer in ("30", "84"):
        assert asked.surprise["with", answer] == asked.surprise["without", answer]


def test_a_cancelled_question_stops():
    control = Control()
    control.cancel()
    with controlled(control), pytest.raises(Cancelled):
        answering.ask()
