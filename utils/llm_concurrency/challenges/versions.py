"""New weights while requests are being answered: a request keeps the version it began with.

`Versions` hands each request the model of the moment, for as long as it lasts. A swap only changes
what the *next* request gets, so no answer is half old and half new; the old weights go when their
last reader has. That is read-copy-update: McKenney and Slingwine, PDCS 1998.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, NamedTuple, TypeVar

Model = TypeVar("Model")


class Pinned(NamedTuple, Generic[Model]):
    """What a request sees until it ends. A cache of its results belongs to this number, too."""

    number: int
    model: Model


class Versions(Generic[Model]):
    """The current model, and older ones as long as somebody reads them."""

    def __init__(self, model: Model) -> None:
        # changed must be held whenever what follows is read or changes. It is notified when a
        # version has lost its last reader.
        self._changed = threading.Condition()
        self._current = Pinned(1, model)
        self._readers: Counter[int] = Counter()

    @contextmanager
    def pinned(self) -> Iterator[Pinned[Model]]:
        """The current version, which stays as it is until the block ends."""
        with self._changed:
            version = self._current
            self._readers[version.number] += 1
        try:
            yield version
        finally:
            with self._changed:
                self._readers[version.number] -= 1
                if not self._readers[version.number]:
                    del self._readers[version.number]
                    self._changed.notify_all()

    def swap(self, model: Model) -> int:
        """Requests that begin from now on get `model`; returns its number. Waits for nobody."""
        with self._changed:
            self._current = Pinned(self._current.number + 1, model)
            return self._current.number

    def drain(self, timeout: float) -> None:
        """Return when nobody reads an older version. TimeoutError: somebody still does."""
        end = time.monotonic() + timeout
        with self._changed:
            while old := sum(n for v, n in self._readers.items() if v < self._current.number):
                if not self._changed.wait(end - time.monotonic()) and time.monotonic() >= end:
                    raise TimeoutError(f"{old} requests still read old weights after {timeout} s")
