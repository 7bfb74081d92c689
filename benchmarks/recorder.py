"""What recording a span costs, on and off, beside the block it wraps."""

from __future__ import annotations

from collections.abc import Iterator

from utils.core import bench, trace

SPANS = 100_000


def figures() -> Iterator[str]:
    def bare() -> None:
        for _ in range(SPANS):
            pass

    def off() -> None:
        for _ in range(SPANS):
            with trace.span("compute", "step"):
                pass

    def on() -> None:
        with trace.recording():
            off()

    times = bench.compare({"bare": bare, "off": off, "on": on}, repeats=7)
    for name in ("on", "off"):
        each = (times[name].median - times["bare"].median) / SPANS
        yield f"recording {name}: {bench.seconds(each)} a span (median of 7 × {SPANS} spans)"
