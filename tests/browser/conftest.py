"""A real Jupyter server and a real browser, for tests that act like a person.

    def test_it(lab):                        # `lab`: JupyterLab; `jupyter`: Lab and Notebook 7
        book = lab.open_cells("1 + 1")       # or lab.open_copy("chapters/01_overview.ipynb")
        book.run_all()                       # returns when no cell is running or queued
        book.slider("people").press("ArrowRight")
        book.wait(lambda: ...)               # every wait is on a condition, with a deadline

Nothing sleeps for a fixed time, so the tests hold on a slow machine. Set `BROWSER_SHOTS` to a
directory to keep the screenshots that `book.screenshot(name)` makes.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright")

ROOT = Path(__file__).parents[2]
DEADLINE = 120.0  # s; generous: a kernel with torch starts slowly on a busy machine
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_QUIET = [
    "--no-sandbox",  # containers run tests as root
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


class Book:
    """A notebook open in the browser. `page` is Playwright's page."""

    def __init__(self, page: playwright.Page, path: Path) -> None:
        self.page, self.path = page, path

    def until(self, condition: Callable[[], object], timeout: float) -> None:
        """Poll `condition` while the browser goes on working; TimeoutError after `timeout` s."""
        end = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError
            self.page.wait_for_timeout(20)

    def wait(self, condition: Callable[[], object], what: str, timeout: float = DEADLINE) -> None:
        """As `until`, but the test fails, naming `what` it waited for."""
        try:
            self.until(condition, timeout)
        except TimeoutError:
            self.screenshot("timeout")
            pytest.fail(f"waited {timeout:.0f} s in vain: {what}")

    def menu(self, *names: str) -> None:
        """Choose a menu entry, such as `menu("Run", "Run All Cells")`."""
        self.page.locator(".lm-MenuBar-itemLabel", has_text=names[0]).first.click()
        for name in names[1:]:
            entry = self.page.locator(".lm-Menu-itemLabel").get_by_text(name, exact=True)
            entry.last.click()

    def run_all(self, timeout: float = DEADLINE) -> None:
        """Run every cell and wait until none is running or queued."""
        before = self.prompts()
        for _ in range(3):
            # Just after loading, Jupyter may drop the request without a word: then ask again.
            self.menu("Run", "Run All Cells")
            with contextlib.suppress(TimeoutError):
                self.until(lambda: self.prompts() != before, 20)
                break
        self.settled(timeout)

    def restart_and_run_all(self, timeout: float = DEADLINE) -> None:
        self.menu("Kernel", "Restart Kernel and Run All Cells…")
        self.page.locator(".jp-Dialog .jp-mod-accept").click()
        self.page.locator(".jp-Dialog").wait_for(state="detached")
        self.settled(timeout)

    def prompts(self) -> list[str]:
        """What stands before each code cell: `[ ]:`, `[*]:` while it is under way, `[3]:`."""
        texts = "nodes => nodes.map(node => node.textContent.trim())"
        return self.page.locator(".jp-CodeCell .jp-InputPrompt").evaluate_all(texts)

    def settled(self, timeout: float = DEADLINE) -> None:
        """Wait until no code cell is running or queued and at least one has been run."""
        # The kernel's own status is no help: it is idle between two cells.
        ran = lambda text: text[1:-2].isdigit()  # noqa: E731
        self.wait(
            lambda: (
                not any("*" in text for text in self.prompts()) and any(map(ran, self.prompts()))
            ),
            "all cells run",
            timeout,
        )

    def run_cell(self, index: int, timeout: float = DEADLINE) -> None:
        """Run one cell of the notebook (counted from 0) again."""
        prompt = self.cell(index).locator(".jp-InputPrompt")
        before = prompt.inner_text()
        self.cell(index).locator(".cm-content").first.click()
        self.page.keyboard.press("Control+Enter")
        self.wait(
            lambda: "*" not in prompt.inner_text() and prompt.inner_text() != before,
            f"cell {index} run",
            timeout,
        )

    def cell(self, index: int) -> playwright.Locator:
        # By position in the document and not in the page, which holds only the cells in view.
        return self.page.locator(f".jp-Cell[data-windowed-list-index='{index}']")

    def errors(self) -> list[str]:
        """Texts of the error outputs."""
        shown = self.page.locator(".jp-OutputArea-output[data-mime-type*='stderr'], .jp-mod-error")
        return shown.all_inner_texts()

    def slider(self, label: str, within: playwright.Locator | None = None) -> playwright.Locator:
        """The handle of the slider called `label`, which takes arrow keys when focused."""
        row = (within or self.page).locator(".widget-slider", has_text=label)
        return row.first.locator(".noUi-handle")

    def drag(self, handle: playwright.Locator, share: float, steps: int = 20) -> None:
        """Drag a slider's handle to `share` (0 to 1) of its track, in `steps` moves."""
        handle.scroll_into_view_if_needed()
        start = handle.bounding_box()
        track = handle.locator("xpath=ancestor::*[contains(@class,'noUi-base')]").bounding_box()
        assert start and track
        y = start["y"] + start["height"] / 2
        self.page.mouse.move(start["x"] + start["width"] / 2, y)
        self.page.mouse.down()
        self.page.mouse.move(track["x"] + share * track["width"], y, steps=steps)
        self.page.mouse.up()

    def button(self, name: str, within: playwright.Locator | None = None) -> playwright.Locator:
        return (within or self.page).get_by_role("button", name=name, exact=True).first

    def picture(self, within: playwright.Locator | None = None) -> str:
        """The address of the first picture seen: it changes when the picture does."""
        image = (within or self.page).locator(".explore-picture, .jp-RenderedImage img")
        return image.filter(visible=True).first.get_attribute("src") or ""

    def save(self) -> None:
        """Save the notebook and wait until the file is written."""
        before = self.path.stat().st_mtime_ns
        self.page.keyboard.press("Control+s")
        self.wait(lambda: self.path.stat().st_mtime_ns != before, "the notebook saved")

    def screenshot(self, name: str) -> None:
        if folder := os.environ.get("BROWSER_SHOTS"):
            self.page.screenshot(path=Path(folder) / f"{name}.png")


class Server:
    """A Jupyter server on a copy of what a test opens, and a browser on it."""

    def __init__(self, browser: playwright.Browser, root: Path, url: str, token: str) -> None:
        self._browser, self._root, self._url, self._token = browser, root, url, token
        self._contexts: list[playwright.BrowserContext] = []
        self.view = "lab/tree"  # or "notebooks", which is Notebook 7

    def open_cells(self, *sources: str) -> Book:
        """A new notebook with these code cells."""
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(source) for source in sources],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        )
        path = self._root / f"test-{secrets.token_hex(4)}.ipynb"
        nbformat.write(notebook, path)
        return self._open(path)

    def open_copy(self, path: str | Path) -> Book:
        """A copy of the repository's notebook `path`, at the same place below the root."""
        copy = self._root / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, copy)
        return self._open(copy)

    def _open(self, path: Path) -> Book:
        context = self._browser.new_context(viewport={"width": 1280, "height": 900})
        self._contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(DEADLINE * 1000)
        name = path.relative_to(self._root).as_posix()
        # `reset` forgets the workspace, so that no other test's notebook opens too.
        page.goto(f"{self._url}/{self.view}/{name}?token={self._token}&reset")
        page.locator(".jp-Notebook .jp-Cell").first.wait_for()
        book = Book(page, path)
        book.wait(lambda: self._ready(name), "the kernel ready")
        return book

    def _ready(self, name: str) -> bool:
        """Is the browser connected to an idle kernel of notebook `name`?"""
        kernels = [s["kernel"] for s in self._api("sessions") if s["path"] == name]
        return any(k and k["execution_state"] == "idle" and k["connections"] for k in kernels)

    def close_pages(self) -> None:
        """Close the browser's pages and end their kernels."""
        while self._contexts:
            self._contexts.pop().close()
        for session in self._api("sessions"):
            self._api(f"sessions/{session['id']}", "DELETE")

    def _api(self, what: str, method: str = "GET") -> list[dict]:
        request = urllib.request.Request(
            f"{self._url}/api/{what}",
            method=method,
            headers={"Authorization": f"token {self._token}"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or "[]")


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    path = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if path is None:
        pytest.skip(f"browser tests need one of {', '.join(_BROWSERS)} on the PATH")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=_QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def _server(
    browser: playwright.Browser, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("jupyter")
    root = home / "root"
    root.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "COURSE_HOME": str(home / "course"),
    }
    settings = home / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(
        '{"fetchNews": "false", "checkForUpdates": false}'
    )
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
        "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={root}",
        "--LabApp.news_url=",
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    log = (home / "log").open("w+")
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def answers() -> bool:
        if process.poll() is not None:
            log.seek(0)
            pytest.fail(f"JupyterLab ended with {process.returncode}:\n{log.read()[-3000:]}")
        try:
            with urllib.request.urlopen(f"{url}/api?token={token}", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False

    try:
        end = time.monotonic() + DEADLINE
        while not answers():
            assert time.monotonic() < end, f"JupyterLab did not answer within {DEADLINE} s"
            time.sleep(0.1)
        yield Server(browser, root, url, token)
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=20)
        log.close()


@pytest.fixture
def lab(_server: Server) -> Iterator[Server]:
    """JupyterLab."""
    _server.view = "lab/tree"
    yield _server
    _server.close_pages()


@pytest.fixture(params=["lab/tree", "notebooks"], ids=["JupyterLab", "Notebook 7"])
def jupyter(request: pytest.FixtureRequest, _server: Server) -> Iterator[Server]:
    """JupyterLab and the classic-looking Notebook 7, one after the other."""
    _server.view = request.param
    yield _server
    _server.close_pages()
