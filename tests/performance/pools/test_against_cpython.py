"""CPython's own test cases for futures and executors, run against ours."""

import concurrent.futures
import gc
import importlib
import logging
import unittest

import pytest

from utils.performance.pools.future import Future
from utils.performance.pools.thread_pool import ThreadPool
from utils.performance.pools.work_stealing import WorkStealingPool

HOME = "test.test_concurrent_futures"
WITHOUT = "platform: this Python comes without CPython's own tests"
support = pytest.importorskip("test.support", reason=WITHOUT)
support.use_resources, before = ["cpu"], support.use_resources  # and no time for the slowest cases
pytest.importorskip(f"{HOME}.executor", reason=WITHOUT)
util, thread_pool, shutdown, init, wait, as_completed, future = (
    importlib.import_module(f"{HOME}.{name}")
    for name in (
        *("util", "test_thread_pool", "test_shutdown", "test_init", "test_wait"),
        *("test_as_completed", "test_future"),
    )
)
support.use_resources = before
GROUPS = {
    "Future": (future.FutureTests,),
    "Executor": (thread_pool.ThreadPoolExecutorTest,),
    "Shutdown": (shutdown.ThreadPoolShutdownTest,),
    "Wait": (wait.WaitTests, util.ExecutorMixin, util.BaseTestCase),
    "AsCompleted": (as_completed.AsCompletedTests, util.ExecutorMixin, util.BaseTestCase),
    "Initializer": (init.InitializerMixin, util.BaseTestCase),
    "FailingInitializer": (init.FailingInitializerMixin, util.BaseTestCase),
}
# Where ours is meant to differ, and what is about the library's executor, not any.
forgotten = "a pool that is forgotten without shutdown keeps its workers until the end"
names_theirs = "a program that imports the library's executor by name; test_executors has its own"
EXCLUDED = {
    "Future.test_exception_with_success": "notifies through the library's own condition variable",
    "Shutdown.test_del_shutdown": forgotten,
    "Shutdown.test_thread_names_assigned": forgotten,
    "Shutdown.test_thread_names_default": forgotten,
    "Shutdown.test_interpreter_shutdown": names_theirs,
    "Shutdown.test_submit_after_interpreter_shutdown": names_theirs,
    "Shutdown.test_hang_gh83386": names_theirs,
    "Shutdown.test_cancel_futures_wait_false": names_theirs,
    "Executor.test_hang_global_shutdown_lock": "about a lock of the library's, and os.fork",
}


ABOUT_FUTURES = {"Future", "Wait", "AsCompleted"}  # the same whichever pool they come from


def cases():
    for pool in (ThreadPool, WorkStealingPool):
        for group, bases in GROUPS.items():
            if group in ABOUT_FUTURES and pool is not ThreadPool:
                continue
            case = type(group, bases, {"executor_type": pool})
            for name in unittest.defaultTestLoader.getTestCaseNames(case):
                left_out = hasattr(getattr(case, name), "__unittest_skip__")
                if not left_out and f"{group}.{name}" not in EXCLUDED:
                    yield pytest.param(case, name, id=f"{pool.__name__}.{group}.{name}")


@pytest.fixture
def ours_in_place_of_theirs(monkeypatch, case) -> None:
    """The cases make some futures, and here and there a pool, by the library's name."""
    monkeypatch.setattr(concurrent.futures, "ThreadPoolExecutor", case.executor_type)
    for module in (util, future, as_completed):
        monkeypatch.setattr(module, "Future", Future)
    for name in [name for name in vars(util) if name.endswith("_FUTURE")]:
        theirs = getattr(util, name)
        mine = util.create_future(theirs._state, theirs._exception, theirs._result)
        for module in (wait, as_completed, future):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, mine)


@pytest.mark.usefixtures("ours_in_place_of_theirs")
@pytest.mark.parametrize(("case", "name"), list(cases()))
def test_cpython_s_own(case: type[unittest.TestCase], name: str, monkeypatch) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])  # let errors go to stderr as without pytest
    result = unittest.TestResult()
    gc.freeze()  # what pytest has made need not be looked at in each gc.collect()
    try:
        case(name).run(result)
    finally:
        gc.unfreeze()
    problems = [text for _, text in result.errors + result.failures]
    assert not problems, problems[0]
    assert result.testsRun == 1 and not result.skipped


def test_what_is_left_out_exists() -> None:
    for name in EXCLUDED:
        group, _, method = name.partition(".")
        assert any(hasattr(base, method) for base in GROUPS[group]), f"{name} is gone"
