"""The contest: same work for both teams, everybody takes part, nothing is left behind."""

import threading

import pytest
import torch

from utils.core.experiment import Cancelled, Control, controlled
from utils.core.workers import crew, intra_op, lanes
from utils.overview.areas.common import Team, contest


def test_crew_has_all_its_workers_and_they_end():
    before = threading.active_count()
    with crew(5) as pool:
        everyone = threading.Barrier(5)

        def meet(_: int) -> str:
            everyone.wait(10)  # returns only if five threads are here at once
            return threading.current_thread().name

        assert sorted(pool.map(meet, range(5))) == lanes(5)
    assert threading.active_count() == before


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_race_does_every_task_in_order_and_records_the_last_round(workers):
    def squares(team: Team) -> list[int]:
        return team.map(lambda n: n * n, range(20), "square")

    result, one, many = contest(squares, workers, items=20, unit="squares", rounds=3)
    assert one == many == [n * n for n in range(20)]
    assert len(result.one.values) == len(result.many.values) == 3
    assert len(result.trace) == 20
    assert set(result.trace.lanes) <= set(lanes(workers))
    assert result.theory >= result.rate_one


def test_threads_inside_are_put_back_even_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="on purpose"), intra_op(before + 1):
        assert torch.get_num_threads() == before + 1
        raise RuntimeError("on purpose")
    assert torch.get_num_threads() == before


def test_progress_only_grows_and_ends_full():
    control, seen = Control(), []

    def work(team: Team) -> None:
        for _ in range(3):
            team.map(abs, range(4))
            seen.append(control.progress.done / control.progress.total)

    with controlled(control):
        contest(work, 2, items=12, unit="numbers", rounds=2, maps=3)
    assert seen == sorted(seen)
    assert seen[-1] == 1


def test_cancel_ends_the_race_and_its_threads():
    control, before = Control(), threading.active_count()

    def work(team: Team) -> None:
        team.map(lambda _: control.cancel(), range(4))

    with controlled(control), pytest.raises(Cancelled):
        contest(work, 3, items=4, unit="numbers")
    assert threading.active_count() == before


def test_an_error_in_a_worker_comes_out():
    def work(team: Team) -> None:
        team.map(lambda n: 1 // n, [1, 0])

    with pytest.raises(ZeroDivisionError):
        contest(work, 2, items=2, unit="numbers")
