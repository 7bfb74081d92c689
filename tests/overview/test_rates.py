"""All requests are served, whatever the pool; the figures are those of the trace."""

import pytest

from utils.core import machine, plots
from utils.core.trace import Span, Trace
from utils.overview.rates import REQUESTS, Load, Rates, percentile, plot, serve


def test_every_request_is_served_once_in_every_pool() -> None:
    result = serve(workers=5)
    sizes = sorted({1, 2, 4, 5, 8, 16, machine.cores()})
    assert [load.workers for load in result.loads] == sizes
    assert result.load(5).workers == 5
    names = sorted(f"request {number}" for number in range(REQUESTS))
    for load in result.loads:
        assert sorted(span.name for span in load.trace.spans) == names
        assert len(load.trace.lanes) <= load.workers
        assert load.latency(50) <= load.latency(99)
    assert plots.png(plot(result)).startswith(b"\x89PNG")


def test_throughput_and_latency_by_hand() -> None:
    ms = 10**6
    trace = Trace([Span("w", "compute", str(n), n * 10 * ms, (n + 1) * 10 * ms) for n in range(10)])
    load = Load(1, trace)
    assert load.throughput == pytest.approx(100)
    assert load.latency(50) == pytest.approx(0.01)
    rates = Rates(1, 4, (load,))
    assert rates.expected_throughput(8) == pytest.approx(400)
    assert rates.expected_latency(2) == pytest.approx(0.01)
    assert rates.expected_latency(8) == pytest.approx(0.02)


def test_percentiles() -> None:
    assert percentile(range(1, 102), 50) == 51
    assert percentile([7.0], 99) == 7.0
