"""Streaming: every frame of every voice arrives once, in its place, as computed offline."""

import threading

import numpy as np
import pytest
import torch

from utils.core.experiment import Cancelled, Control, controlled
from utils.core.trace import Span, Trace
from utils.overview.areas import speech
from utils.overview.areas.speech import (
    DEADLINE,
    HOPS,
    MELS,
    ListenResult,
    Stream,
    listen,
    log_mel,
    plot,
    voices,
)  # fmt: skip


def test_a_tone_is_loudest_in_the_filter_at_its_frequency():
    t = torch.arange(speech.FRAME) / speech.RATE
    bank = speech._mel_bank()
    for hertz in (300, 1000, 3000):
        loudest = log_mel(torch.sin(2 * torch.pi * hertz * t), 1)[0].argmax()
        centre = bank[:, loudest].argmax() * speech.RATE / 512
        assert centre == pytest.approx(hertz, rel=0.05)


def test_voices_differ_and_are_the_same_each_time():
    sound = voices(3)
    assert torch.equal(sound, voices(3))
    assert torch.isfinite(sound).all()
    assert not torch.allclose(sound[0], sound[1])


@pytest.mark.parametrize(("workers", "frames_back"), [(1, 1), (3, 1), (2, 150)])
def test_streamed_features_are_the_offline_ones(workers, frames_back):
    threads, inside = threading.active_count(), torch.get_num_threads()
    result = listen(workers=workers, streams=4, frames_back=frames_back)
    assert (threading.active_count(), torch.get_num_threads()) == (threads, inside)
    assert result.error < 1e-3
    for run in (result.one, result.many):
        assert run.features.shape == (4, HOPS, MELS)
        assert np.isfinite(run.latency).all()  # every frame was computed
        assert (run.latency > 0).all()  # and none before it arrived
        assert len(run.trace) == 4 * HOPS  # once
        late = len(run.trace.select(category="late"))
        assert late == round(run.missed * run.latency.size)
    assert len(plot(result).axes) == 3


def test_cancel_ends_the_stream_and_its_workers():
    control, before = Control(), threading.active_count()
    threading.Timer(0.15, control.cancel).start()
    with controlled(control), pytest.raises(Cancelled):
        listen(workers=2, streams=40)
    assert threading.active_count() == before


def _result(task: float, streams: int) -> ListenResult:
    """As if one worker had needed `task` seconds for each frame."""
    busy = Trace([Span("worker 1", "compute", "", 0, round(task * streams * HOPS * 1e9))])
    nothing = np.zeros((streams, HOPS))
    return ListenResult(Stream(1, nothing, nothing, busy), Stream(4, nothing, nothing, busy), 0.0)


def test_theory_of_the_backlog(monkeypatch):
    monkeypatch.setattr(speech.machine, "cores", lambda: 2)
    light = _result(0.001, 5)  # half of one worker
    assert light.load(light.one) == pytest.approx(0.5)
    assert light.theory(light.one) == 0
    heavy = _result(0.001, 20)  # twice one worker, exactly two
    assert heavy.load(heavy.one) == pytest.approx(2)
    assert heavy.load(heavy.many) == pytest.approx(1)  # four workers, but two cores
    assert heavy.theory(heavy.one) == pytest.approx(1 - (DEADLINE - 0.001) / 0.5)
    assert heavy.theory(heavy.many) == 0
