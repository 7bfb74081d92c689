"""Nothing recorded is lost or bent, in threads and processes, and the export is valid."""

import json
import multiprocessing
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.core import trace
from utils.core.trace import Recorder, Span, Trace

text = st.text(max_size=8)
moments = st.integers(0, 10**15)
spans = st.builds(
    lambda lane, category, name, start, length, args: Span(
        lane, category, name, start, start + length, args
    ),
    text,
    text,
    text,
    moments,
    moments,
    st.none() | st.dictionaries(text, st.integers() | text | st.booleans(), max_size=2),
)


def test_a_block_is_recorded_on_the_lane_of_its_thread_even_when_it_raises() -> None:
    recorder = Recorder()

    def fail() -> None:
        with recorder.span("compute", "step", size=3):
            raise KeyError

    thread = threading.Thread(target=lambda: pytest.raises(KeyError, fail), name="worker 7")
    before = trace.now()
    thread.start()
    thread.join()
    (span,) = recorder.trace().spans
    assert span[:3] == ("worker 7", "compute", "step") and span.args == {"size": 3}
    assert before <= span.start <= span.end <= trace.now()


def test_threads_lose_no_span() -> None:
    recorder, workers, each = Recorder(), 8, 12_500

    def work(number: int) -> None:
        for step in range(each):
            with recorder.span("compute", str(step), lane=f"worker {number}"):
                pass

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, range(workers)))
    recorded = recorder.trace()
    assert len(recorded) == 100_000
    for lane in recorded.lanes:
        assert [span.name for span in recorded.select(lane=lane).spans] == [*map(str, range(each))]


def _in_a_process(number: int) -> Trace:
    with trace.recording() as recorder, trace.span("compute", lane=f"rank {number}"):
        sum(range(1000))
    return recorder.trace()


def test_traces_of_processes_merge_on_one_clock() -> None:
    begin = trace.now()
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        first = pool.submit(_in_a_process, 0).result(timeout=120)
        between = trace.now()
        second = pool.submit(_in_a_process, 1).result(timeout=120)
    end = trace.now()
    merged = Trace.merge([second, first])
    assert merged.lanes == ("rank 0", "rank 1")
    assert begin <= first.start <= first.end <= between <= second.start <= second.end <= end


def test_without_a_recorder_nothing_is_kept_and_nesting_restores_the_outer_one() -> None:
    with trace.span("compute", "lost"):
        pass
    with trace.recording() as outer:
        with trace.span("compute", "a"):
            pass
        with trace.recording() as inner, trace.span("compute", "b"):
            pass
        with trace.span("compute", "c"):
            pass
    with trace.span("compute", "lost"):
        pass
    assert [span.name for span in outer.trace().spans] == ["a", "c"]
    assert [span.name for span in inner.trace().spans] == ["b"]


def test_figures_of_a_trace() -> None:
    second = 10**9
    recorded = Trace(
        [
            Span("b", "wait", "", 2 * second, 5 * second),
            Span("a", "compute", "", 1 * second, 3 * second),
            Span("a", "wait", "", 3 * second, 4 * second),
        ]
    )
    assert recorded.lanes == ("a", "b")
    assert recorded.duration == 4
    assert recorded.total("wait") == 4 and recorded.total("wait", lane="a") == 1
    assert Trace().duration == 0 and Trace().lanes == ()
    with pytest.raises(ValueError, match="ends before it starts"):
        Trace([Span("a", "wait", "", 2, 1)])


@given(st.lists(spans, max_size=20))
def test_any_trace_survives_pickle_and_exports_valid_chrome_events(rows: list[Span]) -> None:
    original = Trace(rows)
    assert pickle.loads(pickle.dumps(original)) == original
    document = json.loads(json.dumps(original.to_chrome()))
    trace.validate_chrome(document)
    names = {
        event["tid"]: event["args"]["name"]
        for event in document["traceEvents"]
        if event["ph"] == "M"
    }
    events = [event for event in document["traceEvents"] if event["ph"] == "X"]
    assert len(events) == len(original)
    for event, span in zip(events, original.spans, strict=True):
        assert names[event["tid"]] == span.lane
        assert event["ts"] == (span.start - original.start) / 1e3


def _valid() -> dict:
    return Trace([Span("a", "compute", "x", 0, 5)]).to_chrome()


@pytest.mark.parametrize(
    ("key", "value", "offence"),
    [
        ("ph", "Q", "ph must be"),
        ("dur", -1, "dur must be"),
        ("ts", "0", "ts must be"),
        ("ts", float("nan"), "ts must be"),
        ("tid", "one", "tid must be int"),
        ("name", None, "name must be str"),
        ("args", {"x": object()}, "not JSON serializable"),
    ],
)
def test_a_broken_export_is_refused(key: str, value: object, offence: str) -> None:
    document = _valid()
    trace.validate_chrome(document)
    document["traceEvents"][-1][key] = value
    with pytest.raises(ValueError, match=offence):
        trace.validate_chrome(document)


def test_a_saved_trace_is_the_exported_one(tmp_path) -> None:
    recorded = Trace([Span("a", "compute", "x", 7, 9, {"token": "é"})])
    path = recorded.save(tmp_path / "trace.json")
    assert json.loads(path.read_text(encoding="utf-8")) == recorded.to_chrome()
