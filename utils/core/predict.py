"""Commit to an answer before the run; see guess, theory and measurement together after it.

    guess = predict("How much faster are 8 in one batch?", low=1, high=8, unit="×", key="batch")
    ...run the experiment...
    guess.reveal(theory=8, measured=result.speedup, because="One read of the weights serves all.")

Being wrong on record is what makes an explanation stick (Crouch et al., "Classroom
demonstrations: learning tools or entertainment?", American Journal of Physics 72, 2004). Whoever
skips it is not held up. Answers stay in a file on this machine, in `COURSE_HOME` if that is set.
"""

from __future__ import annotations

import html
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from filelock import FileLock
from IPython.core.getipython import get_ipython
from IPython.display import HTML, Markdown, display
from platformdirs import user_data_dir

from utils.core.plots import COLORS, Picture, figure

Answer = float | str


class Prediction:
    """One question. `value` is the answer committed to, or None."""

    def __init__(self, question: str, control: widgets.ValueWidget, unit: str, key: str) -> None:
        self.question, self.unit, self.key = question, unit, key
        self.value: Answer | None = None
        self._control, self._revealed = control, False
        self._status = widgets.HTML(layout={"margin": "0 0 0 8px"})
        earlier = _load().get(key, {}).get("guess")
        if earlier is not None and self._allows(earlier):
            control.value = self.value = earlier
            self._say(f"you said {self._text(earlier)} before")

    def commit(self, value: Answer) -> None:
        """Answer; the last answer before `reveal` counts. ValueError if it is not allowed."""
        if not self._allows(value):
            if isinstance(self._control, widgets.RadioButtons):
                allowed = "one of " + ", ".join(map(repr, self._control.options))
            else:
                allowed = f"a number from {self._control.min:g} to {self._control.max:g}"
            raise ValueError(f"{self.key}: {value!r} is not allowed; give {allowed}")
        if self._revealed:
            self._say("the answer is out; run this cell again for another try")
            return
        self._control.value = self.value = value
        self._say(f"noted: {self._text(value)}. Now run it")
        self._keep(guess=value)

    def reveal(self, *, measured: Answer, theory: Answer | None = None, because: str = "") -> None:
        """Show the guess (if any), what theory says and what was measured, and why."""
        self._revealed = True
        # Plain numbers: a NumPy scalar or a 0-d tensor cannot be written as JSON.
        measured = measured if isinstance(measured, str) else float(measured)
        theory = theory if theory is None or isinstance(theory, str) else float(theory)
        self._keep(guess=self.value, theory=theory, measured=measured)
        answers = {"guess": self.value, "theory": theory, "measured": measured}
        if isinstance(measured, str):
            display(HTML(self._compared_words(answers)))
        else:
            display(self._compared_numbers(answers))
        if because:
            display(Markdown(because))

    def show(self) -> None:
        """Put the question and its control into the running cell."""
        # The question is a plain output: exported copies show it without the control.
        display(Markdown(f"**Predict first.** {self.question}"))
        button = widgets.Button(description="Commit", layout={"width": "76px"})
        button.on_click(lambda _: self._clicked())
        row = {"flex_flow": "row wrap", "align_items": "center"}
        display(widgets.HBox([self._control, button, self._status], layout=row))

    def _clicked(self) -> None:
        if self._control.value is None:
            self._say("choose one first")
        else:
            self.commit(self._control.value)

    def _allows(self, value: Any) -> bool:
        if isinstance(self._control, widgets.RadioButtons):
            return value in self._control.options
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and self._control.min <= value <= self._control.max

    def _keep(self, **facts: Any) -> None:
        try:
            with _changing() as answers:
                answers[self.key] = {"question": self.question, "unit": self.unit, **facts}
        except OSError as error:  # a full or read-only disk must not stop a reader
            self._say(f"kept for this session only: {error}")

    def _text(self, value: Answer) -> str:
        return _text(value, self.unit)

    def _say(self, text: str) -> None:
        self._status.value = (
            '<span role="status" style="color:var(--jp-ui-font-color2,#666);font-size:12px">'
            f"{html.escape(text)}</span>"
        )

    def _compared_numbers(self, answers: dict[str, Any]) -> Picture:
        given = {name: value for name, value in answers.items() if value is not None}
        fig, ax = figure(7, 0.5 + 0.42 * len(given))
        bars = ax.barh(
            [_ORIGIN[name] for name in given],
            list(given.values()),
            color=[COLORS[name] for name in given],
            height=0.66,
        )
        ax.bar_label(bars, [self._text(value) for value in given.values()], padding=5, fontsize=9)
        ax.invert_yaxis()
        ax.margins(x=0.15)
        ax.grid(visible=False)
        ax.spines["bottom"].set_visible(False)
        ax.set_xticks([])
        if "guess" not in given:
            ax.set_title("no guess this time", loc="left", color="#666666", fontsize=9)
        return fig

    def _compared_words(self, answers: dict[str, Any]) -> str:
        rows = []
        for name, value in answers.items():
            if value is None and name != "guess":
                continue
            right = "" if name != "guess" or value is None else _mark(value == answers["measured"])
            text = html.escape("no guess this time" if value is None else str(value))
            rows.append(
                f'<tr><td style="text-align:left;border-left:6px solid {COLORS[name]}">'
                f'{_ORIGIN[name]}</td><td style="text-align:left"><b>{text}</b> {right}</td></tr>'
            )
        return f"<table>{''.join(rows)}</table>"


_ORIGIN = {"guess": "your guess", "theory": "theory", "measured": "measured"}


def predict(
    question: str,
    *,
    key: str,
    low: float | None = None,
    high: float | None = None,
    unit: str = "",
    choices: Sequence[str] = (),
) -> Prediction:
    """Ask for a number from `low` to `high` in `unit`, or for one of `choices`.

    `key` names the answer across notebooks and restarts, such as `"overview/batch"`.
    """
    wide = {"description_width": "initial"}
    control: widgets.ValueWidget
    if choices and low is None and high is None:
        control = widgets.RadioButtons(
            options=list(choices),
            value=None,
            style=wide,
            layout={"width": "max-content", "margin": "2px 24px 2px 2px"},
        )
    elif not choices and low is not None and high is not None and low < high:
        control = widgets.FloatSlider(
            min=low,
            max=high,
            value=(low + high) / 2,
            step=(high - low) / 100,
            description=unit,
            readout_format=",.0f" if high >= 1000 else ".3g",
            style=wide,
            layout={"width": "340px"},
        )
    else:
        raise ValueError(f"{key}: give either choices, or low < high; got {choices}, {low}, {high}")
    prediction = Prediction(question, control, unit, key)
    if get_ipython() is not None:
        prediction.show()
    return prediction


def scorecard() -> Markdown:
    """Every revealed prediction on this machine: what was guessed, and what was true."""
    rows, right, total = [], 0, 0
    for answer in _load().values():
        guess, measured = answer.get("guess"), answer.get("measured")
        if guess is None or measured is None:
            continue
        # Within a quarter counts as right: a run on another day differs by about that much.
        numbers = not isinstance(guess, str) and not isinstance(measured, str)
        hit = abs(guess - measured) <= 0.25 * abs(measured) if numbers else guess == measured
        total, right = total + 1, right + hit
        said, true = (_text(value, answer["unit"]) for value in (guess, measured))
        rows.append(f"| {answer['question']} | {said} | {true} | {_mark(hit)} |")
    if not rows:
        return Markdown("No prediction of yours has been revealed yet.")
    summary = f"{right} of {total} predictions right (numbers: within 25 %)"
    head = "| question | your guess | measured | |\n|:--|:--|:--|:--|"
    return Markdown("\n".join([summary, "", head, *rows]))


def _text(value: Answer, unit: str) -> str:
    if isinstance(value, str):
        return value
    return (f"{value:,.0f} {unit}" if abs(value) >= 1000 else f"{value:.3g} {unit}").strip()


def _mark(right: bool) -> str:
    return "✓" if right else "✗"


def _path() -> Path:
    home = os.environ.get("COURSE_HOME") or user_data_dir("concurrency-in-ai")
    return Path(home) / "predictions.json"


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The answers in `path`; ValueError if it holds something else."""
    if not path.exists():
        return {}
    answers = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(answers, dict) and all(isinstance(answer, dict) for answer in answers.values()):
        return answers
    raise ValueError(f"{path} does not hold predictions")


def _load() -> dict[str, dict[str, Any]]:
    """All answers, or none if they cannot be read. Needs no lock: the file is replaced whole."""
    try:
        return _read(_path())
    except (OSError, ValueError):
        return {}


@contextmanager
def _changing() -> Iterator[dict[str, dict[str, Any]]]:
    """The answers, to change: under a lock against other notebooks, written all or nothing."""
    path = _path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock"), timeout=10):
        try:
            answers = _read(path)
        except ValueError:  # set aside, never overwritten: someone may want to mend it
            path.replace(path.with_name(f"predictions.broken-{time.time_ns()}.json"))
            answers = {}
        yield answers
        text = json.dumps(answers, ensure_ascii=False, indent=1)
        descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix="predictions", suffix=".tmp")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(draft, path)
        except OSError:
            Path(draft).unlink(missing_ok=True)
            raise
