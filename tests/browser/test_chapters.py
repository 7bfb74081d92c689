"""The chapters as a person meets them: run, move a slider, cancel, break a program by hand."""

from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
OVERVIEW, THREADS = "chapters/01_overview.ipynb", "chapters/02_threads.ipynb"
PERFORMANCE = "chapters/03_performance.ipynb"
DEEP_LEARNING = "chapters/04_deep_learning.ipynb"
MINUTES = 60


def places(chapter: str) -> dict[str, int]:
    """Where each cell of a chapter stands, by its id."""
    cells = nbformat.read(ROOT / chapter, as_version=4).cells
    return {cell.id: number for number, cell in enumerate(cells)}


@pytest.mark.timeout(10 * MINUTES)
def test_chapter_1_runs_and_answers_to_its_sliders(lab) -> None:
    index = places(OVERVIEW)
    book = lab.open_copy(OVERVIEW)
    book.run_all(timeout=5 * MINUTES)
    book.wait(lambda: _ran(book, index["score"]), "the last cell run", timeout=5 * MINUTES)
    assert not book.errors()
    map_ = book.cell(index["map"])
    map_.scroll_into_view_if_needed()
    book.wait(lambda: map_.locator("img, svg").count() > 0, "the map drawn by Mermaid")
    book.screenshot("chapter-1-map")

    light = book.cell(index["history"])
    light.scroll_into_view_if_needed()
    first = book.picture(light)
    book.slider("from year", light).press("PageUp")
    book.wait(lambda: book.picture(light) != first, "a new timeline")
    book.screenshot("chapter-1-history")

    heavy = book.cell(index["ask"])
    heavy.scroll_into_view_if_needed()
    first = book.picture(heavy)
    book.slider("people asking", heavy).press("End")  # 16 people
    heavy.get_by_text("one after another").wait_for()
    book.screenshot("chapter-1-asking")
    book.button("Cancel", heavy).click()
    heavy.get_by_text("cancelled").wait_for()
    assert book.picture(heavy) == first
    book.slider("people asking", heavy).press("Home")  # one
    book.wait(lambda: book.picture(heavy) != first, "a new picture after cancelling")
    book.screenshot("chapter-1-asked")


@pytest.mark.timeout(10 * MINUTES)
def test_chapter_2_runs_and_lets_a_person_be_the_scheduler(lab) -> None:
    index = places(THREADS)
    book = lab.open_copy(THREADS)
    book.run_all(timeout=5 * MINUTES)
    book.wait(lambda: _ran(book, index["score"]), "the last cell run", timeout=5 * MINUTES)
    assert not book.errors()

    growth = book.cell(index["s224-growth"])
    growth.scroll_into_view_if_needed()
    first = book.picture(growth)
    book.slider("additions each", growth).press("PageDown")
    book.wait(lambda: book.picture(growth) != first, "a new picture of how schedules grow")
    book.screenshot("chapter-2-growth")

    board = book.cell(index["s224-hand"])
    board.scroll_into_view_if_needed()
    # Both begin and read; one writes; what is left is the other's, which writes over it.
    for step in ("add 1: begin", "add 2: begin", "add 1: read count", "add 2: read count"):
        book.button(step, board).click()
    book.button("add 1: write count", board).click()
    board.get_by_text("You broke it").wait_for()
    book.screenshot("chapter-2-broken-by-hand")
    schedule = board.get_by_placeholder("paste a schedule").input_value()
    assert schedule.startswith("main:") and " add_1:1 " in schedule
    book.button("Back", board).click()
    book.button("add 1: write count", board).wait_for()
    book.button("Start over", board).click()
    book.button("add 1: begin", board).wait_for()
    board.get_by_placeholder("paste a schedule").fill(schedule)
    book.button("Load", board).click()
    board.get_by_text("You broke it").wait_for()

    program, verdict = index["s224-mend"], index["s224-mend-check"]
    book.cell(verdict).scroll_into_view_if_needed()
    book.cell(verdict).get_by_text("loaded 2 times").first.wait_for()
    book.cell(program).locator(".cm-content").click()
    book.page.keyboard.press("Control+a")
    book.page.keyboard.insert_text(_MENDED)
    book.page.keyboard.press("Control+Enter")
    book.run_cell(verdict)
    book.cell(verdict).get_by_text("no schedule with up to 2 preemptions fails").wait_for()


_MENDED = """
def cache():
    pages, loads, lock = {}, [], threading.Lock()
    def get():
        with lock:
            if "home" not in pages:
                loads.append("home")
                pages["home"] = "..."
        return pages["home"]
    together(get, get)
    assert loads == ["home"], f"loaded {len(loads)} times"
"""


@pytest.mark.timeout(10 * MINUTES)
def test_chapter_3_runs_and_balances_load_by_slider(lab) -> None:
    index = places(PERFORMANCE)
    book = lab.open_copy(PERFORMANCE)
    book.run_all(timeout=5 * MINUTES)
    book.wait(lambda: _ran(book, index["score"]), "the last cell run", timeout=5 * MINUTES)
    assert not book.errors()

    policies = book.cell(index["s332-explore"])
    policies.scroll_into_view_if_needed()
    first = book.picture(policies)
    policies.locator("select").nth(1).select_option("work stealing")
    book.wait(lambda: book.picture(policies) != first, "the timeline of another policy")
    second = book.picture(policies)
    policies.locator("select").nth(2).select_option("1024")
    book.wait(lambda: book.picture(policies) != second, "a thousand workers")
    book.screenshot("chapter-3-a-thousand-workers")

    real = book.cell(index["s333-explore"])
    real.scroll_into_view_if_needed()
    first = book.picture(real)
    book.slider("workers", real).press("End")  # eight
    book.wait(lambda: book.picture(real) != first, "real threads at work")
    book.screenshot("chapter-3-two-clocks")


@pytest.mark.timeout(12 * MINUTES)
def test_chapter_4_runs_and_answers_to_its_sliders(lab) -> None:
    index = places(DEEP_LEARNING)
    book = lab.open_copy(DEEP_LEARNING)
    book.run_all(timeout=5 * MINUTES)
    book.wait(lambda: _ran(book, index["score"]), "the last cell run", timeout=8 * MINUTES)
    assert not book.errors()

    pipeline = book.cell(index["s412-bubble"])
    pipeline.scroll_into_view_if_needed()
    first = book.picture(pipeline)
    book.slider("micro", pipeline).press("End")
    book.wait(lambda: book.picture(pipeline) != first, "a pipeline with more micro-batches")
    book.screenshot("chapter-4-pipeline")

    engine = book.cell(index["serving-virtual"])
    engine.scroll_into_view_if_needed()
    first = book.picture(engine)
    book.slider("workers", engine).press("End")
    book.wait(lambda: book.picture(engine) != first, "an engine with more workers")
    book.screenshot("chapter-4-engine")


def _ran(book, number: int) -> bool:
    cell = book.cell(number)
    cell.scroll_into_view_if_needed()
    return cell.locator(".jp-InputPrompt").inner_text().strip("[]: ").isdigit()
