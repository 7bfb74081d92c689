"""Rules for every test: in CI a skipped test is a failed one; nobody's predictions are touched."""

import os
import tempfile

import pytest

CI = os.environ.get("CI", "").lower() in ("1", "true")


def pytest_configure(config) -> None:
    """Kernels that run a chapter inherit this: their answers are not the maintainer's."""
    home = tempfile.TemporaryDirectory(prefix="course-home-")
    os.environ["COURSE_HOME"] = home.name
    config.add_cleanup(home.cleanup)


def fail_skip(report) -> None:
    """A test that CI cannot run proves nothing. "platform: …" skips are the only exception."""
    if not (CI and report.skipped) or hasattr(report, "wasxfail"):
        return
    where, line, reason = report.longrepr
    reason = reason.removeprefix("Skipped: ")
    if not reason.startswith("platform:"):
        report.outcome = "failed"
        report.longrepr = f"{where}:{line}: skipped in CI, which counts as a failure: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    fail_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    fail_skip(report)
    return report
