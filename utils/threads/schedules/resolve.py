"""What an instruction that is about to run will touch: the object, found without running anything.

A path like ("self", "_items") is followed through variables and attributes; properties are not
called. What cannot be told is taken to be anything, which costs schedules but loses none; what is
not looked into at all, `search.check` names.
"""

from __future__ import annotations

import _thread
import builtins
import collections
import reprlib
import types
from collections.abc import Callable, Set
from typing import Any

from utils.threads.schedules.accesses import Access, Path
from utils.threads.schedules.races import Place

_UNKNOWN = object()
_CONTAINERS = (list, dict, set, bytearray, collections.deque)
_IMMUTABLE = (int, float, complex, str, bytes, bool, type(None), tuple, frozenset, range, type)
_IMMUTABLE += (types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType)
_DATA = (int, float, complex, str, bytes, bytearray, bool, type(None))
_METHODS = (types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType)
_METHODS += (types.WrapperDescriptorType, staticmethod, classmethod)
_LOCKS = (type(_thread.allocate_lock()), _thread.RLock)
_LOCKING = {"acquire", "release", "__enter__", "__exit__", "locked"}
# Threads, the explorer's stand-ins, and bookkeeping that the program does not see.
_OURS = (
    "threading",
    "utils.core.",
    "utils.threads.schedules.",
    "utils.threads.primitives.deadlock",
)
_READERS = {"copy", "count", "get", "index", "items", "keys", "values", "__contains__", "__len__"}
_PURE = {"builtins", "math", "time", "_thread"}  # whose functions change no argument, but for
_MUTATORS = frozenset({builtins.next, builtins.setattr, builtins.delattr, builtins.exec})
# Methods of primitives: each stops at a point of its own. No container has one of this name.
_OWN_POINTS = {"acquire", "release", "wait", "wait_for", "notify", "notify_all", "start", "is_set"}
_OWN_POINTS |= {"__enter__", "__exit__"}


class Foreign(Exception):
    """The program uses a lock that is not under the scheduler's control."""


def touched(
    access: Access,
    frame: types.FrameType,
    stored: Set[str],
    explored: Callable[[types.CodeType], bool],
) -> Place | None:
    """The place that `access` touches, or None if nobody else can see it.

    `stored`: attributes that are assigned anywhere; others are constants. `explored`: is this code
    watched itself? Foreign if it is a lock's method, and the lock a real one.
    """
    if access.kind == "name":
        return Place(access.name, 0, access.writes)
    if access.kind == "attribute":
        if access.name not in stored:
            return None
        owner = _follow(access.path, frame)
        if not access.writes and access.name not in getattr(owner, "__dict__", {access.name: 0}):
            owner = _UNKNOWN  # it is the class's, or somebody's above it
        return Place(("attribute", access.name), _key(owner), access.writes)
    if access.kind == "items":
        return _items(_follow(access.path, frame), access.writes)
    return _call(access, frame, explored)


def shown(access: Access, frame: types.FrameType) -> str:
    """The value of what `access` touches, in a few characters; "" if it cannot be found."""
    path = access.path
    if access.kind == "name":
        path = (access.name,)
    elif access.kind == "attribute":
        path = (*path, access.name) if path else None
    elif access.kind == "call":
        path = path[:-1] if path and len(path) > 1 else None
    value = _follow(path, frame)
    return reprlib.repr(value) if is_data(value) else ""


def is_data(value: object) -> bool:
    """Something to show a reader: numbers, texts, and containers of nothing else."""
    if isinstance(value, dict):
        return all(map(is_data, value.values()))
    if isinstance(value, list | tuple | set | frozenset | collections.deque):
        return all(map(is_data, value))
    return isinstance(value, _DATA)


def _items(owner: object, writes: bool) -> Place | None:
    if owner is not _UNKNOWN and isinstance(owner, _IMMUTABLE):
        return None
    if type(owner).__module__ == "builtins" and not isinstance(owner, _CONTAINERS):
        owner = _UNKNOWN  # a view or an iterator: of what, it does not tell
    return Place("items", _key(owner), writes)


def _call(
    access: Access, frame: types.FrameType, explored: Callable[[types.CodeType], bool]
) -> Place | None:
    path = access.path
    owner = _follow(path[:-1], frame) if path and len(path) > 1 else _UNKNOWN
    if isinstance(owner, _CONTAINERS):
        return _items(owner, access.name not in _READERS)
    if isinstance(owner, _LOCKS) and access.name in _LOCKING:
        raise Foreign
    target = _follow(path, frame)
    if target is _UNKNOWN:
        return None if access.name in _OWN_POINTS else Place("items", None, True)
    if isinstance(target, types.MethodType):
        target = target.__func__
    if isinstance(target, staticmethod | classmethod):
        target = target.__func__
    if isinstance(target, types.FunctionType):  # if explored, its own instructions are looked at
        ours = explored(target.__code__) or (target.__module__ or "").startswith(_OURS)
        if ours:
            return Place("items", None, False) if access.star else None
        return Place("items", None, True)
    reads_only = isinstance(target, type) or (
        isinstance(target, types.BuiltinFunctionType)
        and target.__module__ in _PURE
        and target not in _MUTATORS
    )
    plain = isinstance(owner, _IMMUTABLE) and not isinstance(owner, types.ModuleType | type)
    if reads_only or (owner is not _UNKNOWN and plain):
        return None if access.constant else _items(_follow(access.argument, frame), False)
    return Place("items", None, True)


def _key(owner: object) -> int | None:
    return None if owner is _UNKNOWN else id(owner)


def _follow(path: Path | None, frame: types.FrameType) -> Any:
    if not path:
        return _UNKNOWN
    root, *attributes = path
    value: Any = frame.f_locals.get(root, _UNKNOWN)
    if value is _UNKNOWN:
        value = frame.f_globals.get(root, getattr(builtins, root, _UNKNOWN))
    for name in attributes:
        if value is _UNKNOWN:
            return value
        value = _peek(value, name)
    return value


def _peek(owner: Any, name: str) -> Any:
    """`owner.name` without running a property or `__getattr__`."""
    own = getattr(owner, "__dict__", {})
    if name in own:
        return own[name]
    for kind in type(owner).__mro__:
        if name in vars(kind):
            value = vars(kind)[name]
            if isinstance(value, types.MemberDescriptorType):
                return getattr(owner, name, _UNKNOWN)
            computed = hasattr(type(value), "__get__") and not isinstance(value, _METHODS)
            return _UNKNOWN if computed else value
    return _UNKNOWN
