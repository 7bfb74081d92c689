"""The front door: its decisions, and what it does when something is in the way."""

import ast
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import nbformat
import pytest

import course

ROOT = Path(__file__).resolve().parents[1]
WITHOUT_ENVIRONMENT = [getattr(sys, "_base_executable", sys.executable)]


@pytest.fixture
def project(tmp_path):
    """A small project with the real front door: no dependencies, nothing to download."""
    for name in (
        "course.py",
        "utils/__init__.py",
        "utils/core/__init__.py",
        "utils/core/machine.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    (tmp_path / "utils/core/assets.py").write_text("def status():\n    return []\n")
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "small"\nversion = "1"\ndependencies = ["nothing-such>=1"]\n'
        "[project.optional-dependencies]\ntest = []\n"
    )
    (tmp_path / "constraints.txt").write_text("")
    return tmp_path


def door(project: Path, *arguments: str, code: str = "", **variables: str):
    """Run course.py (after `code`, which may bend its surroundings) with the system's Python."""
    script = textwrap.dedent(code) + (
        f"\nimport sys; sys.path.insert(0, {str(project)!r})"
        f"\nimport course; {code and 'bend(course);'} sys.exit(course.main({list(arguments)!r}))"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("CONDA_PREFIX", "PYTHONPATH")}
    return subprocess.Popen(
        [*WITHOUT_ENVIRONMENT, "-c", script],
        env=environment | {"PIP_NO_INDEX": "1", "PYTHONUNBUFFERED": "1"} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=project,
    )


def finish(process: subprocess.Popen) -> tuple[int, str]:
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


# pip replaced by something quick; the rest of the set-up is real
QUICK = """
def bend(course):
    course.pip_install = course.compile_packages = course.check_torch = lambda: None
"""
# any command: this one has nothing more to do than to set up
ONLY_SET_UP = "    course.lab = lambda options: print('PYTHON', course.set_up()) or 0\n"


# ── An old Python ─────────────────────────────────────────────────────────────────────────────


def test_an_old_python_can_parse_the_front_door():
    ast.parse((ROOT / "course.py").read_text(), feature_version=(3, 7))


def test_an_old_python_gets_one_clear_sentence():
    code = "import sys, runpy; sys.version_info = (3, 9, 1); runpy.run_path('course.py')"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert "needs Python 3.11 or newer, and this is Python 3.9" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_front_door_needs_only_the_standard_library():
    tree = ast.parse((ROOT / "course.py").read_text())
    top = {
        name.split(".")[0]
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    }
    assert top <= sys.stdlib_module_names


# ── The environment ───────────────────────────────────────────────────────────────────────────


def test_unmet_names_what_is_missing_or_too_old():
    listed = ["pytest>=1", "pytest>=9999", "no-such-package", "no-such-one; python_version < '3'"]
    assert course.unmet(listed) == ["pytest>=9999", "no-such-package"]


def test_this_environment_satisfies_the_project():
    assert course.unmet(course.requirements(("test",))) == []


def test_set_up_completes_once_and_then_does_nothing(project):
    bend = QUICK + "    course.check_space = lambda: print('SETTING UP')\n" + ONLY_SET_UP
    first = finish(door(project, "lab", code=bend))
    assert first[0] == 0 and "SETTING UP" in first[1]
    assert (project / ".venv/course-stamp").exists()
    second = finish(door(project, "lab", code=bend))
    assert second[0] == 0 and "SETTING UP" not in second[1]
    (project / "constraints.txt").write_text("# another pin\n")
    third = finish(door(project, "lab", code=bend))
    assert "SETTING UP" in third[1]


def test_a_killed_set_up_is_resumed_and_its_lock_is_free(project):
    slow = (
        QUICK
        + "    course.pip_install = lambda: (print('HALF WAY'), __import__('time').sleep(60))\n"
    )
    process = door(project, "lab", code=slow + ONLY_SET_UP)
    for line in process.stdout:
        if "HALF WAY" in line:
            break
    process.kill()
    process.communicate()
    assert not (project / ".venv/course-stamp").exists()
    status, output = finish(door(project, "lab", code=QUICK + ONLY_SET_UP))
    assert status == 0 and "waiting" not in output
    assert (project / ".venv/course-stamp").exists()


def test_a_broken_environment_is_made_again(project):
    finish(door(project, "lab", code=QUICK + ONLY_SET_UP))
    (project / course.VENV_PYTHON.relative_to(ROOT)).unlink()
    status, output = finish(door(project, "lab", code=QUICK + ONLY_SET_UP))
    assert status == 0 and "does not work and is made again" in output
    assert (project / course.VENV_PYTHON.relative_to(ROOT)).exists()
    assert not list(project.glob(".venv-old-*"))


def test_an_environment_that_fails_twice_is_reported_and_not_marked_complete(project):
    failing = """
def bend(course):
    def pip_install():
        raise course.pip_failure(["ERROR: something odd"])
    course.pip_install = pip_install
"""
    status, output = finish(door(project, "lab", code=failing + ONLY_SET_UP))
    assert status == 1
    assert output.count("Setting up the course's own environment") == 2
    assert "✗ pip could not install the packages: ERROR: something odd" in output
    assert not (project / ".venv/course-stamp").exists()


def test_two_people_setting_up_at_once_do_it_once(project):
    slow = QUICK + (
        "    from pathlib import Path; from time import sleep\n"
        "    def pip_install():\n"
        "        print('INSTALLING')\n"
        "        while not Path('go').exists(): sleep(0.01)\n"
        "    course.pip_install = pip_install\n"
    )
    first = door(project, "lab", code=slow + ONLY_SET_UP)
    assert any("INSTALLING" in line for line in first.stdout)
    second = door(project, "lab", code=slow + ONLY_SET_UP)
    waiting = f"another set-up is running (pid {first.pid}), waiting"
    assert waiting in second.stdout.readline()
    (project / "go").touch()
    assert finish(first)[0] == 0
    status, output = finish(second)
    assert status == 0 and "INSTALLING" not in output


@pytest.mark.skipif(os.name == "nt", reason="platform: uses flock")
def test_who_waits_for_a_lock_taken_just_now_still_learns_whose_it_is(tmp_path, capsys):
    """Between locking the file and writing its pid the holder has no name."""
    import fcntl
    import threading

    path = tmp_path / "lock"

    def wait() -> None:
        with course.exclusive(path, "another set-up is running"):
            pass

    with open(path, "w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.1)  # the other looks at a file without a name; later is as good
        holder.write("4711")
        holder.flush()
        shown, deadline = "", time.monotonic() + 30
        while "4711" not in shown and time.monotonic() < deadline:
            shown += capsys.readouterr().out
    thread.join(timeout=30)
    assert "another set-up is running (pid 4711), waiting" in shown and "?" not in shown


def test_an_unreachable_index_is_one_sentence_and_a_way_out(project):
    with socket.socket() as closed:  # bound, not listening: connections are refused at once
        closed.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}/simple"
        status, output = finish(
            door(
                project,
                "lab",
                PIP_NO_INDEX="0",
                PIP_RETRIES="1",
                PIP_FIND_LINKS="",
                PIP_CONFIG_FILE=os.devnull,
                COURSE_INDEX_URL=nowhere,
            )
        )
    assert status == 1
    assert "✗ The package index cannot be reached." in output
    assert "COURSE_INDEX_URL" in output and "pip config" in output
    assert "Traceback" not in output
    assert not (project / ".venv/course-stamp").exists()


def test_no_space_is_said_before_anything_is_made(project):
    full = "def bend(course):\n    course.ENVIRONMENT_GB = 10**9\n"
    status, output = finish(door(project, "lab", code=full))
    assert status == 1 and "of disk" in output and "Free some" in output
    assert not (project / ".venv").exists()


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("ERROR: Could not install packages: [Errno 28] No space left", "disk is full"),
        ("ERROR: No matching distribution found for torch<3", "has no torch<3 for Python"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM", "damaged on the way"),
        ("ERROR: ResolutionImpossible: for help visit", "do not fit together"),
        ("WARNING: Retrying … NewConnectionError('…')\nERROR: No matching distribution found for x",
         "cannot be reached"),
    ],
)  # fmt: skip
def test_pip_failures_are_translated(said, sentence):
    error = course.pip_failure(said.splitlines())
    assert sentence in str(error) and error.way_out


def test_progress_follows_pip(monkeypatch, tmp_path):
    monkeypatch.setattr(course, "site_packages", lambda: tmp_path)
    progress = course.PipProgress()
    for text in (
        "Collecting torch==2",
        "  Downloading torch-2-cp311.whl (539.1 MB)",
        "Collecting x",
    ):
        progress.read(text)
    assert progress.text() == "2 packages found, downloading torch (539.1 MB)"
    progress.read("Installing collected packages: a, b, c")
    assert progress.text() == "installing 0 of 3 packages"
    (tmp_path / "a-1.dist-info").mkdir()
    assert progress.text() == "installing 1 of 3 packages"


# ── The commands ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def chapters(tmp_path, monkeypatch):
    for name in ("01_overview", "02_threads"):
        (tmp_path / f"{name}.ipynb").write_text("{}")
    monkeypatch.setattr(course, "CHAPTERS", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["2", "02", "threads", "02_threads"])
def test_a_chapter_is_found_by_number_and_name(chapters, name):
    assert course.select([name]) == [chapters / "02_threads.ipynb"]


def test_a_notebook_is_found_by_path_and_all_by_default(chapters):
    path = chapters / "01_overview.ipynb"
    assert course.select([str(path)]) == [path]
    assert [p.stem for p in course.select([])] == ["01_overview", "02_threads"]


def test_an_unknown_chapter_is_refused_with_what_there_is(chapters):
    with pytest.raises(course.CourseError, match="no chapter '9'") as caught:
        course.select(["9"])
    assert "01_overview, 02_threads" in caught.value.way_out


def notebook(folder: Path, *cells: str) -> Path:
    path = folder / "99_made.ipynb"
    content = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(content, path)
    return path


def test_a_good_notebook_is_executed_in_its_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(course, "BUILD", tmp_path / "build")
    course.BUILD.mkdir()
    path = notebook(tmp_path, "import os; print('in', os.getcwd())")
    assert course.main(["_run", str(path)]) == 0
    assert "✓ 99_made" in capsys.readouterr().out
    assert f"in {tmp_path}" in (course.BUILD / "99_made.ipynb").read_text()
    assert "<html" in (course.BUILD / "99_made.html").read_text()
    assert 'outputs": []' in path.read_text()  # the chapter itself stays as it was


def test_a_broken_notebook_fails_the_run_and_shows_cell_and_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(course, "BUILD", tmp_path / "build")
    course.BUILD.mkdir()
    path = notebook(tmp_path, "1", "1 / 0", "2")
    assert course.main(["_run", str(path)]) == 1
    shown = capsys.readouterr().out
    assert "✗ 99_made failed in cell 2 of 3" in shown and "ZeroDivisionError" in shown
    assert "ZeroDivisionError" in (course.BUILD / "99_made.ipynb").read_text()


def test_doctor_works_before_anything_is_set_up(project):
    status, output = finish(door(project, "doctor"))
    assert status == 0
    for subject in ("Python 3", "Cores:", "Memory:", "Disk:", "not set up yet"):
        assert subject in output
    assert "python3 course.py lab" in output
    assert not (project / ".venv").exists()


def test_doctor_looks_into_this_environment(capsys):
    course.main(["doctor"])
    shown = capsys.readouterr().out
    for subject in (
        "by affinity",
        "torch 2",
        "GPU:",
        "widget extension",
        "smollm2",
        "minilm",
        "mnist",
    ):
        assert subject in shown


def test_the_next_free_port_is_taken():
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        assert course.free_port(port) > port


def test_no_browser_opens_without_a_display(monkeypatch):
    for name in ("CI", "SSH_CONNECTION", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(course.sys, "platform", "linux")
    assert course.no_display()
    monkeypatch.setenv("DISPLAY", ":0")
    assert not course.no_display()
    monkeypatch.setenv("SSH_CONNECTION", "somewhere")
    assert course.no_display()


def test_lab_answers_on_loopback_with_a_token_and_leaves_nothing(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "course.py", "lab", "--no-browser", "--port", "9200"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        address = next(line.strip() for line in process.stdout if "http://" in line)
        server, _, token = address.partition("/lab/tree/chapters/01_overview.ipynb?token=")
        assert server.startswith("http://127.0.0.1:92") and len(token) == 48
        course.ask(server, "/api/status", token)
        with pytest.raises(OSError, match="403"):
            course.ask(server, "/api/contents", "not-the-token")
    finally:
        process.terminate()
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and "being closed" in output
    port = int(server.rsplit(":", 1)[1])
    deadline = time.monotonic() + 5
    while course.free_port(port) != port:
        assert time.monotonic() < deadline, "the server still listens"
        time.sleep(0.1)


def test_every_step_of_test_counts(monkeypatch):
    codes = iter([1, 0, 0])
    monkeypatch.setattr(course, "set_up", lambda extras: sys.executable)
    monkeypatch.setattr(course, "prepare_assets", lambda python: None)
    seen = []
    monkeypatch.setattr(course, "call", lambda *command: seen.append(command) or next(codes))
    assert course.main(["test", "--", "-k", "x"]) == 1
    assert seen[-1][1:] == ("-m", "pytest", "-k", "x")


@pytest.mark.parametrize(
    ("skip", "ci", "status"),
    [
        ("pytest.skip('no browser')", "true", 1),
        ("pytest.skip('no browser')", "", 0),
        ("pytest.skip('platform: not on this system')", "true", 0),
        ("pytest.importorskip('no_such_module')", "true", 1),
    ],
)
def test_in_ci_a_skip_is_a_failure(tmp_path, skip, ci, status):
    shutil.copyfile(ROOT / "tests/conftest.py", tmp_path / "conftest.py")
    (tmp_path / "test_one.py").write_text(f"import pytest\ndef test_one():\n    {skip}\n")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        env=os.environ | {"CI": ci},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == status, result.stdout
