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
_modules: dict[
    int, dict[int, types.CodeType]
] = {}  # a module's functions stay, a notebook's do not


class Probe:
    """The code that is explored: `home`, the program's names, and the modules of primitives."""

    def __init__(self, program: Callable[[], object], followed: list[dict[str, Any]]) -> None:
        self.home: dict[str, Any] = program.__globals__  # type: ignore[attr-defined]
        self._names: dict[int, dict[str, Any]] = {}
        self._codes: dict[int, types.CodeType] = {}
        self._tables: dict[int, dict[int, Access]] = {}
        for names in followed:
            if id(names) not in _modules:
                _modules[id(names)] = {id(code): code for code in functions(names)}
            self._follow(_modules[id(names)], names)
        own = [*functions(self.home), *nested(program.__code__)]  # type: ignore[attr-defined]
        self._follow({id(code): code for code in own}, self.home)
        self.stored: set[str] = set().union(*map(stored, self._codes.values()))

    def _follow(self, codes: dict[int, types.CodeType], names: dict[str, Any]) -> None:
        for key, code in codes.items():
            if names is vars(threading) and code.co_qualname.split(".")[0] not in _PRIMITIVES:
                continue
            self._codes[key], self._names[key] = code, names

    def accesses(self, code: types.CodeType) -> dict[int, Access]:
        """Where `code` is to be stopped; nowhere if it is not explored."""
        key = id(code)
        if key not in self._codes:
            return {}
        if key not in self._tables:
            self._tables[key] = table(code, self._names[key])
        return self._tables[key]

    @contextmanager
    def installed(self) -> Iterator[None]:
        """For the length of an exploration."""
        if not MONITORING:
            yield
            return
        events = sys.monitoring.events
        sys.monitoring.use_tool_id(_TOOL, "schedules")
        try:
            sys.monitoring.register_callback(_TOOL, events.INSTRUCTION, self._at_instruction)
            sys.monitoring.register_callback(_TOOL, events.PY_RETURN, self._at_return)
            for code in self._codes.values():
                wanted = events.INSTRUCTION | events.PY_RETURN
                sys.monitoring.set_local_events(_TOOL, code, wanted)
            yield
        finally:
            for code in self._codes.values():
                sys.monitoring.set_local_events(_TOOL, code, 0)
            for event in (events.INSTRUCTION, events.PY_RETURN):
                sys.monitoring.register_callback(_TOOL, event, None)
            sys.monitoring.free_tool_id(_TOOL)

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
        accesses = self.accesses(code)
        if not accesses or execution is None or execution.checking:
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
