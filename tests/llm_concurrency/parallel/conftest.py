"""Torch computes with one thread here: more of them spin, and wait for cores that others have."""

from collections.abc import Iterator

import pytest

from utils.core.workers import intra_op


@pytest.fixture(autouse=True, scope="module")
def one_thread_inside() -> Iterator[None]:
    """A test that wants more says so itself."""
    with intra_op(1):
        yield
