"""However they are served, people get the same answers, and every token is on the timeline."""

import threading

import pytest

from utils.core import plots
from utils.core.experiment import Cancelled, Control, controlled
from utils.overview import people


@pytest.fixture(scope="module")
def answers() -> people.Answers:
    return people.ask(people=3, tokens=4)


def test_all_modes_give_the_same_tokens(answers: people.Answers) -> None:
    first, *others = (run.tokens for run in answers.runs.values())
    assert all(tokens == first for tokens in others)
    assert tuple(answers.runs) == people.MODES
    assert [len(tokens) for tokens in first.values()] == [4, 4, 4]


def test_the_loop_agrees_with_the_library_s_generate() -> None:
    import torch

    questions = list(people.QUESTIONS.values())[:3]
    ours = people.answer(questions, tokens=6)
    tokenizer, model = people.tokenizer(), people.model()
    for question, tokens in zip(questions, ours, strict=True):
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        with torch.inference_mode():
            theirs = model.generate(**prompt, max_new_tokens=6, min_new_tokens=6, do_sample=False)
        assert tuple(theirs[0, prompt["input_ids"].shape[1] :].tolist()) == tokens


def test_every_token_is_recorded_once_and_in_order(answers: people.Answers) -> None:
    for mode, run in answers.runs.items():
        for person, tokens in run.tokens.items():
            spans = run.trace.select(lane=person).spans
            work = [span for span in spans if span.category != "queue"]
            assert [s.category for s in work] == ["prefill"] + ["decode"] * (len(tokens) - 1), mode
            assert all(a.end <= b.start for a, b in zip(spans, spans[1:], strict=False)), mode
            assert 0 < run.wait(person) <= run.seconds


def test_only_the_queue_makes_people_wait_for_each_other(answers: people.Answers) -> None:
    alone, batch = answers.runs["one after another"], answers.runs["one batch"]
    ends = [alone.trace.select(lane=person).end for person in alone.tokens]
    starts = [alone.trace.select(lane=p, category="prefill").start for p in alone.tokens]
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
    assert batch.trace.total("queue") == 0
    assert len({span.end for span in batch.trace.spans}) == 4  # one step serves everybody


def test_cancel_reaches_every_mode_and_leaves_no_thread() -> None:
    for mode in people.MODES:
        control = Control()
        before = set(threading.enumerate())
        asking = dict(list(people.QUESTIONS.items())[:2])
        with controlled(control), pytest.raises(Cancelled):
            threading.Timer(0.2, control.cancel).start()
            people._serve(mode, asking, tokens=400, before=0, total=2400)
        left = [t for t in set(threading.enumerate()) - before if t.name.startswith("ask")]
        assert not left, mode


def test_progress_counts_every_token_of_every_mode() -> None:
    seen = []

    class Watched(Control):
        progress = property(lambda self: seen[-1], lambda self, value: seen.append(value))

    control = Watched()
    with controlled(control):
        people.ask(people=2, tokens=4)
    counted = [step for step in seen if step.total]
    assert {step.total for step in counted} == {24}
    assert max(step.done for step in counted) == 24
    assert [note for note in people.MODES if note not in {s.note for s in counted}] == []


def test_one_and_sixteen_people_can_be_drawn() -> None:
    one = people.ask(people=1, tokens=4)
    assert one.best_speedup == 1
    assert plots.png(people.plot(one)).startswith(b"\x89PNG")
    assert len(people.QUESTIONS) == 16
    with pytest.raises(ValueError, match="people=17"):
        people.ask(people=17)
