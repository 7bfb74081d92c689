"""Chapter 1 as a person meets it: run, move a slider, cancel a run, and see the picture change."""

from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
CHAPTER = "chapters/01_overview.ipynb"
MINUTES = 60


@pytest.fixture(scope="module")
def index() -> dict[str, int]:
    """Where each cell stands, by its id."""
    cells = nbformat.read(ROOT / CHAPTER, as_version=4).cells
    return {cell.id: number for number, cell in enumerate(cells)}


@pytest.mark.timeout(10 * MINUTES)
def test_chapter_1_runs_and_answers_to_its_sliders(lab, index: dict[str, int]) -> None:
    book = lab.open_copy(CHAPTER)
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


def _ran(book, number: int) -> bool:
    cell = book.cell(number)
    cell.scroll_into_view_if_needed()
    return cell.locator(".jp-InputPrompt").inner_text().strip("[]: ").isdigit()
