"""The address space of ended threads stays with the cache on, and goes with the cache off."""

import pytest

from utils.core import plots
from utils.core.experiment import Cancelled, Control, controlled
from utils.performance.pools import observed, stack_cache


@pytest.mark.skipif(not stack_cache.available(), reason="platform: no glibc here")
def test_what_is_kept() -> None:
    result = stack_cache.stack_cache()
    cached, uncached = result.cached, result.uncached
    assert len(cached.sizes) == len(uncached.sizes) == len(stack_cache.STEPS)
    live = cached.sizes[1] - cached.sizes[0]
    assert live > 0 and cached.kept > 0.9 * live
    assert uncached.kept < 0.5 * live  # a stack that is stood on cannot be unmapped: one may stay
    assert cached.sizes[3] - cached.sizes[1] < live / observed.THREADS / 2  # no more for the next
    for process in (cached, uncached):
        assert len(process.switches) == len(stack_cache.WAYS) and min(process.switches) >= 0
    assert plots.png(stack_cache.plot(result)).startswith(b"\x89PNG")


@pytest.mark.parametrize("system", [("", ""), ("glibc", "2.31")])
def test_where_there_is_no_glibc_it_says_so(monkeypatch, system) -> None:
    monkeypatch.setattr(stack_cache.platform, "libc_ver", lambda: system)
    result = stack_cache.stack_cache()
    assert result == stack_cache.StackCache(None, None)
    assert plots.png(stack_cache.plot(result)).startswith(b"\x89PNG")


def test_it_can_be_cancelled() -> None:
    control = Control()
    control.cancel()
    with controlled(control), pytest.raises(Cancelled):
        stack_cache.stack_cache()
