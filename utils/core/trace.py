"""Record what happened when, in every thread and process, and hand it on as one trace.

A *span* says: this lane (a thread, process, rank or request) did this, from here to there. A lock
wait, an all-reduce, a pipeline bubble and a decoded token are all spans, so one recorder and
one picture (`plots.timeline`) serve the whole course.

The clock is `time.perf_counter_ns`, which is system-wide on Linux (CLOCK_MONOTONIC), macOS
(mach_absolute_time) and Windows (QueryPerformanceCounter): spans of several processes of one
machine share one axis and merge without correction.

Export: Trace Event Format, JSON object form, opens in https://ui.perfetto.dev.
Source: "Trace Event Format", Duvall, Sinclair et al., Google, 2016.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import current_thread
from time import perf_counter_ns as now
from typing import Any, NamedTuple

__all__ = ["Recorder", "Span", "Trace", "now", "recording", "span", "validate_chrome"]


class Span(NamedTuple):
    """`lane` did `name` (of kind `category`) from `start` to `end`, in ns of `now()`."""

    lane: str
    category: str
    name: str
    start: int
    end: int
    args: dict[str, Any] | None = None

    @property
    def seconds(self) -> float:
        return (self.end - self.start) / 1e9


class Recorder:
    """Collects spans from any thread.

    Safe without a lock: the only shared mutation is `list.append`, which is atomic in CPython
    with and without the GIL. A process records into a recorder of its own and returns
    `recorder.trace()`; `Trace.merge` joins them.
    """

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []  # as `Span`s, but cheaper to make

    def add(self, lane: str, category: str, name: str, start: int, end: int, **args: Any) -> None:
        """Record a span that was timed by hand; `start` and `end` in ns of `now()`."""
        self.rows.append((lane, category, name, start, end, args or None))

    def span(self, category: str, name: str = "", *, lane: str | None = None, **args: Any) -> _Open:
        """A context manager that records its block, exceptions included."""
        return _Open(self.rows, lane, category, name, args)

    def trace(self) -> Trace:
        """What was recorded so far, in order of start."""
        return Trace(map(Span._make, self.rows.copy()))


class _Open:
    """A span that has begun. A class with slots: a generator would cost twice as much."""

    __slots__ = ("_args", "_category", "_lane", "_name", "_rows", "_start")

    def __init__(
        self, rows: list[tuple[Any, ...]], lane: str | None, category: str, name: str, args: dict
    ) -> None:
        self._rows = rows
        self._lane = lane
        self._category = category
        self._name = name
        self._args = args

    def __enter__(self) -> None:
        self._start = now()

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        end = now()
        lane = self._lane or current_thread().name
        self._rows.append((lane, self._category, self._name, self._start, end, self._args or None))


class _Off:
    """What `span` hands out while nobody records."""

    __slots__ = ()

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: object, traceback: object) -> None: ...


_OFF = _Off()
_active: Recorder | None = None


def span(category: str, name: str = "", *, lane: str | None = None, **args: Any) -> _Open | _Off:
    """A span on the process's active recorder; does nothing when there is none."""
    recorder = _active
    return _OFF if recorder is None else _Open(recorder.rows, lane, category, name, args)


@contextlib.contextmanager
def recording() -> Iterator[Recorder]:
    """Make a new recorder the active one of this process, for all its threads."""
    global _active
    outer, _active = _active, Recorder()
    try:
        yield _active
    finally:
        _active = outer


@dataclass(frozen=True, init=False)
class Trace:
    """An immutable, picklable sequence of spans in order of start."""

    spans: tuple[Span, ...]

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        ordered = tuple(sorted(spans, key=lambda span: (span.start, span.end)))
        for span_ in ordered:
            if span_.end < span_.start:
                raise ValueError(f"span ends before it starts: {span_}")
        object.__setattr__(self, "spans", ordered)

    @staticmethod
    def merge(traces: Iterable[Trace]) -> Trace:
        """Traces of several threads, processes or runs on one axis."""
        return Trace(span for trace in traces for span in trace.spans)

    def __len__(self) -> int:
        return len(self.spans)

    @cached_property
    def lanes(self) -> tuple[str, ...]:
        """Lanes in order of their first span."""
        return tuple(dict.fromkeys(span.lane for span in self.spans))

    @property
    def start(self) -> int:
        return self.spans[0].start if self.spans else 0

    @cached_property
    def end(self) -> int:
        return max((span.end for span in self.spans), default=0)

    @property
    def duration(self) -> float:
        """Seconds from the first start to the last end."""
        return (self.end - self.start) / 1e9

    def select(self, *, lane: str | None = None, category: str | None = None) -> Trace:
        """The part of the trace on one lane, of one category, or both."""
        return Trace(
            span
            for span in self.spans
            if lane in (None, span.lane) and category in (None, span.category)
        )

    def total(self, category: str, lane: str | None = None) -> float:
        """Seconds spent in `category`, overlapping spans counted each."""
        return sum(span.seconds for span in self.select(lane=lane, category=category).spans)

    def to_chrome(self) -> dict[str, Any]:
        """Trace Event Format: one `X` event a span, µs since the start, a `tid` a lane."""
        tids = {lane: tid for tid, lane in enumerate(self.lanes, start=1)}
        events: list[dict[str, Any]] = [
            {"ph": "M", "name": "thread_name", "pid": 1, "tid": tid, "args": {"name": lane}}
            for lane, tid in tids.items()
        ]
        events += [
            {
                "ph": "X",
                "name": span.name or span.category,
                "cat": span.category,
                "ts": (span.start - self.start) / 1e3,
                "dur": (span.end - span.start) / 1e3,
                "pid": 1,
                "tid": tids[span.lane],
                "args": span.args or {},
            }
            for span in self.spans
        ]
        return {"traceEvents": events, "displayTimeUnit": "ms"}

    def save(self, path: str | Path) -> Path:
        """Write the Chrome form to `path` (open it in Perfetto)."""
        document = self.to_chrome()
        validate_chrome(document)
        path = Path(path)
        path.write_text(json.dumps(document), encoding="utf-8")
        return path


def validate_chrome(document: Any) -> None:
    """Check `document` against the Trace Event Format; ValueError names the first offence.

    Covers what this course writes (`X` complete and `M` metadata events); the format's
    other phases are refused.
    """

    def require(holds: bool, what: str) -> None:
        if not holds:
            raise ValueError(f"not a Chrome trace: {what}")

    require(isinstance(document, dict), "the document must be an object")
    events = document.get("traceEvents")
    require(isinstance(events, list), "traceEvents must be a list")
    require(document.get("displayTimeUnit", "ms") in ("ms", "ns"), "displayTimeUnit is ms or ns")
    for index, event in enumerate(events):
        where = f"event {index}"
        require(isinstance(event, dict), f"{where} must be an object")
        require(event.get("ph") in ("X", "M"), f"{where}: ph must be X or M")
        for key, types in {"name": str, "pid": int, "tid": int, "args": dict}.items():
            require(isinstance(event.get(key), types), f"{where}: {key} must be {types.__name__}")
        if event["ph"] == "X":
            require(isinstance(event.get("cat"), str), f"{where}: cat must be str")
            for key in ("ts", "dur"):
                value = event.get(key)
                number = isinstance(value, int | float) and 0 <= value < float("inf")
                require(number, f"{where}: {key} must be a number of µs, 0 or more")
    try:
        json.dumps(document, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"not a Chrome trace: {error}") from None
