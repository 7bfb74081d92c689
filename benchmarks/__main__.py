"""Run every benchmark, or the named ones: `python -m benchmarks [recorder people …]`."""

from __future__ import annotations

import importlib
import sys

from utils.core import machine

NAMES = (
    "recorder",
    "people",
    "primitives",
    "channels",
    "explorer",
    "pools",
    "balance",
    "collectives",
    "training",
    "serving",
    "acceleration",
    "engine",
)


def main(names: list[str]) -> int:
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
        return 2
    print(f"{machine.cores()} cores, {machine.about_gil()}")
    for name in names or NAMES:
        print(f"\n{name}")
        for line in importlib.import_module(f"benchmarks.{name}").figures():
            print(f"  {line}", flush=True)
    return 0


sys.exit(main(sys.argv[1:]))
