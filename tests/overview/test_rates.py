"""All requests are served, whatever the crowd; the figures are those of the trace."""

import pytest

from utils.core import machine, plots
from utils.core.trace import Span, Trace
from utils.overview.rates import MANY, REQUESTS, Load, Rates, percentile, plot, serve


def test_every_request_is_served_once_whatever_the_crowd() -> None:
    result = serve(people=3)
    cores = machine.cores()
    assert [load.people for load in result.loads] == sorted({1, 3, cores, 2 * cores, MANY})
    assert result.load(3).people == 3
    names = sorted(f"request {number}" for number in range(REQUESTS))
    for load in result.loads:
        assert sorted(span.name for span in load.trace.spans) == names
        assert len(load.trace.lanes) <= load.people
        for lane in load.trace.lanes:  # a closed loop: nobody sends two requests at once
            spans = load.trace.select(lane=lane).spans
            assert all(a.end <= b.start for a, b in zip(spans, spans[1:], strict=False))
    assert plots.png(plot(result)).startswith(b"\x89PNG")


def test_throughput_and_latency_by_hand() -> None:
    ms = 10**6
    trace = Trace([Span("w", "compute", str(n), n * 10 * ms, (n + 1) * 10 * ms) for n in range(10)])
    load = Load(1, trace)
    assert load.throughput == pytest.approx(100)
    assert load.mean == load.latency(50) == pytest.approx(0.01)
    rates = Rates(1, 4, (load,))
    assert rates.expected_throughput(2) == pytest.approx(200)
    assert rates.expected_throughput(8) == pytest.approx(400)
    assert rates.expected_latency(2) == pytest.approx(0.01)
    assert rates.expected_latency(8) == pytest.approx(0.02)


def test_little_s_law_holds_in_a_trace_without_gaps() -> None:
    """Three people, requests back to back: mean latency x throughput = 3."""
    spans = [
        Span(f"p{p}", "compute", f"{p} {n}", n * 30, (n + 1) * 30)
        for p in range(3)
        for n in range(4)
    ]
    load = Load(3, Trace(spans))
    assert load.mean * load.throughput == pytest.approx(3)


def test_percentiles() -> None:
    assert percentile(range(1, 102), 50) == 51
    assert percentile([7.0], 99) == 7.0
