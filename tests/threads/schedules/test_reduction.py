"""Switching only where threads race finds every outcome that switching everywhere finds."""

import linecache
import threading

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from utils.threads import schedules

NAMES = st.sampled_from("xy")
SIMPLE = st.one_of(
    st.builds("{0} += 1".format, NAMES),
    st.builds("{0} = {1}".format, NAMES, NAMES),
    st.builds("{0} = 2 * {0}".format, NAMES),
    st.builds("items.append({0})".format, NAMES),
    st.just("if items: items.pop()"),
    st.just("box.value += 1"),
    st.builds("{0} = len(items)".format, NAMES),
)
LOCKED = st.builds(
    lambda lock, body: [f"with {lock}:", *(f"    {line}" for line in body)],
    st.sampled_from(["first", "second"]),
    st.lists(SIMPLE, min_size=1, max_size=2),
)
POLLED = st.builds(
    lambda line: ["if first.acquire(blocking=False):", f"    {line}", "    first.release()"], SIMPLE
)
STATEMENT = st.one_of(SIMPLE.map(lambda line: [line]), LOCKED, POLLED)
BODY = st.lists(STATEMENT, min_size=1, max_size=2).map(lambda parts: sum(parts, []))


def written(bodies: list[list[str]]) -> tuple[str, dict]:
    """The source of a program whose threads have these bodies, and the names it needs."""
    lines = ["def program():", "    x = y = 0", "    items, box = [], Box()"]
    lines.append("    first, second = threading.Lock(), threading.Lock()")
    for number, body in enumerate(bodies):
        lines += [f"    def thread_{number}():", "        nonlocal x, y"]
        lines += [f"        {line}" for line in body]
    names = ", ".join(f"thread_{number}" for number in range(len(bodies)))
    lines += [
        f"    threads = [threading.Thread(target=work) for work in ({names},)]",
        "    for thread in threads: thread.start()",
        "    for thread in threads: thread.join()",
        "    outcomes.add((x, y, tuple(items), box.value))",
    ]
    return "\n".join(lines) + "\n", {"threading": threading, "Box": Box, "outcomes": set()}


class Box:
    def __init__(self) -> None:
        self.value = 0


def outcomes(bodies: list[list[str]], **options) -> tuple[set, schedules.Report]:
    source, names = written(bodies)
    linecache.cache["<program>"] = (len(source), None, source.splitlines(True), "<program>")
    exec(compile(source, "<program>", "exec"), names)
    report = schedules.check(names["program"], random=0, seconds=60, **options)
    return names["outcomes"], report


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(st.lists(BODY, min_size=2, max_size=2))
def test_the_reduction_loses_no_outcome(bodies) -> None:
    reduced, report = outcomes(bodies, preemptions=1)
    everywhere, full = outcomes(bodies, preemptions=1, reduce=False)
    assert report.verdict == full.verdict == "proved"
    assert reduced == everywhere, "\n".join(written(bodies)[0].splitlines())
    assert sum(report.counts) <= sum(full.counts)
