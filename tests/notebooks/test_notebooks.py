"""What holds for every chapter: stripped, small cells, complete; and the proof that CI can fail.

That each cell runs and nothing is left behind is the job of nbval and of `leftovers`, to which
`course.py test` gives the chapters.
"""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))

OUTLINE = {  # the finished chapters, and every item that each must cover
    "01_overview": [
        *(f"S1.1-{letter}" for letter in "abcdef"),
        *(f"S1.2-{letter}" for letter in "abcd"),
        *(f"S1.3-{letter}" for letter in "abcde"),
        "A1",
        "E1",
        "E2",
        "E3",
    ],
    "02_threads": [
        *(f"S2.1.1-{letter}" for letter in "abcd"),
        *(f"S2.1.2-{letter}" for letter in "abcde"),
        *(f"S2.1.3-{letter}" for letter in "abcdef"),
        "S2.2-a",
        *(f"S2.2.1-{letter}" for letter in "abcd"),
        *(f"S2.2.2-{letter}" for letter in "abcd"),
        *(f"S2.2.3-{letter}" for letter in "abcd"),
        "S2.3-a",
        *(f"S2.3.1-{letter}" for letter in "abc"),
        *(f"S2.3.2-{letter}" for letter in "abcd"),
        *(f"S2.3.3-{letter}" for letter in "abcd"),
        *(f"E{number}" for number in range(4, 12)),
    ],
    "03_performance": [
        *(f"S3.1-{letter}" for letter in "abcdefg"),
        *(f"S3.2-{letter}" for letter in "abcdefghi"),
        *(f"S3.3-{letter}" for letter in "abcdefgh"),
        "A3",
        *(f"E{number}" for number in range(12, 20)),
        "E23",
    ],
    "04_deep_learning": [
        *(f"S4.1-{letter}" for letter in "ab"),
        *(f"S4.1.1-{letter}" for letter in "abcde"),
        *(f"S4.1.2-{letter}" for letter in "abcdef"),
        *(f"S4.2.1-{letter}" for letter in "abc"),
        *(f"S4.2.2-{letter}" for letter in "abcd"),
        "A2",
        "A4",
        "A5",
        *(f"E{number}" for number in (20, 21, 22, 24, 25, 26, 27, 28, 29)),
    ],
}


@pytest.fixture(params=CHAPTERS, ids=lambda path: path.stem)
def chapter(request) -> tuple[Path, nbformat.NotebookNode]:
    return request.param, nbformat.read(request.param, as_version=4)


def _tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def stray_outputs(notebook: nbformat.NotebookNode) -> list[str]:
    """Ids of code cells with an output or a count that should have been stripped."""
    return [
        cell.id
        for cell in notebook.cells
        if cell.cell_type == "code"
        and "keep_output" not in _tags(cell)
        and (cell.outputs or cell.execution_count is not None)
    ]


def test_outputs_are_stripped_except_checked_ones(chapter) -> None:
    _, notebook = chapter
    assert stray_outputs(notebook) == []
    for cell in notebook.cells:
        if "keep_output" in _tags(cell):
            assert "nbval-check-output" in _tags(cell), f"{cell.id}: kept but not compared"
            assert cell.outputs, f"{cell.id}: nothing kept to compare with"
    assert "widgets" not in notebook.metadata


def test_the_stripped_check_can_fail() -> None:
    cell = nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output("stream", text="1")])
    assert stray_outputs(nbformat.v4.new_notebook(cells=[cell])) == [cell.id]


def test_every_item_of_the_outline_is_there(chapter) -> None:
    path, notebook = chapter
    said = [item for cell in notebook.cells for item in cell.metadata.get("outline", [])]
    assert sorted(set(said)) == sorted(OUTLINE[path.stem])


def test_code_cells_are_short(chapter) -> None:
    _, notebook = chapter
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert 1 <= len(cell.source.splitlines()) <= 15, cell.id


def ambiguous(notebook: nbformat.NotebookNode) -> list[str]:
    """Names that are imported and, somewhere else in the chapter, mean something else."""
    meanings: dict[str, set[str]] = {}
    assigned: set[str] = set()
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        nodes = list(ast.walk(ast.parse(cell.source)))
        comprehensions = [node for node in nodes if isinstance(node, ast.comprehension)]
        local = {id(name) for node in comprehensions for name in ast.walk(node.target)}
        for node in nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                for alias in node.names:
                    source = f"{getattr(node, 'module', '')}.{alias.name}"
                    meanings.setdefault(alias.asname or alias.name, set()).add(source)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                assigned |= {node.id} if id(node) not in local else set()
    twice = {name for name, sources in meanings.items() if len(sources) > 1}
    return sorted(twice | assigned & set(meanings))


def test_an_imported_name_means_one_thing(chapter) -> None:
    """Whoever goes back and runs an earlier cell again must meet what it met the first time."""
    assert ambiguous(chapter[1]) == []


@pytest.mark.parametrize("second", ["from b import x", "x = 1", "import x", "for x in (): ..."])
def test_the_ambiguous_check_can_fail(second: str) -> None:
    def book(*sources: str) -> nbformat.NotebookNode:
        return nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_code_cell, sources)])

    assert ambiguous(book("from a import x", second)) == ["x"]
    assert ambiguous(book("from a import x", "from a import x", "[x for x in ()]")) == []


def test_headings_carry_both_names(chapter) -> None:
    """`1.1 Name (名字)`: every numbered heading has its Chinese name beside it."""
    _, notebook = chapter
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for heading in re.findall(r"^#+ (.*)$", cell.source, flags=re.MULTILINE):
                assert re.search(r"[\u4e00-\u9fff]", heading), heading


def test_links_to_files_lead_somewhere(chapter) -> None:
    path, notebook = chapter
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\((?!https?://)([^)#]+)", cell.source):
                assert (path.parent / target).exists(), f"{cell.id}: {target}"


LEAKS = (None, ["leaks"], False)
SEGMENT = "/dev/shm/course-leak"


def _nbval(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run nbval on `folder`'s notebooks with the options that `course.py test` uses."""
    import course

    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *course.NBVAL, folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.parametrize(
    ("source", "output", "tags", "passes"),
    [
        ("print(1 + 1)", "2\n", ["keep_output", "nbval-check-output"], True),
        ("raise RuntimeError('broken on purpose')", None, [], False),
        ("print(1 + 2)", "2\n", ["keep_output", "nbval-check-output"], False),
        ("assert 1 == 2", None, [], False),
        ("import threading as t\nt.Thread(target=t.Event().wait, daemon=True).start()", *LEAKS),
        ("import subprocess as s\nchild = s.Popen(['sleep', '60'])", *LEAKS),
        ("import tempfile\nfile = tempfile.mkstemp()", *LEAKS),
        (
            "from multiprocessing import shared_memory as s\ns.SharedMemory(create=True, size=1)",
            *LEAKS,
        ),
    ],
    ids=[
        "sound",
        "raises",
        "wrong-output",
        "false-assertion",
        "thread",
        "process",
        "temporary-file",
        "shared-memory",
    ],
)
def test_the_gate_lets_sound_notebooks_pass_and_stops_broken_ones(
    tmp_path: Path, source: str, output: str | None, tags: list[str], passes: bool
) -> None:
    if SEGMENT in source and not os.path.isdir("/dev/shm"):
        pytest.skip("platform: no folder shows the segments of shared memory")
    outputs = [nbformat.v4.new_output("stream", name="stdout", text=output)] if output else []
    cell = nbformat.v4.new_code_cell(
        source, outputs=outputs, metadata={"tags": tags}, execution_count=1 if outputs else None
    )
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata=kernel)
    nbformat.write(notebook, tmp_path / "chapter.ipynb")
    done = _nbval(tmp_path)
    Path(SEGMENT).unlink(missing_ok=True)
    assert (done.returncode == 0) == passes, done.stdout
    assert ("3 passed" if passes else "1 failed, 2 passed") in done.stdout
    assert ("left behind: {" in done.stdout) == (tags is LEAKS[1])
