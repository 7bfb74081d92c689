"""The scheduler's board: a button for every thread that can go on, and all there is to see."""

from __future__ import annotations

import html
import inspect
from collections.abc import Callable, Mapping

import ipywidgets as widgets
from IPython.core.getipython import get_ipython
from IPython.display import display

from utils.core import plots
from utils.threads.schedules.by_hand import Hand, Position, Standing
from utils.threads.schedules.search import Program

_BUTTONS = 8  # choices shown at once; more threads than that are not for hands
_LANES = (plots.BLUE, plots.ORANGE, plots.GREEN, plots.PURPLE, plots.SKY, plots.VERMILION)


class Board:
    """Widgets around a `Hand`. `box` is what to display."""

    def __init__(self, program: Program) -> None:
        self.hand = Hand(program)
        self._lines, self._first = inspect.getsourcelines(program)
        wide = {"width": "auto", "min_width": "132px"}
        self.choices = [widgets.Button(layout=dict(wide)) for _ in range(_BUTTONS)]
        for number, button in enumerate(self.choices):
            button.on_click(lambda _, number=number: self._chosen(number))
        self.back = widgets.Button(description="Back", layout={"width": "76px"})
        self.restart = widgets.Button(description="Start over", layout={"width": "96px"})
        self.text = widgets.Text(
            description="schedule",
            continuous_update=False,
            placeholder="paste a schedule and press Load",
            layout={"flex": "1 1 320px"},
        )
        self.load = widgets.Button(description="Load", layout={"width": "76px"})
        self.back.on_click(lambda _: self._do(self.hand.back))
        self.restart.on_click(lambda _: self._do(self.hand.restart))
        self.load.on_click(lambda _: self._do(lambda: self.hand.load(self.text.value)))
        self._view, self._said = widgets.HTML(), widgets.HTML()
        row = {"flex_flow": "row wrap", "align_items": "center"}
        self.box = widgets.VBox(
            [
                self._view,
                widgets.HBox(self.choices, layout=row),
                self._said,
                widgets.HBox([self.back, self.restart, self.text, self.load], layout=row),
            ],
            layout={"margin": "4px 0 12px"},
        )
        self._show(self.hand.position)

    def _chosen(self, number: int) -> None:
        options = self.hand.position.choices
        if number < len(options):  # a second click may come before the first has been shown
            self._do(lambda: self.hand.step(options[number]))

    def _do(self, action: Callable[[], Position]) -> None:
        try:
            self._show(action())
        except ValueError as error:
            self._said.value = _banner(str(error), plots.ORANGE)

    def _show(self, position: Position) -> None:
        # First of all: once the new buttons are there, a person may paste another schedule.
        self.text.value = position.schedule
        threads = {standing.thread: index for index, standing in enumerate(position.threads)}
        self._view.value = (
            '<div style="display:flex;flex-wrap:wrap;gap:24px;line-height:1.35">'
            f"<div>{self._source(position, threads)}</div>"
            f"<div>{_threads(position, threads)}"
            f"{_table('shared variable', 'value', position.shared)}"
            f"{_table('lock', 'held by', position.locks)}</div></div>"
        )
        for number, button in enumerate(self.choices):
            shown = number < len(position.choices)
            button.layout.display = None if shown else "none"
            if shown:
                button.description = _offer(position, number)
                task = position.choices[number].task
                button.style.button_color = _LANES[task % len(_LANES)] + "33"
        self.back.disabled = self.restart.disabled = not self.hand.steps
        self._said.value = _outcome(position)

    def _source(self, position: Position, threads: Mapping[str, int]) -> str:
        rows = []
        for number, text in enumerate(self._lines, self._first):
            here = [s.thread for s in position.threads if s.line == number]
            tags = "".join(_tag(name, threads[name]) for name in here)
            shade = "background:var(--jp-layout-color2)" if here else ""
            rows.append(
                f'<div style="white-space:pre;{shade}"><span style="display:inline-block;'
                f'min-width:72px;text-align:right">{tags}</span>'
                f'<span style="color:#999"> {number:3} </span>{html.escape(text.rstrip())}</div>'
            )
        return f'<div style="font-family:monospace;font-size:12px">{"".join(rows)}</div>'


def by_hand(program: Program) -> Board:
    """Show a board on which you choose, step by step, which thread of `program` goes on."""
    board = Board(program)
    if get_ipython() is not None:
        display(board.box)
    return board


def _offer(position: Position, number: int) -> str:
    choice = position.choices[number]
    standing = position.threads[choice.task]
    if choice.expires:
        return f"{standing.thread}: time out"
    if standing.waits is not None:
        return f"{standing.thread}: go on after {standing.waits.what}"
    return f"{standing.thread}: {standing.next}"


def _tag(name: str, index: int) -> str:
    color = _LANES[index % len(_LANES)]
    return (
        f'<b style="background:{color};color:white;border-radius:3px;padding:0 4px;'
        f'margin-left:2px;font-size:11px">{html.escape(name)}</b>'
    )


def _threads(position: Position, threads: Mapping[str, int]) -> str:
    rows = {
        _tag(standing.thread, threads[standing.thread]): html.escape(_state(standing))
        for standing in position.threads
    }
    return _table("thread", "state", rows, escaped=True)


def _state(standing: Standing) -> str:
    if standing.finished:
        return "has ended"
    if standing.waits is not None:
        return f"waits for {standing.waits}"
    own = ", ".join(f"{name}={value}" for name, value in standing.variables.items())
    return f"next: {standing.next}" + (f"  ({own})" if own else "")


def _table(left: str, right: str, rows: Mapping[str, str], escaped: bool = False) -> str:
    if not rows:
        return ""
    cell = "padding:1px 12px 1px 0;text-align:left;font-size:12px"
    keep = str if escaped else html.escape
    lines = [(keep(name), keep(value) or "nobody") for name, value in rows.items()]
    cells = f'<td style="{cell}">'
    body = "".join(f"<tr>{cells}{a}</td>{cells}{b}</td></tr>" for a, b in lines)
    cell += ";color:#777"
    head = f'<tr><th style="{cell}">{left}</th><th style="{cell}">{right}</th></tr>'
    return f'<table style="border-collapse:collapse;margin-bottom:8px">{head}{body}</table>'


def _outcome(position: Position) -> str:
    if position.failure is not None:
        found = position.failure
        return _banner(f"You broke it. {found.kind}: {found.message}", plots.VERMILION)
    if position.survived:
        return _banner("It survived this schedule. Go back and try another one.", plots.GREEN)
    return ""


def _banner(text: str, color: str) -> str:
    return (
        f'<div role="status" style="border-left:6px solid {color};padding:4px 10px;'
        f'font-size:13px;line-height:1.4">{html.escape(text)}</div>'
    )
