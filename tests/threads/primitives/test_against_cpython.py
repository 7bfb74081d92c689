"""CPython's own test cases for its primitives, run against ours (`test.lock_tests`)."""

import unittest

import pytest

from utils.threads.primitives.condition import Condition
from utils.threads.primitives.mutex import Mutex
from utils.threads.primitives.rendezvous import Barrier, Event
from utils.threads.primitives.semaphore import BoundedSemaphore, Semaphore

lock_tests = pytest.importorskip(
    "test.lock_tests", reason="platform: this Python comes without CPython's own tests"
)

SUBJECTS = {
    "LockTests": ("locktype", Mutex),
    "EventTests": ("eventtype", Event),
    "ConditionTests": ("condtype", Condition),
    "SemaphoreTests": ("semtype", Semaphore),
    "BoundedSemaphoreTests": ("semtype", BoundedSemaphore),
    "BarrierTests": ("barriertype", Barrier),
}
# Where ours is meant to differ, and what is nobody's business but CPython's.
EXCLUDED = {
    "LockTests.test_reacquire": "a Lock may be released by anybody, a Mutex by its owner only",
    "LockTests.test_different_thread": "the same",
    "LockTests.test_at_fork_reinit": "a private method, called by os.fork",
    "EventTests.test_at_fork_reinit": "the same",
    "ConditionTests.test_acquire": "takes the Condition's own lock twice: ours is not an RLock",
}


def cases():
    for group, (attribute, subject) in SUBJECTS.items():
        # staticmethod, as CPython's test_threading does it: the subject must not become a method.
        body = {attribute: staticmethod(subject)}
        case = type(group, (getattr(lock_tests, group),), body)
        for name in unittest.defaultTestLoader.getTestCaseNames(case):
            if f"{group}.{name}" not in EXCLUDED:
                yield pytest.param(case, name, id=f"{group}.{name}")


@pytest.mark.parametrize(("case", "name"), list(cases()))
def test_cpython_s_own(case: type[unittest.TestCase], name: str) -> None:
    result = unittest.TestResult()
    case(name).run(result)
    problems = [text for _, text in result.errors + result.failures]
    assert not problems, problems[0]
    assert result.testsRun == 1 and not result.skipped


def test_what_is_left_out_exists() -> None:
    for name in EXCLUDED:
        group, _, method = name.partition(".")
        assert hasattr(getattr(lock_tests, group), method), f"{name} is gone; so is its exception"
