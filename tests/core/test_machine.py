"""Cores are what the container allows, not what it shows; what is changed is put back."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from utils.core import machine


def _cgroup(tmp_path: Path, files: dict[str, str], member: str) -> tuple[Path, Path]:
    root = tmp_path / "cgroup"
    for name, text in {".keep": "", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    membership = tmp_path / "membership"
    membership.write_text(member)
    return root, membership


@pytest.mark.parametrize(
    ("files", "member", "cores"),
    [
        ({}, "0::/\n", None),
        ({"cpu.max": "max 100000\n"}, "0::/\n", None),
        ({"cpu.max": "150000 100000\n"}, "0::/\n", 1.5),
        ({"a/cpu.max": "50000 100000\n"}, "0::/a/b\n", 0.5),
        ({"a/cpu.max": "400000 100000", "a/b/cpu.max": "100000 100000"}, "0::/a/b\n", 1.0),
        (
            {"cpu/x/cpu.cfs_quota_us": "200000", "cpu/x/cpu.cfs_period_us": "100000"},
            "4:cpu,cpuacct:/x\n1:memory:/y\n",
            2.0,
        ),
        (
            {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"},
            "4:cpu,cpuacct:/x\n",
            None,
        ),
        ({"cpu.max": "nonsense"}, "0::/\n", None),
    ],
)
def test_quota_is_the_smallest_limit_on_the_way_up(
    tmp_path: Path, files: dict, member: str, cores: float | None
) -> None:
    assert machine.quota(*_cgroup(tmp_path, files, member)) == cores


@pytest.mark.parametrize(("limit", "cores"), [(None, 4), (2.5, 2), (0.5, 1), (64.0, 4)])
def test_cores_is_the_smaller_of_affinity_and_quota(monkeypatch, limit, cores) -> None:
    monkeypatch.setattr(machine, "affinity", lambda: 4)
    monkeypatch.setattr(machine, "quota", lambda: limit)
    assert machine.cores() == cores


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="platform: no affinity to set")
def test_pinning_confines_new_threads_and_is_undone_after_an_error() -> None:
    before = os.sched_getaffinity(0)
    seen: list[set[int]] = []
    with pytest.raises(RuntimeError), machine.pinned(1):
        thread = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
        thread.start()
        thread.join()
        raise RuntimeError
    assert len(seen[0]) == 1
    assert os.sched_getaffinity(0) == before
    with pytest.raises(ValueError, match="count=0 is not allowed"), machine.pinned(0):
        pass


def test_ceilings_are_positive_and_leave_torch_as_it_was() -> None:
    import torch

    before = torch.get_num_threads()
    measured = machine.ceilings(seconds=0.05)
    assert measured.threads[0] == 1 and measured.threads[-1] == machine.cores()
    assert all(value > 0 for value in (*measured.read, *measured.matrix))
    assert torch.get_num_threads() == before


def test_the_core_meter_samples_every_core_and_ends_its_thread() -> None:
    with machine.CoreMeter(interval=0.01) as meter:
        while len(meter.use.busy) < 3:
            sum(range(1000))
    assert len(meter.use.at) == len(meter.use.busy) + 1
    assert list(meter.use.at) == sorted(meter.use.at)
    assert all(0 <= busy <= 1 for sample in meter.use.busy for busy in sample)
    assert "core-meter" not in [thread.name for thread in threading.enumerate()]


def test_cpu_seconds_only_grow() -> None:
    before = machine.cpu_seconds()
    sum(range(2_000_000))
    assert machine.cpu_seconds() >= before


def test_importing_machine_needs_the_standard_library_only() -> None:
    import subprocess

    script = (
        "import sys; import utils.core.machine; "
        "print([m for m in ('torch', 'psutil', 'numpy', 'matplotlib') if m in sys.modules])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize("cores", [1, 64])
def test_every_module_can_be_imported_on_any_machine(cores: int) -> None:
    """Defaults made from the number of cores lie within the ranges of their sliders."""
    root = Path(__file__).parents[2]
    names = [
        ".".join(path.relative_to(root).with_suffix("").parts)
        for path in sorted((root / "utils").rglob("*.py"))
        if path.name != "__init__.py"
    ]
    code = (
        "import importlib; from utils.core import machine; "
        f"machine.cores = lambda: {cores}; [importlib.import_module(n) for n in {names!r}]"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_switches_are_counted_for_ended_threads_too() -> None:
    before = machine.switches()
    if before is None:
        assert sys.platform == "win32"
        return
    sleeper = threading.Thread(target=lambda: [time.sleep(0.001) for _ in range(20)])
    sleeper.start()
    sleeper.join()
    after = machine.switches()
    assert after[0] - before[0] >= 20 and after[1] >= before[1]
