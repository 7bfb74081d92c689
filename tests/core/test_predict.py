"""Predictions: kept, checked, shown beside theory and measurement, never in anyone's way."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import ipywidgets
import pytest

from utils.core import predict as module
from utils.core.predict import predict, scorecard


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("COURSE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def shown(monkeypatch) -> list:
    outputs: list = []
    monkeypatch.setattr(module, "display", outputs.append)
    return outputs


def number(**changes):
    asked = {"key": "ch1/batch", "low": 1, "high": 8, "unit": "×"} | changes
    return predict("How much faster?", **asked)


def word():
    return predict("Which is faster?", key="ch1/which", choices=["threads", "processes"])


def stored(home: Path) -> dict:
    return json.loads((home / "predictions.json").read_text(encoding="utf-8"))


def test_an_answer_survives_a_restart(home):
    number().commit(3)
    assert number().value == 3
    assert stored(home)["ch1/batch"]["guess"] == 3


@pytest.mark.parametrize("value", [0.5, 9, "3", True, None])
def test_a_number_out_of_bounds_is_refused(home, value):
    guess = number()
    with pytest.raises(ValueError, match="ch1/batch: .* give a number from 1 to 8"):
        guess.commit(value)
    assert guess.value is None
    assert not (home / "predictions.json").exists()


def test_an_unknown_choice_is_refused():
    with pytest.raises(ValueError, match="one of 'threads', 'processes'"):
        word().commit("asyncio")


@pytest.mark.parametrize("question", [{}, {"low": 1}, {"low": 2, "high": 1}])
def test_a_question_without_allowed_answers_is_refused(question):
    with pytest.raises(ValueError, match="give either choices, or low < high"):
        predict("?", key="k", **question)


def test_the_last_answer_before_reveal_counts(home, shown):
    guess = number()
    guess.commit(3)
    guess.commit(4)
    guess.reveal(theory=8, measured=2.5, because="one read serves all")
    guess.commit(2.5)
    assert guess.value == 4
    entry = stored(home)["ch1/batch"]
    assert (entry["guess"], entry["theory"], entry["measured"]) == (4, 8, 2.5)


def labels(picture) -> list[str]:
    (ax,) = picture.axes
    return [tick.get_text() for tick in ax.get_yticklabels()]


def test_reveal_draws_all_three_and_says_why(shown):
    guess = number()
    guess.commit(3)
    guess.reveal(theory=8, measured=2.5, because="one read serves all")
    picture, why = shown
    assert labels(picture) == ["your guess", "theory", "measured"]
    assert [bar.get_width() for bar in picture.axes[0].patches] == [3, 8, 2.5]
    assert why.data == "one read serves all"
    assert picture._repr_png_()[0].startswith(b"\x89PNG")


def test_reveal_without_a_guess_still_shows_the_rest(shown):
    number().reveal(theory=8, measured=2.5)
    assert labels(shown[0]) == ["theory", "measured"]
    assert "no guess" in shown[0].axes[0].get_title(loc="left")


def test_reveal_takes_numpy_numbers(home, shown):
    import numpy

    number().reveal(measured=numpy.float32(2.5))
    assert stored(home)["ch1/batch"]["measured"] == 2.5


@pytest.mark.parametrize(("said", "mark"), [("threads", "✗"), ("processes", "✓")])
def test_reveal_of_a_choice(shown, said, mark):
    guess = word()
    guess.commit(said)
    guess.reveal(measured="processes", because="the GIL")
    assert mark in shown[0].data and said in shown[0].data


def test_the_button_commits_what_the_control_says(monkeypatch, shown):
    monkeypatch.setattr(module, "get_ipython", lambda: object())
    guess = word()
    question, row = shown
    control, button, status = row.children
    assert "Which is faster?" in question.data
    button.click()
    assert guess.value is None and "choose" in status.value
    control.value = "threads"
    button.click()
    assert guess.value == "threads" and "noted" in status.value


def test_a_corrupted_file_is_set_aside(home):
    (home / "predictions.json").write_text('{"ch1/batch": {"gue')
    guess = number()
    assert guess.value is None
    guess.commit(3)
    assert stored(home)["ch1/batch"]["guess"] == 3
    (broken,) = home.glob("predictions.broken-*.json")
    assert broken.read_text() == '{"ch1/batch": {"gue'


def test_an_answer_that_no_longer_fits_the_question_is_forgotten():
    number().commit(7)
    assert number(high=5).value is None
    assert predict("?", key="ch1/batch", choices=["a"]).value is None


def test_a_home_that_cannot_be_written_stops_nobody(tmp_path, monkeypatch, shown):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COURSE_HOME", str(tmp_path / "file"))
    guess = number()
    guess.commit(3)
    guess.reveal(measured=3)
    assert guess.value == 3
    assert "this session only" in guess._status.value
    scorecard()


def commit_many(home: str, name: str) -> None:
    import os

    os.environ["COURSE_HOME"] = home
    for n in range(20):
        number(key=f"{name}/{n}").commit(2)


def test_two_notebooks_at_once_lose_nothing(home):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=commit_many, args=(str(home), name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=120)
        assert writer.exitcode == 0
    assert len(stored(home)) == 40
    assert not list(home.glob("*.tmp"))


def test_the_scorecard_counts_what_was_right(shown):
    assert "No prediction" in scorecard().data
    for key, guess, measured in (("a", 4, 4.5), ("b", 2, 8)):
        asked = number(key=key)
        asked.commit(guess)
        asked.reveal(measured=measured)
    number(key="c").commit(3)  # never revealed
    asked = word()
    asked.commit("threads")
    asked.reveal(measured="threads")
    assert "2 of 3 predictions right" in scorecard().data


def test_the_control_is_a_slider_or_a_list():
    assert isinstance(number()._control, ipywidgets.FloatSlider)
    assert word()._control.value is None  # nothing is chosen for the learner
