"""Controls for an experiment, made from its signature: move a slider, see the new picture.

    explore(ask, plot_ask)             # every parameter at its default
    explore(ask, plot_ask, people=8)   # another start

The first result is computed and drawn while the cell runs, so a headless run shows what a person
sees. Later runs happen in a thread (`runner.Runner`), so Cancel works and the notebook stays
alive; only one experiment measures at a time. An error is shown below the controls; if the
*first* run fails, the cell fails too, and so does a test of the notebook.

The picture exists twice, of which one is seen. A widget shows it while a kernel is there; it also
follows after the page was reloaded, when Jupyter no longer knows where `update_display_data` was
to go. A plain output holds it in saved, executed and exported copies, where no kernel gives a
widget its state. The widget carries the style rule that hides the plain one.
"""

from __future__ import annotations

import contextlib
import html
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
from IPython.core.getipython import get_ipython
from IPython.display import HTML, DisplayHandle, Image, display

from utils.core import bench
from utils.core.experiment import (
    Cancelled,
    Control,
    Parameter,
    Progress,
    current,
    one_at_a_time,
    parameters,
)
from utils.core.machine import CoreMeter
from utils.core.plots import BLUE, PAPER_GREY, VERMILION, Picture
from utils.core.runner import Outcome, Runner, Values

_QUIET = 0.15  # s without a further change before a run starts: arrow keys come in bursts
_TICK = 0.1  # s between two looks at a run's progress
_HIDE_PLAIN_PICTURE = """<style>
.jp-OutputArea-child:has(.explore-picture) + .jp-OutputArea-child { display: none }
</style>"""


@dataclass(frozen=True)
class _Drawn:
    result: Any
    png: bytes
    width: int  # of the picture on screen, in pixels
    seconds: float


class Exploration:
    """An experiment with its controls on screen. `run`, `cancel` and `close` do what they say."""

    result: Any = None  # of the last run that finished
    error: BaseException | None = None  # of the last run, if it did not

    def __init__(
        self, run: Callable[..., Any], plot: Callable[[Any], Picture], start: Values
    ) -> None:
        self._experiment, self._plot = run, plot
        declared = {parameter.name: parameter for parameter in parameters(run)}
        if unknown := set(start) - set(declared):
            raise TypeError(f"{run.__name__} has no parameter {', '.join(sorted(unknown))}")
        self._declared = declared
        self._controls = {
            name: _control(parameter, parameter.check(start.get(name, parameter.default)))
            for name, parameter in declared.items()
        }
        self._panel = _Panel(list(self._controls.values()))
        self._handle: DisplayHandle | None = None
        self._runner = Runner(self._work, self._finish)
        for control in self._controls.values():
            control.observe(self._moved, names="value")
        self._panel.run.on_click(lambda _: self._request())
        self._panel.cancel.on_click(lambda _: self.cancel())

    @property
    def values(self) -> dict[str, Any]:
        """What the controls are set to."""
        return {name: control.value for name, control in self._controls.items()}

    def run(self, **values: Any) -> Any:
        """Set controls, run, wait and return the result; raises what the experiment raised."""
        checked = {name: self._declared[name].check(value) for name, value in values.items()}
        for name, value in checked.items():
            self._controls[name].value = value
        self._panel.blocked = True
        self._request()
        try:
            # Joined in slices: a wait without a timeout ignores Ctrl-C on Windows.
            while not self._runner.wait(_TICK):
                pass
        except KeyboardInterrupt:
            self.cancel()
            raise
        finally:
            self._panel.blocked = False
        if self.error is not None:
            raise self.error
        return self.result

    def cancel(self) -> None:
        """Stop at the experiment's next checkpoint; the last picture stays."""
        self._runner.cancel()

    def close(self) -> None:
        """Cancel and take the controls off the screen."""
        self._runner.close()
        self._panel.close()

    def show(self) -> None:
        """Put the controls and, right below them, the plain picture into the running cell."""
        display(self._panel.box)
        self._handle = display(HTML(""), display_id=True)

    def _ipython_display_(self) -> None:
        """Show nothing more when it is a cell's last expression."""

    def _moved(self, _: Any) -> None:
        self._request(quiet=_QUIET)

    def _request(self, quiet: float = 0.0) -> None:
        self._panel.busy("starting")
        self._runner.request(self.values, quiet=quiet)

    # The rest runs in the runner's thread, one call at a time.

    def _work(self, values: Values) -> _Drawn:
        with self._panel.following(current()), one_at_a_time():
            start = time.perf_counter()
            result = self._experiment(**values)
            seconds = time.perf_counter() - start
            png, size = self._plot(result)._repr_png_()
            return _Drawn(result, png, size["width"], seconds)

    def _finish(self, outcome: Outcome[_Drawn]) -> None:
        self.error = outcome.error
        if isinstance(outcome.error, Cancelled):
            self._panel.idle("cancelled; the picture shows the last run that finished")
        elif outcome.error is not None:
            self._panel.idle("", error=outcome.error)
        else:
            drawn = outcome.result
            assert drawn is not None
            self.result = drawn.result
            self._panel.draw(drawn.png, drawn.width)
            if self._handle is not None:
                self._handle.update(Image(drawn.png, width=drawn.width))
            self._panel.idle(f"ran in {bench.seconds(drawn.seconds)}")


def explore(run: Callable[..., Any], plot: Callable[[Any], Picture], **start: Any) -> Exploration:
    """Show controls for the experiment `run`, run it once and draw `plot(result)`.

    `start` sets controls to other values than the experiment's defaults. Running the cell again
    replaces what it showed before. Outside a notebook nothing is shown.
    """
    exploration = Exploration(run, plot, start)
    _replace_in_cell(exploration)
    if get_ipython() is not None:
        exploration.show()
    exploration.run()
    return exploration


_in_cell: dict[str, tuple[str, list[Exploration]]] = {}  # cell -> its execution, what it showed


def _replace_in_cell(exploration: Exploration) -> None:
    """Close what an earlier execution of the running cell showed; remember the new one."""
    parent = getattr(get_ipython(), "get_parent", dict)() or {}
    cell = parent.get("metadata", {}).get("cellId")
    if cell is None:
        return
    execution = parent["header"]["msg_id"]
    before, shown = _in_cell.get(cell, (execution, []))
    if before != execution:
        for old in shown:
            old.close()
        shown = []
    _in_cell[cell] = (execution, [*shown, exploration])


def _control(parameter: Parameter, value: Any) -> widgets.ValueWidget:
    """The widget for one parameter, its whole label readable."""
    common: dict[str, Any] = {
        "description": parameter.label,
        "value": value,
        "style": {"description_width": "initial"},
        "layout": {"width": "auto", "margin": "2px 24px 2px 2px"},
    }
    if parameter.kind == "bool":
        return widgets.Checkbox(indent=False, **common)
    if parameter.kind == "choice":
        return widgets.Dropdown(options=[(str(c), c) for c in parameter.choices], **common)
    assert parameter.range is not None
    slider = widgets.IntSlider if parameter.kind == "int" else widgets.FloatSlider
    common["layout"] |= {"width": f"{300 + 7 * len(parameter.label)}px"}
    ends = {"min": parameter.range.low, "max": parameter.range.high, "step": parameter.range.step}
    if parameter.kind == "int":
        ends = {name: int(end) for name, end in ends.items()}
    return slider(continuous_update=False, **ends, **common)


class _Panel:
    """The controls and, below them, one line that tells how the run is doing."""

    blocked = False  # a cell is waiting for the run: the kernel sees no click before it ends

    def __init__(self, controls: list[widgets.ValueWidget]) -> None:
        button = {"width": "76px"}
        self.run = widgets.Button(description="Run", button_style="primary", layout=button)
        self.cancel = widgets.Button(description="Cancel", disabled=True, layout=button)
        # Two buttons: on one that changes its meaning, the second click of two would cancel.
        self._bar = widgets.FloatProgress(
            min=0, max=1, layout={"width": "160px", "height": "16px", "margin": "0 8px 0 12px"}
        )
        self._meter = widgets.HTML(layout={"margin": "0 8px 0 0"})
        self._status = widgets.HTML(layout={"flex": "1 1 240px", "margin": "0 0 0 8px"})
        self._error = widgets.HTML()
        self._picture = widgets.Image(
            layout={"display": "none", "max_width": "100%", "margin": "0"}
        )
        self._picture.add_class("explore-picture")
        line = {"flex_flow": "row wrap", "align_items": "center"}
        row = [self.run, self.cancel, self._bar, self._meter, self._status]
        self.box = widgets.VBox(
            [
                widgets.HBox(controls, layout=line),
                widgets.HBox(row, layout=line),
                self._error,
                self._picture,
                widgets.HTML(_HIDE_PLAIN_PICTURE, layout={"display": "none"}),
            ]
        )
        self.box.layout.margin = "4px 0 8px"
        self._bar.layout.display = "none"

    def draw(self, png: bytes, width: int) -> None:
        self._picture.value = png
        self._picture.layout.width, self._picture.layout.display = f"{width}px", None

    def busy(self, note: str, *, progress: float = 0.0, cores: tuple[float, ...] = ()) -> None:
        self.run.disabled, self.cancel.disabled = True, self.blocked
        self._bar.layout.display = None
        self._bar.value = progress
        self._meter.value = _meter(cores)
        self._status.value = _grey(note + " · ■ stops the cell" * self.blocked)
        self._error.value = ""

    def idle(self, note: str, *, error: BaseException | None = None) -> None:
        self.run.disabled, self.cancel.disabled = False, True
        self._bar.layout.display = "none"
        self._meter.value = ""
        self._status.value = _grey(note)
        self._error.value = "" if error is None else _error(error)

    @contextlib.contextmanager
    def following(self, control: Control) -> Iterator[None]:
        """Show the progress of `control`'s run, and how busy the cores are, ten times a second."""
        ended = threading.Event()
        began = time.monotonic()

        def follow(meter: CoreMeter) -> None:
            while not ended.is_set():
                elapsed = time.monotonic() - began
                share, note = _describe(control, elapsed)
                self.busy(note, progress=share, cores=meter.latest)
                ended.wait(_TICK)

        with CoreMeter(2 * _TICK) as meter:
            thread = threading.Thread(target=follow, args=[meter], name="progress", daemon=True)
            thread.start()
            try:
                yield
            finally:
                ended.set()
                thread.join(timeout=5)

    def close(self) -> None:
        for widget in _tree(self.box):
            widget.close()


def _tree(widget: widgets.Widget) -> Iterator[widgets.Widget]:
    """`widget`, everything in it, and their layouts and styles: each has a model of its own."""
    for child in getattr(widget, "children", ()):
        yield from _tree(child)
    for part in (getattr(widget, "layout", None), getattr(widget, "style", None)):
        if isinstance(part, widgets.Widget):
            yield part
    yield widget


def _describe(control: Control, elapsed: float) -> tuple[float, str]:
    """Share done (a sweep of 2 s while the total is unknown) and a line about it."""
    progress: Progress = control.progress
    parts = ["cancelling" if control.cancelled else "running", f"{elapsed:.1f} s"]
    if progress.note:
        parts.insert(1, progress.note)
    if progress.total > 0:
        parts.insert(1, f"{progress.done:.3g} of {progress.total:g}")
        return min(1.0, progress.done / progress.total), " · ".join(parts)
    return elapsed % 2 / 2, " · ".join(parts)


def _grey(text: str) -> str:
    style = "color:var(--jp-ui-font-color2,#666);font-size:12px;white-space:nowrap"
    return f'<span style="{style}" role="status">{html.escape(text)}</span>'


def _meter(cores: tuple[float, ...]) -> str:
    """One small bar a core, filled as far as it is busy."""
    bars = "".join(
        f'<i title="core {number}: {busy:.0%} busy" style="display:inline-block;width:6px;'
        f"height:18px;margin-right:2px;background:linear-gradient(to top,{BLUE} {busy:.0%},"
        f'{PAPER_GREY} 0)"></i>'
        for number, busy in enumerate(cores)
    )
    label = f"how busy the {len(cores)} cores are"
    style = "display:flex;align-items:center;height:28px"
    return f'<div style="{style}" role="img" aria-label="{label}">{bars}</div>' if cores else ""


def _error(error: BaseException) -> str:
    """The error in one line, its traceback folded below."""
    line = html.escape(f"{type(error).__name__}: {error}")
    trace = html.escape("".join(traceback.format_exception(error)))
    return (
        f'<details style="font-size:12px;line-height:1.4"><summary style="color:{VERMILION}">'
        f'{line}</summary><pre style="overflow:auto;max-height:240px">{trace}</pre></details>'
    )
