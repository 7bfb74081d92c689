"""One network in every form of section 4.2.2: time, bytes, right answers; each form in turns.

Ratios are to PyTorch's float32, pair by pair. One thread; batches of 64 for the trained small
network, of 16 for the deep one (untrained: only its times count).
"""

from __future__ import annotations

from collections.abc import Iterator

from utils.core import bench
from utils.deep_learning.acceleration import formats, pareto


def figures() -> Iterator[str]:
    measured = pareto.run(batch=64).measured
    for entry in measured:
        speedup = bench.ratio(measured[0].time, entry.time)
        yield (
            f"small network, {entry.name}: {speedup.median:.2f} × as fast, "
            f"{entry.megabytes / measured[0].megabytes:.2f} of the bytes, "
            f"{100 * entry.accuracy:.1f} % right, {100 * entry.agreement:.1f} % as float32"
        )
    forms = formats.run(model="deep", batch=16, compile=True)
    for name, sample in forms.times.items():
        speedup = bench.ratio(forms.times["PyTorch"], sample)
        yield (
            f"deep network, {name}: {speedup.median:.2f} × as fast, "
            f"logits off by at most {forms.difference[name]:.1g}"
        )
    if forms.note:
        yield forms.note
