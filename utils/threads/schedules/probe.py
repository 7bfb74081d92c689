"""Stop a task before every instruction that may touch what others see.

From 3.12 on by `sys.monitoring` (PEP 669), whose events belong to code objects: they are switched
on for the code that is explored, and other threads that run it are let pass. Before by
`sys.settrace`, which belongs to a thread. (From 3.12 on that would miss a function's first call:
a frame's instructions are not traced before the next one.)
"""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from utils.threads.schedules.accesses import Access, functions, nested, stored, table
from utils.threads.schedules.crew import here

MONITORING = sys.version_info >= (3, 12)
_TOOL = 4  # one of the numbers that PEP 669 leaves free
# Of `threading`, these are explored like the program; starting a thread is not its business.
_PRIMITIVES = {"Condition", "Semaphore", "BoundedSemaphore", "Event", "Barrier", "_RLock"}


class Probe:
    """The code that is explored: all that belongs to `home`, the program's module, and to those of
    the primitives. `stored` are the attributes and globals that any of it assigns; `variables` the
    globals. Only the program may assign another module's, as an attribute: somewhere in so much
    code there is a `self.time = …`, and yet `time` is a module everywhere."""

    def __init__(self, program: Callable[[], object], followed: list[dict[str, Any]]) -> None:
        self.home: dict[str, Any] = program.__globals__  # type: ignore[attr-defined]
        self._followed = {id(names): names for names in (self.home, *followed)}
        self._tables: dict[int, tuple[types.CodeType, dict[int, Access]]] = {}
        self.stored: set[str] = set()
        self.variables: set[str] = set()
        self.grown = False  # code was met that the search did not know of before
        self._known: dict[int, types.CodeType] = {}
        for names in followed:
            for code in functions(names):
                self._add(code, names)
        for code in (*functions(self.home), *nested(program.__code__)):  # type: ignore[attr-defined]
            self._add(code, self.home)

    def _add(self, code: types.CodeType, names: dict[str, Any]) -> None:
        if not self._excluded(code):
            self._known[id(code)] = code
            self.stored |= stored(code)
            self.variables |= stored(code, attributes=names is self.home)

    @staticmethod
    def _excluded(code: types.CodeType) -> bool:
        if code.co_filename != threading.__file__:
            return False
        return code.co_qualname.split(".")[0] not in _PRIMITIVES

    def explored(self, code: types.CodeType) -> bool:
        return id(code) in self._known

    def meet(self, code: types.CodeType, names: dict[str, Any]) -> bool:
        """Is this code to be explored? If it is new, the search has to begin again."""
        if id(code) in self._known:
            return True
        if id(names) not in self._followed or self._excluded(code):
            return False
        self._add(code, names)
        self._tables.clear()  # they were made with fewer variables
        self.grown = True
        return True

    def accesses(self, code: types.CodeType) -> dict[int, Access]:
        """Where `code` is to be stopped."""
        if id(code) not in self._tables:
            self._tables[id(code)] = (code, table(code, self.variables))
        return self._tables[id(code)][1]

    @contextmanager
    def installed(self) -> Iterator[None]:
        """For the length of an exploration."""
        if not MONITORING:
            yield
            return
        events = sys.monitoring.events
        callbacks = {
            events.PY_START: self._at_start,
            events.INSTRUCTION: self._at_instruction,
            events.PY_RETURN: self._at_return,
        }
        sys.monitoring.use_tool_id(_TOOL, "schedules")
        try:
            for event, callback in callbacks.items():
                sys.monitoring.register_callback(_TOOL, event, callback)
            for code in self._known.values():
                self._watch(code)
            sys.monitoring.set_events(_TOOL, events.PY_START)
            sys.monitoring.restart_events()  # an earlier exploration may have passed code over
            yield
        finally:
            sys.monitoring.set_events(_TOOL, 0)
            for code in self._known.values():
                sys.monitoring.set_local_events(_TOOL, code, 0)
            for event in callbacks:
                sys.monitoring.register_callback(_TOOL, event, None)
            sys.monitoring.free_tool_id(_TOOL)

    @staticmethod
    def _watch(code: types.CodeType) -> None:
        events = sys.monitoring.events
        sys.monitoring.set_local_events(_TOOL, code, events.INSTRUCTION | events.PY_RETURN)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """For the length of a task, in its thread."""
        if MONITORING:
            yield
            return
        sys.settrace(self._trace)
        try:
            yield
        finally:
            sys.settrace(None)

    # ── sys.monitoring ────────────────────────────────────────────────────────────────────

    def _at_start(self, code: types.CodeType, offset: int) -> Any:
        if here.task is None:
            return None
        if id(code) not in self._known and self.meet(code, sys._getframe(1).f_globals):
            self._watch(code)  # takes effect with the next call: the search begins again
        return sys.monitoring.DISABLE

    def _at_instruction(self, code: types.CodeType, offset: int) -> None:
        execution = here.execution
        if execution is None or here.task is None or execution.checking:
            return
        if (access := self.accesses(code).get(offset)) is not None:
            execution.visit(sys._getframe(1), (id(code), offset), access)

    def _at_return(self, code: types.CodeType, offset: int, value: object) -> None:
        if here.execution is not None and here.task is not None:
            here.execution.leave(here.task)

    # ── sys.settrace ──────────────────────────────────────────────────────────────────────

    def _trace(self, frame: types.FrameType, event: str, arg: Any) -> Any:
        """Called when a function begins."""
        execution, code = here.execution, frame.f_code
        if execution is None or execution.checking or not self.meet(code, frame.f_globals):
            return None
        accesses = self.accesses(code)
        if not accesses:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False

        def at_event(frame: types.FrameType, event: str, arg: Any) -> Any:
            if event == "opcode":
                if (access := accesses.get(frame.f_lasti)) is not None:
                    execution.visit(frame, (id(code), frame.f_lasti), access)
            elif event == "return" and here.task is not None:
                execution.leave(here.task)
            # The return of a trace function writes a snapshot of the variables back, values that
            # others have changed meanwhile as well (bpo-30744); looking once more refreshes it.
            frame.f_locals  # noqa: B018
            return at_event

        return at_event
