"""How many kernel threads each model uses, and what is left behind."""

import threading

import pytest

from utils.core import machine, plots
from utils.threads.life import models


def test_every_thread_has_a_native_id_of_its_own_and_the_system_counts_it() -> None:
    before = models._counted_by_system()
    census = models.one_to_one(5)
    assert len(census.ran_on) == census.kernel_threads == 5
    assert census.counted >= before + 5


def test_coroutines_share_the_thread_of_their_event_loop() -> None:
    census = models.m_to_n(1000, loops=1)
    assert (census.model, len(census.ran_on), census.kernel_threads) == ("N:1", 1000, 1)


@pytest.mark.parametrize("tasks, loops, kernel_threads", [(7, 3, 3), (2, 4, 2), (1, 1, 1)])
def test_coroutines_are_dealt_out_to_all_loops(tasks, loops, kernel_threads) -> None:
    census = models.m_to_n(tasks, loops)
    assert len(census.ran_on) == tasks
    assert census.kernel_threads == kernel_threads
    dealt = sorted(census.ran_on.count(ident) for ident in set(census.ran_on))
    assert dealt[-1] - dealt[0] <= 1


def test_census_compares_the_three_models() -> None:
    result = models.census(tasks=6, loops=2)
    assert {model: c.kernel_threads for model, c in result.items()} == {
        "1:1": 6,
        "M:N": 2,
        "N:1": 1,
    }
    assert plots.png(models.plot(result)).startswith(b"\x89PNG")


@pytest.mark.parametrize("wrong", [{"tasks": 0}, {"tasks": 25}, {"loops": 5}])
def test_bad_numbers_are_named(wrong) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name}=.*give a whole number from 1 to"):
        models.census(**wrong)
    with pytest.raises(ValueError, match="tasks=0, loops=1: give at least 1"):
        models.m_to_n(0, 1)


def test_tradeoff_measures_each_model_and_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    result = models.tradeoff(count=100, tasks=2)
    assert set(threading.enumerate()) == before
    assert set(result.create) == set(result.switch) == {"1:1", "N:1"}
    assert set(result.speedup) == {"1:1", "M:N", "N:1"}
    assert all(
        value > 0 for s in (*result.create.values(), *result.switch.values()) for value in s.values
    )
    assert result.expected_speedup("N:1") == 1
    assert result.expected_speedup("1:1") == min(2, machine.cores())
    assert plots.png(models.plot_tradeoff(result)).startswith(b"\x89PNG")
