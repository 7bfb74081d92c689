"""A pytest plugin: nbval also looks which threads, processes and files a notebook leaves behind.

Two cells are added to each notebook that nbval runs, before the first and after the last; the last
fails if something is there that was not there before. So one run of a chapter proves both.
"""

import tempfile
from collections import defaultdict

import nbformat
import pytest
from nbval.plugin import IPyNbCell, IPyNbFile

# What may stay: the kernel's own threads, torch's cache, and multiprocessing's resource tracker,
# one process that ends with the kernel.
_BEFORE = """
import glob as _glob, tempfile as _tempfile, threading as _threading
def _left():
    import psutil
    children = [" ".join(p.cmdline()) for p in psutil.Process().children(recursive=True)]
    return {
        "threads": sorted(
            f"{t.name} {getattr(t, '_target', '')}"
            for t in _threading.enumerate()
            if not type(t).__module__.startswith("zmq")
        ),
        "children": [c for c in children if "resource_tracker" not in c],
        "shared memory": sorted(_glob.glob("/dev/shm/*")),
        "temporary files": sorted(
            f for f in _glob.glob(_tempfile.gettempdir() + "/*") if "torchinductor" not in f
        ),
    }
_before = _left()
"""
_AFTER = """
import gc as _gc, time as _time
_gc.collect()
for _ in range(30):
    _extra = {k: [x for x in v if x not in _before[k]] for k, v in _left().items()}
    if not any(_extra.values()):
        break
    _time.sleep(0.1)
assert not any(_extra.values()), f"left behind: {_extra}"
"""


class Notebook(IPyNbFile):
    """A notebook between the two cells, with a folder for temporary files of its own."""

    def setup(self):
        self._folder = tempfile.TemporaryDirectory(prefix="course-nbval-")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TMPDIR", self._folder.name)
            super().setup()  # the kernel inherits it

    def collect(self):
        cells = list(super().collect())
        yield self._own("What is there before", -1, _BEFORE)
        yield from cells
        yield self._own("What is left behind", len(cells), _AFTER)

    def teardown(self):
        super().teardown()
        self._folder.cleanup()

    def _own(self, name, number, source):
        return IPyNbCell.from_parent(
            self,
            name=name,
            cell_num=number,
            cell=nbformat.v4.new_code_cell(source),
            options=defaultdict(bool),  # no output is compared
        )


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(file_path, parent):
    files = yield
    return [
        Notebook.from_parent(parent, path=file_path) if type(file) is IPyNbFile else file
        for file in files
    ]
