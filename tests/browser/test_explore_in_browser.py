"""`explore` as a person meets it: a real server, a real kernel, a real browser."""

from __future__ import annotations

SETUP = """
import threading, time
from typing import Annotated, Literal
from utils.core.experiment import Range, checkpoint, experiment
from utils.core.explore import explore
from utils.core.plots import figure

log = []

@experiment
def light(people: Annotated[int, Range(1, 16, label="people asking at the same time")] = 3,
          mode: Literal["threads", "processes"] = "threads",
          share: Annotated[float, Range(0, 1, 0.05)] = 0.5, warm: bool = True):
    log.append(people)
    return people

@experiment
def slow(steps: Annotated[int, Range(1, 600)] = 1):
    log.append(steps)
    for step in range(steps):
        checkpoint(step, steps, "thinking")
        time.sleep(0.05)
    if steps == 2:
        raise RuntimeError("two is <not> possible")
    return steps

def plot(result):
    fig, ax = figure()
    ax.bar(["result"], [result])
    ax.set_ylim(0, 16)
    return fig
"""


def test_slider_by_keyboard_and_drag_changes_the_picture(jupyter):
    book = jupyter.open_cells(SETUP, "explore(light, plot)", "print(log)")
    book.run_all()
    assert not book.errors()
    first = book.picture()
    book.slider("people asking").press("PageUp")  # Notebook 7 keeps the arrow keys for itself
    book.wait(lambda: book.picture() != first, "a new picture after the key")
    second = book.picture()
    book.drag(book.slider("people asking"), share=1.0)
    book.wait(lambda: book.picture() not in (first, second), "a new picture after the drag")
    book.screenshot(f"light-{jupyter.view.split('/')[0]}")
    book.run_cell(2)
    # The drag passed over many values; only the one it ended on ran.
    assert "[3, 8, 16]" in book.cell(2).inner_text()


def test_cancel_and_error_leave_controls_usable(jupyter):
    book = jupyter.open_cells(SETUP, "explore(slow, plot)")
    book.run_all()
    first = book.picture()
    steps = book.slider("steps")
    book.drag(steps, share=1.0)
    book.page.get_by_text("of 600").wait_for()
    book.page.get_by_text("· thinking ·").wait_for()
    book.screenshot(f"running-{jupyter.view.split('/')[0]}")
    book.button("Cancel").click()
    book.page.get_by_text("cancelled").wait_for()
    assert book.picture() == first
    readout = book.page.locator(".widget-readout").first
    readout.fill("2")
    readout.press("Enter")
    book.page.locator("summary", has_text="RuntimeError: two is <not> possible").click()
    book.page.get_by_text("Traceback (most recent call last)").wait_for()
    book.screenshot(f"error-{jupyter.view.split('/')[0]}")
    readout.fill("9")
    readout.press("Enter")
    book.page.get_by_text("ran in").wait_for()
    book.wait(lambda: book.picture() != first, "a new picture after the error")


def test_ten_explores_survive_rerun_and_restart(lab):
    ten = "\n".join(["explore(light, plot)"] * 10)
    threads = (
        "print([t.name for t in threading.enumerate() if t.name in ("
        "'experiment', 'progress', 'core-meter')])"
    )
    widgets = "import ipywidgets; print('widgets', len(ipywidgets.widgets.widget._instances))"
    book = lab.open_cells(SETUP, ten, threads, widgets)
    book.run_all()
    counted = book.cell(3).locator(".jp-OutputArea-output").inner_text()
    assert "[]" in book.cell(2).locator(".jp-OutputArea-output").inner_text()
    book.run_cell(1)
    book.run_cell(3)
    assert book.cell(3).locator(".jp-OutputArea-output").inner_text() == counted
    book.restart_and_run_all()
    assert not book.errors()
    assert book.cell(3).locator(".jp-OutputArea-output").inner_text() == counted
    first = book.picture()
    book.slider("people asking").press("ArrowRight")
    book.wait(lambda: book.picture() != first, "a new picture after the restart")


def test_run_pressed_twice_runs_once(lab):
    book = lab.open_cells(SETUP, "x = explore(slow, plot, steps=20)", "print('ran', log)")
    book.run_all()
    book.button("Run").dblclick()
    book.page.get_by_text("of 20").wait_for()
    book.page.get_by_text("ran in").wait_for()
    book.run_cell(2)
    assert "ran [20, 20]" in book.cell(2).inner_text()


PNG_OF = """async address => {
    const bytes = new Uint8Array(await (await fetch(address)).arrayBuffer());
    return btoa(Array.from(bytes, byte => String.fromCharCode(byte)).join(''));
}"""


def test_one_picture_is_seen_and_the_saved_notebook_holds_it(jupyter):
    book = jupyter.open_cells(SETUP, "explore(light, plot)")
    book.run_all()
    first = book.picture()
    book.slider("people asking").press("End")
    book.wait(lambda: book.picture() != first, "a new picture")
    assert book.page.locator(".jp-OutputArea img").filter(visible=True).count() == 1
    png = book.page.evaluate(PNG_OF, book.picture())
    book.save()
    book.wait(lambda: png in book.path.read_text().replace("\\n", ""), "the picture in the file")


def test_controls_go_on_after_the_page_is_reloaded(jupyter):
    book = jupyter.open_cells(SETUP, "explore(light, plot)")
    book.run_all()
    book.save()
    book.page.reload()
    slider = book.slider("people asking")
    slider.wait_for()
    first = book.picture()
    slider.press("End")
    book.wait(lambda: book.picture() != first, "a new picture after the reload")
    assert book.page.locator(".jp-OutputArea img").filter(visible=True).count() == 1
