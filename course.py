#!/usr/bin/env python3
"""The front door of the course. It needs nothing but Python's standard library.

    python3 course.py lab                  open JupyterLab at Chapter 1
    python3 course.py run [chapters...]    execute chapters without a browser, into build/
    python3 course.py test [-- pytest...]  what CI calls: linters, unit, notebook, browser tests
    python3 course.py doctor               look at this machine and say what to mend
    python3 course.py assets               fetch and check the models and data sets
    python3 course.py bench                measure the course's engines against others

Every command first sets up what it needs: an environment in `.venv`, then the assets. Interrupt
it and run it again: it goes on where it stopped. The sections: output, environment, assets and
processes, and then the commands in this order.
"""

import sys

# An older Python has to get as far as this sentence, so no newer syntax is used in this file.
if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(
        "The course needs Python 3.11 or newer, and this is Python %d.%d.\n"  # noqa: UP031
        "Install a newer one and start the course with it, for example: python3.13 course.py lab"
        % sys.version_info[:2]
    )

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import queue
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sysconfig
import threading
import time
import tomllib
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
WINDOWS = os.name == "nt"
VENV_PYTHON = VENV / ("Scripts/python.exe" if WINDOWS else "bin/python")
STAMP = VENV / "course-stamp"
LOCK = ROOT / ".venv.lock"
BUILD = ROOT / "build"
CHAPTERS = ROOT / "chapters"
FIRST_CHAPTER = "chapters/01_overview.ipynb"

GB = 10**9
ENVIRONMENT_GB = 8 if sys.platform == "linux" else 4  # Linux wheels of torch bring CUDA along
CELL_TIMEOUT_S = 300
# nbval runs every cell of a chapter and compares the outputs of those tagged nbval-check-output.
NBVAL = (
    *("-p", "tests.notebooks.leftovers"),
    *("--nbval-lax", f"--nbval-cell-timeout={CELL_TIMEOUT_S}"),
)
OFFLINE_HELP = (
    "Check the connection, or name your classroom's index in the environment variable "
    "COURSE_INDEX_URL; pip's own configuration (pip config) is used as well."
)


class CourseError(Exception):
    """Something a person has to mend: one clear sentence, and the way out."""

    def __init__(self, sentence: str, way_out: str = "") -> None:
        super().__init__(sentence)
        self.way_out = way_out


# ── Output ────────────────────────────────────────────────────────────────────────────────────


class Line:
    """One line that moves on a terminal; a new line every 15 s where there is none (a log)."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.terminal = sys.stdout.isatty()
        self._shown = float("-inf")

    def show(self, text: str) -> None:
        now = time.monotonic()
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1
            print("\r\033[K" + self._timed(text)[:width], end="", flush=True)
        elif now - self._shown >= 15:
            self._shown = now
            print(self._timed(text), flush=True)

    def end(self, text: str) -> None:
        print(("\r\033[K" if self.terminal else "") + self._timed(text), flush=True)

    def _timed(self, text: str) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        return f"[{minutes}:{seconds:02}] {text}"


def gigabytes(size: float) -> str:
    return f"{size / GB:.1f} GB"


# ── Environment ───────────────────────────────────────────────────────────────────────────────


def requirements(extras: tuple = ()) -> list:
    """The requirement strings of pyproject.toml, with those of the named extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    listed = list(project["dependencies"])
    for extra in extras:
        listed += project["optional-dependencies"][extra]
    return listed


def unmet(listed: list) -> list:
    """The requirements this interpreter does not satisfy, or all when that cannot be told."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        try:
            from pip._vendor.packaging.requirements import Requirement
        except ImportError:
            return listed

    def satisfied(requirement) -> bool:
        if requirement.marker and not requirement.marker.evaluate():
            return True
        try:
            installed = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            return False
        return requirement.specifier.contains(installed, prereleases=True)

    return [text for text in listed if not satisfied(Requirement(text))]


def in_environment() -> bool:
    """Is this interpreter a virtual or conda environment, not the system's own Python?"""
    conda = os.environ.get("CONDA_PREFIX")
    return sys.prefix != sys.base_prefix or (
        conda is not None and Path(conda).resolve() == Path(sys.prefix).resolve()
    )


def set_up(extras: tuple = ()) -> str:
    """The Python to run the course with; makes or completes `.venv` unless one is active."""
    if in_environment() and not unmet(requirements(extras)):
        return sys.executable
    if not complete():
        with exclusive(LOCK, "another set-up is running"):
            if not complete():  # the one we waited for may have done it
                build_environment()
    return str(VENV_PYTHON)


def stamp() -> str:
    """What a complete `.venv` was made from: the dependencies, the pins and its Python."""
    recipe = hashlib.sha256()
    for name in ("pyproject.toml", "constraints.txt"):
        recipe.update((ROOT / name).read_bytes())
    recipe.update((VENV / "pyvenv.cfg").read_bytes())
    return recipe.hexdigest()


def complete() -> bool:
    try:
        return STAMP.read_text() == stamp() and starts()
    except OSError:
        return False


def site_packages() -> Path:
    return next(VENV.glob("Lib/site-packages" if WINDOWS else "lib/python*/site-packages"))


def starts() -> bool:
    """Does the environment's Python run, is it new enough, and has it pip?"""
    probe = (
        "import importlib.util, sys; "
        "sys.exit(sys.version_info < (3, 11) or importlib.util.find_spec('pip') is None)"
    )
    try:
        return subprocess.run([VENV_PYTHON, "-c", probe], capture_output=True).returncode == 0
    except OSError:
        return False


@contextlib.contextmanager
def exclusive(path: Path, waiting: str) -> Iterator[None]:
    """Hold a lock file alone; the system releases it even if this process is killed."""
    with open(path, "a+") as handle:
        line = Line()
        while not _try_lock(handle):
            handle.seek(0)
            pid = handle.read().strip()  # not yet there if the other locked it just now
            if pid:
                line.show(f"{waiting} (pid {pid}), waiting…")
            time.sleep(0.3 if pid else 0.01)
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def _try_lock(handle) -> bool:
    try:
        if WINDOWS:
            import msvcrt

            handle.seek(1 << 20)  # far behind the pid, which others must be able to read
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def build_environment() -> None:
    """Make `.venv`, or complete one that was interrupted. A broken one is replaced, once."""
    (BUILD / "setup.log").write_text("")
    if VENV.exists() and not starts():
        print(f"{VENV} does not work and is made again.")
        remove_environment()
    for last_try in (False, True):
        check_space()
        if not VENV.exists():
            print("Setting up the course's own environment in .venv (once, a few minutes)")
            create_environment()
        STAMP.unlink(missing_ok=True)
        try:
            pip_install()
            compile_packages()
            check_torch()
        except BrokenEnvironment as error:
            if last_try:
                raise
            print(f"{error} Starting afresh.")
            remove_environment()
        else:
            STAMP.write_text(stamp())  # last: without it, the next run resumes
            return


class BrokenEnvironment(CourseError):
    """The environment itself may be at fault, so making it again may help."""


def remove_environment() -> None:
    doomed = ROOT / f".venv-old-{os.getpid()}"  # a rename is atomic, removing 170 packages is not
    VENV.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def check_space() -> None:
    free = shutil.disk_usage(ROOT).free
    needed = ENVIRONMENT_GB * GB
    if free < needed and VENV.exists():  # an interrupted one already has a part of it
        needed -= sum(f.lstat().st_size for f in VENV.rglob("*"))
    if free < needed:
        raise CourseError(
            f"The environment needs {gigabytes(needed)} of disk and {gigabytes(free)} are free "
            f"in {ROOT}.",
            "Free some, or move the course to a larger disk, and run the command again.",
        )


def create_environment() -> None:
    result = subprocess.run([sys.executable, "-m", "venv", VENV], capture_output=True, text=True)
    if result.returncode:
        raise CourseError(
            "Python could not make a virtual environment: "
            + (result.stdout + result.stderr).strip().replace("\n", " "),
            "On Debian or Ubuntu install its part for that: sudo apt install python3-venv.",
        )


def pip_install() -> None:
    """Run pip in `.venv`: condensed to one moving line, complete in build/setup.log."""
    command = [VENV_PYTHON, "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar", "off", "-c", "constraints.txt", "-e", ".[test]"]
    command += ["--no-compile"]  # it would use one core; see compile_packages
    if os.environ.get("COURSE_INDEX_URL"):
        command += ["--index-url", os.environ["COURSE_INDEX_URL"]]
    if os.environ.get("COURSE_TORCH_INDEX_URL"):  # for example wheels without CUDA
        command += ["--extra-index-url", os.environ["COURSE_TORCH_INDEX_URL"]]
    progress, said, line = PipProgress(), [], Line()
    process = subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        encoding="utf-8", errors="replace",
    )  # fmt: skip
    output: queue.Queue = queue.Queue()

    def listen() -> None:
        for text in process.stdout:
            output.put(text)
        output.put(None)

    threading.Thread(target=listen, daemon=True).start()
    try:
        with open(BUILD / "setup.log", "a", encoding="utf-8") as log:
            while True:
                try:
                    text = output.get(timeout=0.3)
                except queue.Empty:  # pip is busy: show that time goes by
                    line.show(progress.text())
                    continue
                if text is None:
                    break
                log.write(text)
                said.append(text.rstrip())
                progress.read(text)
    except BaseException:
        stop(process)
        raise
    if process.wait():
        raise pip_failure(said)
    line.end(f"{progress.total or progress.found} packages are installed")


class PipProgress:
    """What pip is doing, from the lines it prints."""

    def __init__(self) -> None:
        self.found = 0
        self.total = 0
        self.downloading = ""
        self._before = 0

    def read(self, text: str) -> None:
        words = text.split()
        if words[:1] in (["Collecting"], ["Obtaining"]) or words[:2] == ["Requirement", "already"]:
            self.found += 1
        elif words[:1] == ["Downloading"]:
            size = re.search(r"\([\d.]+ .?B\)", text)
            name = words[1].rsplit("/", 1)[-1].split("-")[0]
            self.downloading = f", downloading {name} {size.group() if size else ''}"
        elif text.startswith("Installing collected packages:"):
            self.total = text.count(",") + 1
            self._before = self._installed()

    def text(self) -> str:
        if self.total:
            done = min(self._installed() - self._before, self.total)
            return f"installing {done} of {self.total} packages"
        return f"{self.found} packages found{self.downloading}"

    @staticmethod
    def _installed() -> int:
        return sum(1 for _ in site_packages().glob("*.dist-info"))


def pip_failure(said: list) -> CourseError:
    """pip's last words, as one sentence with a way out."""
    errors = [text for text in said if text.startswith("ERROR") and "Exception:" not in text]
    reason = (errors or said or ["no reason given"])[-1].strip()
    everything = "\n".join(said)
    unreachable = re.search(
        r"NewConnection|NameResolution|Connection\w*Error|[Tt]imed? ?out|Max retries", everything
    )
    log = f"All that pip said is in {BUILD / 'setup.log'}."
    if re.search(r"No space left|Errno 28|Errno 122", everything):
        free = gigabytes(shutil.disk_usage(ROOT).free)
        return CourseError(
            f"The disk is full: the environment needs {ENVIRONMENT_GB} GB, {free} are free.",
            "Free some space (pip's own cache too: pip cache purge) and run the command again.",
        )
    if unreachable:
        return CourseError("The package index cannot be reached.", OFFLINE_HELP)
    missing = re.search(r"No matching distribution found for (\S+)", everything)
    if missing:
        return CourseError(
            f"The package index has no {missing[1]} for Python {platform.python_version()} "
            f"on {platform.system()} {platform.machine()}.",
            f"Use Python 3.11 to 3.13, or another index. {OFFLINE_HELP} {log}",
        )
    if "DO NOT MATCH THE HASHES" in everything:
        return CourseError("A download was damaged on the way.", "Run the command again.")
    if "ResolutionImpossible" in everything:
        return CourseError(f"The packages do not fit together: {reason}", log)
    return BrokenEnvironment(f"pip could not install the packages: {reason}", log)


def compile_packages() -> None:
    """Compile what pip installed on all cores; files meant for other Pythons may well fail."""
    line = Line()
    line.show("compiling the packages")
    command = [VENV_PYTHON, "-m", "compileall", "-q", "-j", "0", site_packages()]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    line.end("the packages are compiled")


def check_torch() -> None:
    """A torch and a torchvision from different builds install well and then fail at import."""
    probe = (
        "import torch, torchvision; "
        "torchvision.ops.nms(torch.tensor([[0., 0., 1., 1.]]), torch.ones(1), 0.5)"
    )
    line = Line()
    line.show("checking that torch and torchvision fit")
    result = subprocess.run([VENV_PYTHON, "-c", probe], capture_output=True, text=True)
    line.end("torch and torchvision were checked")
    if result.returncode:
        last = (result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[-1]
        raise BrokenEnvironment(
            f"torch and torchvision do not work together: {last}.",
            "Take both from one index: see COURSE_INDEX_URL and COURSE_TORCH_INDEX_URL.",
        )


# ── Assets and processes ──────────────────────────────────────────────────────────────────────


def child_environment(python: str) -> dict:
    """Environment variables for everything that runs inside the course's environment."""
    variables = dict(os.environ, PYTHONUTF8="1", JUPYTER_PREFER_ENV_PATH="1")
    variables.pop("PYTHONHOME", None)
    for name in ("COURSE_CACHE", "COURSE_ASSETS"):  # kernels run in another folder than we
        if name in variables:
            variables[name] = os.path.abspath(os.path.expanduser(variables[name]))
    for name, first in (
        ("PATH", Path(python).parent),  # so that tools and `!pip` in a notebook are this one's
        ("PYTHONPATH", ROOT),
        ("JUPYTER_CONFIG_PATH", BUILD / "jupyter"),
    ):
        variables[name] = os.pathsep.join(filter(None, [str(first), os.environ.get(name)]))
    return variables


def call(python: str, *arguments: str) -> int:
    """Run the environment's Python in the course's folder; stop it when we are stopped."""
    process = subprocess.Popen([python, *arguments], cwd=ROOT, env=child_environment(python))
    try:
        return process.wait()
    except BaseException:
        stop(process)
        raise


def stop(process: subprocess.Popen, seconds: float = 10) -> None:
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def prepare_assets(python: str, *arguments: str) -> None:
    if call(python, "-m", "utils.core.assets", *arguments):
        raise CourseError("The course's models and data are not complete (see above).")


# ── lab ───────────────────────────────────────────────────────────────────────────────────────


def lab(options) -> int:
    python = set_up()
    prepare_assets(python)
    quieten_jupyter()
    number, token = free_port(options.port), secrets.token_hex(24)
    server = f"http://127.0.0.1:{number}"
    command = [python, "-m", "jupyterlab", "--no-browser", f"--ServerApp.port={number}"]
    command += ["--ServerApp.ip=127.0.0.1", "--ServerApp.port_retries=0"]
    command += [f"--ServerApp.root_dir={ROOT}", "--LabApp.extension_manager=readonly"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    variables = dict(child_environment(python), JUPYTER_TOKEN=token)  # not visible in `ps`
    apart = {} if WINDOWS else {"start_new_session": True}  # Ctrl-C comes to us, not to Jupyter
    with open(BUILD / "lab.log", "w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=variables, **apart,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        wait_for_server(process, server, token)
        address = f"{server}/lab/tree/{FIRST_CHAPTER}?token={token}"
        print(f"\nJupyterLab is open at\n\n    {address}\n\nCtrl-C ends it.", flush=True)
        if not (options.no_browser or no_display()):
            webbrowser.open(address)
        return process.wait()
    except KeyboardInterrupt:
        print("\nJupyterLab and its kernels are being closed.")
        return 0
    finally:
        if process.poll() is None:
            with contextlib.suppress(OSError):  # asked over HTTP, it ends its kernels first
                ask(server, "/api/shutdown", token, method="POST")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
            stop(process)


def quieten_jupyter() -> None:
    """Settings for JupyterLab: no news pop-up, and nothing fetched from anywhere."""
    folder = BUILD / "jupyter" / "labconfig"
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "@jupyterlab/apputils-extension:notification": {
            "fetchNews": "false", "checkForUpdates": False
        },
        "@jupyterlab/extensionmanager-extension:plugin": {"enabled": False},
    }  # fmt: skip
    disabled = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (folder / "default_setting_overrides.json").write_text(json.dumps(settings))
    (folder / "page_config.json").write_text(json.dumps(disabled))


def free_port(wanted: int) -> int:
    """The first port from `wanted` on that nobody on this machine listens on."""
    for number in range(wanted, min(wanted + 100, 65536)):
        with socket.socket() as candidate, contextlib.suppress(OSError):
            if not WINDOWS:  # there it would allow a port in use; here only one just closed
                candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            candidate.bind(("127.0.0.1", number))
            return number
    raise CourseError(f"No port from {wanted} to {wanted + 99} is free.", "Name another: --port N.")


def no_display() -> bool:
    """Is there no screen on which a browser could open?"""
    here = os.environ
    linux = sys.platform.startswith("linux")
    return bool(
        here.get("CI")
        or here.get("SSH_CONNECTION")
        or (linux and not (here.get("DISPLAY") or here.get("WAYLAND_DISPLAY")))
    )


def ask(server: str, path: str, token: str, method: str = "GET") -> None:
    """One request to our Jupyter server; OSError unless it answers. Never through a proxy."""
    request = urllib.request.Request(
        server + path, method=method, headers={"Authorization": f"token {token}"}
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=5):
        pass


def wait_for_server(process: subprocess.Popen, server: str, token: str) -> None:
    line, deadline = Line(), time.monotonic() + 90
    while process.poll() is None and time.monotonic() < deadline:
        line.show("starting JupyterLab")
        with contextlib.suppress(OSError):
            return ask(server, "/api/status", token)
        time.sleep(0.2)
    raise CourseError("JupyterLab did not start.", f"What it said is in {BUILD / 'lab.log'}.")


# ── run ───────────────────────────────────────────────────────────────────────────────────────


def run(options) -> int:
    notebooks = select(options.chapters)
    python = set_up()
    prepare_assets(python)
    quieten_jupyter()
    return call(python, str(ROOT / "course.py"), "_run", *map(str, notebooks))


def select(names: list) -> list:
    """Chapters by number ("1", "01"), name ("overview", "01_overview") or path; none means all."""
    chapters = {path.stem: path for path in sorted(CHAPTERS.glob("[0-9][0-9]_*.ipynb"))}
    chosen = [] if names else list(chapters.values())
    for name in names:
        matches = [
            path
            for stem, path in chapters.items()
            if name in (stem, stem[3:]) or (name.isdecimal() and int(name) == int(stem[:2]))
        ]
        if not matches and name.endswith(".ipynb") and Path(name).is_file():
            matches = [Path(name).resolve()]
        if not matches:
            there = ", ".join(chapters) or "none yet"
            raise CourseError(f"There is no chapter {name!r}.", f"The chapters: {there}.")
        chosen += matches
    return chosen


def run_inside(options) -> int:
    """`_run`, in the environment: execute notebooks one after another."""
    failed = [path for path in options.notebooks if not execute(Path(path))]
    return 1 if failed else 0


def execute(path: Path) -> bool:
    """Run one notebook in its folder, write the executed copy and its HTML; False if it failed."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    from nbconvert import HTMLExporter

    notebook = nbformat.read(path, as_version=4)
    line, total, at = Line(), len(notebook.cells), [0]

    def starting(cell, cell_index) -> None:
        at[0] = cell_index
        done = 30 * cell_index // total
        line.show(f"{path.stem} {'━' * done}{'─' * (30 - done)} cell {cell_index + 1} of {total}")

    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_S,
        kernel_name="python3",
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_start=starting,
    )
    failure = ""
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        failure = str(error).strip()
    nbformat.write(notebook, BUILD / path.name)
    html, _ = HTMLExporter().from_notebook_node(notebook)
    (BUILD / f"{path.stem}.html").write_text(html, encoding="utf-8")
    written = f"build/{path.name} and .html"
    if failure:
        line.end(f"✗ {path.stem} failed in cell {at[0] + 1} of {total}; see {written}\n{failure}")
        return False
    line.end(f"✓ {path.stem} ran through, {total} cells: {written}")
    return True


# ── test ──────────────────────────────────────────────────────────────────────────────────────


def test(options) -> int:
    python = set_up(("test",))
    prepare_assets(python)
    quieten_jupyter()
    tests = options.pytest or ("tests", "chapters", *NBVAL)
    imports = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    worst = 0
    for name, command in (
        ("ruff", ("-m", "ruff", "check", ".")),
        ("import linter", ("-c", imports)),
        ("pytest", ("-m", "pytest", *tests)),  # last, so that its closing line is too
    ):
        print(f"── {name}", flush=True)
        worst = max(worst, abs(call(python, *command)))
    return worst


# ── doctor ────────────────────────────────────────────────────────────────────────────────────


def doctor(options) -> int:
    """Look at everything, mend nothing; the exit status is 1 when something is wrong."""
    findings = [*examine_machine(), *examine_environment()]
    for mark, text, remedy in findings:
        print(f"{mark} {text}" + (f"\n    → {remedy}" if remedy else ""))
    return int(any(mark == "✗" for mark, _, _ in findings))


def examine_machine() -> Iterator[tuple]:
    from utils.core import machine

    free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    build = "free-threaded" if free_threaded else "with the GIL"
    system = f"{platform.system()} {platform.machine()}"
    yield "✓", f"Python {platform.python_version()}, {build}, {system}", ""
    quota = machine.quota()
    limit = "no cgroup quota" if quota is None else f"a cgroup quota of {quota:g}"
    yield (
        "✓" if machine.cores() > 1 else "!",
        f"Cores: {machine.affinity()} by affinity, {limit}",
        "" if machine.cores() > 1 else "The course works on one core, without any speed-up to see.",
    )
    size = memory()
    yield (
        "✓" if size >= 3.5 * GB else "!",
        f"Memory: {gigabytes(size)}",
        "" if size >= 3.5 * GB else "The chapters are made for 4 GB; close other programs.",
    )
    free, needed = shutil.disk_usage(ROOT).free, 0 if complete() else ENVIRONMENT_GB * GB
    yield (
        "✓" if free >= needed else "✗",
        f"Disk: {gigabytes(free)} free in {ROOT}",
        "" if free >= needed else f"The environment needs {gigabytes(needed)}: free some space.",
    )


def memory() -> int:
    """Bytes of memory this process may use: the machine's, or the cgroup's limit if smaller."""
    if WINDOWS:
        import ctypes

        status = (ctypes.c_uint64 * 8)(64)  # MEMORYSTATUSEX: its length, then the total
        ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
        return status[1]
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total


def examine_environment() -> Iterator[tuple]:
    start = "Set it up: python3 course.py lab"
    if in_environment() and not unmet(requirements()):
        python = sys.executable
    elif complete():
        python = str(VENV_PYTHON)
    else:
        broken = VENV.exists()
        text = "Environment: .venv is not complete" if broken else "Environment: not set up yet"
        yield "✗" if broken else "!", text, start
        return
    yield "✓", f"Environment: {Path(python).parent.parent}", ""
    result = subprocess.run(
        [python, ROOT / "course.py", "_probe"],
        cwd=ROOT, env=child_environment(python), capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        yield "✗", f"Environment: {last}", f"Remove {VENV} and run: python3 course.py lab"
        return
    yield from json.loads(result.stdout.splitlines()[-1])


def probe_inside(options) -> int:
    """`_probe`, in the environment: the findings about what is installed, as JSON."""
    import torch
    import torchvision

    from utils.core import assets, machine

    torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    gil = "GIL on" if machine.gil() else "GIL off"
    threads = torch.get_num_threads()
    many = threads > machine.cores()
    findings = [
        ("✓", f"Course's Python {platform.python_version()}, {gil}", ""),
        (
            "!" if many else "✓",
            f"torch {torch.__version__}, torchvision {torchvision.__version__}, {threads} threads",
            f"More threads than cores: set OMP_NUM_THREADS={machine.cores()}." if many else "",
        ),
        ("✓", f"GPU: {machine.gpu() or 'none, and the course needs none'}", ""),
    ]
    widgets = Path(sys.prefix, "share/jupyter/labextensions/@jupyter-widgets/jupyterlab-manager")
    if widgets.is_dir():
        findings.append(("✓", "JupyterLab's widget extension", ""))
    else:
        remedy = f"Install it: {sys.executable} -m pip install --force-reinstall jupyterlab_widgets"
        findings.append(("✗", "JupyterLab's widget extension is missing: no sliders", remedy))
    for state in assets.status():
        mark = "✓" if state.ready else "!"
        remedy = "" if state.ready else "python3 course.py assets"
        findings.append((mark, f"{state.name}: {state.detail}", remedy))
    print(json.dumps(findings))
    return 0


# ── assets and bench ──────────────────────────────────────────────────────────────────────────


def assets(options) -> int:
    chosen = ["--full-mnist"] if options.full_mnist else []
    prepare_assets(set_up(), "--verbose", *chosen, *(["--verify"] if options.verify else []))
    return 0


def bench(options) -> int:
    python = set_up()
    prepare_assets(python)
    return call(python, "-m", "benchmarks", *options.arguments)


# ── The command line ──────────────────────────────────────────────────────────────────────────


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="course.py", description="The front door of the course.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, function, text=None):
        # without a help text a command is not listed: it is for this file's own use
        sub = commands.add_parser(name, description=text, **({"help": text} if text else {}))
        sub.set_defaults(function=function)
        return sub

    sub = command("lab", lab, "open JupyterLab at Chapter 1")
    sub.add_argument("--port", type=port, default=8888, help="the first port to try (%(default)s)")
    sub.add_argument("--no-browser", action="store_true", help="only print the address")
    sub = command("run", run, "execute chapters without a browser, into build/")
    sub.add_argument("chapters", nargs="*", help="number, name or path; none means all")
    sub = command("test", test, "linters, unit, notebook and browser tests: what CI calls")
    sub.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    command("doctor", doctor, "look at this machine and say what to mend")
    sub = command("assets", assets, "fetch and check the models and data sets")
    sub.add_argument("--full-mnist", action="store_true", help="also all 70 000 digits of MNIST")
    sub.add_argument("--verify", action="store_true", help="read every file and check its hash")
    sub = command("bench", bench, "measure the course's engines against others")
    sub.add_argument("arguments", nargs="*", help="arguments for the benchmarks, after --")
    command("_run", run_inside).add_argument("notebooks", nargs="+")
    command("_probe", probe_inside)
    return top


def port(text: str) -> int:
    if not text.isdecimal() or not 1024 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: give a number from 1024 to 65535")
    return int(text)


def interrupted(*_) -> None:
    raise KeyboardInterrupt


def main(arguments: list | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):
        # an old Windows console has no ✓; and what we say comes before what our children say
        stream.reconfigure(errors="replace", line_buffering=True)
    for name in ("SIGTERM", "SIGHUP"):  # ended from outside: clean up as for Ctrl-C
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores one
            signal.signal(number, interrupted)
    options = parser().parse_args(arguments)
    BUILD.mkdir(exist_ok=True)
    try:
        return options.function(options)
    except CourseError as error:
        print(f"\n✗ {error}", file=sys.stderr)
        if error.way_out:
            print(f"  {error.way_out}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. Run the same command again to go on.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
