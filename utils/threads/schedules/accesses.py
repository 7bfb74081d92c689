"""Which instructions of a function may touch what other threads can see.

Between two such instructions a thread is alone: wherever it is interrupted there, the others see
the same. So these are the only places where a scheduler has to ask who goes on. They are read from
the bytecode, because a line is too coarse: `count += 1` reads, adds and writes.

`table(code, globals)` gives, by instruction offset, what is touched: a *name* (a global or a
variable shared by nested functions), an *attribute*, the *items* of a container, or whatever a
*call* touches. Which object that is only shows at run time; `path` says how to look it up, as
("self", "_items"). The source positions of the instructions (PEP 657) tell whose receiver is what.
"""

from __future__ import annotations

import dis
import inspect
import types
from collections.abc import Iterator, Mapping, Set
from typing import Any, Literal, NamedTuple

Path = tuple[str, ...]
Kind = Literal["name", "attribute", "items", "call", "loop"]


class Access(NamedTuple):
    """One instruction: `kind` and `name` of what it touches, and how to find it."""

    kind: Kind
    name: str
    writes: bool = False
    path: Path | None = None  # of the receiver (a call: of what is called); None: not a plain name
    argument: Path | None = None  # of a call's only argument, if that is a plain name
    constant: bool = False  # a call without arguments, or with only a constant
    star: bool = False  # a call that unpacks its arguments: f(*items)

    def __str__(self) -> str:
        if self.kind == "loop":
            return "loop"
        if self.kind == "call":
            return f"call {'.'.join(self.path or (self.name,))}"
        owner = ".".join(self.path or ("…",))
        what = {"name": self.name, "attribute": f"{owner}.{self.name}", "items": owner}
        return f"{'write' if self.writes else 'read'} {what[self.kind]}"


_NAMES = {
    **dict.fromkeys(("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"), False),
    **dict.fromkeys(("STORE_DEREF", "DELETE_DEREF", "STORE_GLOBAL", "DELETE_GLOBAL"), True),
}
_ATTRIBUTES = {
    **dict.fromkeys(("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"), False),
    **dict.fromkeys(("STORE_ATTR", "DELETE_ATTR"), True),
}
_SUBSCRIPTS = {
    **dict.fromkeys(("BINARY_SUBSCR", "BINARY_SLICE"), False),
    **dict.fromkeys(("STORE_SUBSCR", "STORE_SLICE", "DELETE_SUBSCR"), True),
}
_CALLS = {"CALL", "CALL_KW", "CALL_FUNCTION_EX"}
# These look into what was pushed just before them: tests, loops, unpacking, f-strings.
_LOOKS = {"GET_ITER", "UNARY_NOT", "TO_BOOL", "UNPACK_SEQUENCE", "LIST_EXTEND", "SET_UPDATE"}
_LOOKS |= {"DICT_UPDATE", "DICT_MERGE", "FORMAT_VALUE", "FORMAT_SIMPLE"}
# An iteration with one of these changes something that is the thread's own.
_CHANGES = ("STORE_", "DELETE_", "FOR_ITER", "LIST_", "YIELD", "SEND")
# These look into something that need not have a name.
_MATCHES = {"MATCH_SEQUENCE", "MATCH_MAPPING", "MATCH_KEYS", "GET_LEN"}
_WITH = {"BEFORE_WITH", "LOAD_SPECIAL"}

Span = tuple[tuple[int, int], tuple[int, int]]  # from (line, column) to (line, column)


def table(code: types.CodeType, variables: Set[str]) -> dict[int, Access]:
    """Accesses of `code` by offset; of its globals, those among `variables` are not constant."""
    reader = _Reader(code, variables)
    accesses = {step.offset: reader.access(i) for i, step in enumerate(reader.steps)}
    return {offset: access for offset, access in accesses.items() if access is not None}


def stored(code: types.CodeType, attributes: bool = True) -> set[str]:
    """Globals (and attributes) that `code` assigns: those that nobody assigns are constants."""
    stores = _GLOBAL_STORES | _ATTRIBUTE_STORES if attributes else _GLOBAL_STORES
    return {step.argval for step in dis.get_instructions(code) if step.opname in stores}


_GLOBAL_STORES = {"STORE_GLOBAL", "DELETE_GLOBAL"}
_ATTRIBUTE_STORES = {"STORE_ATTR", "DELETE_ATTR"}


def functions(names: Mapping[str, Any]) -> Iterator[types.CodeType]:
    """The code of the functions and methods made in a module, and of what is defined in them."""
    for value in list(names.values()):
        for function in _members(value) if isinstance(value, type) else (value,):
            function = inspect.unwrap(function) if callable(function) else function
            if isinstance(function, types.FunctionType) and function.__globals__ is names:
                yield from nested(function.__code__)


def _members(kind: type) -> Iterator[Any]:
    for member in vars(kind).values():
        if isinstance(member, property):
            yield from (member.fget, member.fset, member.fdel)
        else:
            yield getattr(member, "__func__", member)


def nested(code: types.CodeType) -> Iterator[types.CodeType]:
    """`code` and that of the functions and classes defined in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from nested(constant)


class _Reader:
    def __init__(self, code: types.CodeType, variables: Set[str]) -> None:
        self.steps = [s for s in dis.get_instructions(code) if s.opname not in ("PRECALL", "CACHE")]
        self.variables = variables
        self.spans = [_span(step) for step in self.steps]
        self.paths: dict[Span, Path] = {}  # expressions that are names or attributes of names
        for index, (step, span) in enumerate(zip(self.steps, self.spans, strict=True)):
            if span and step.opname.startswith("LOAD_") and (path := self._path(index)):
                self.paths[span] = path

    def access(self, index: int) -> Access | None:
        step, op = self.steps[index], self.steps[index].opname
        if op in _NAMES:
            return Access("name", step.argval, _NAMES[op])
        if op == "LOAD_GLOBAL":
            return Access("name", step.argval) if step.argval in self.variables else None
        if op in _ATTRIBUTES:
            return Access("attribute", step.argval, _ATTRIBUTES[op], self._owner(index))
        if op in _SUBSCRIPTS or (op == "BINARY_OP" and step.argrepr == "[]"):
            return Access("items", "", _SUBSCRIPTS.get(op, False), self._receiver(index))
        if op in _CALLS:
            return self._call(index)
        if "JUMP" in op and "BACKWARD" in op:
            return self._loop(index)
        if op in _WITH:
            path = self._before(index)
            return Access("call", "__enter__", False, (*path, "__enter__") if path else None)
        if op in _MATCHES:
            return Access("items", "", False, self._before(index))
        if op == "FOR_ITER":
            return self._next(index)
        if op == "BINARY_OP":
            return self._operands(index)
        path = None
        if op in _LOOKS or "JUMP" in op:
            path = self._before(index)
        elif op in ("CONTAINS_OP", "COMPARE_OP"):
            path = self._last(index) or (self._receiver(index) if op == "COMPARE_OP" else None)
        return Access("items", "", False, path) if path else None

    def _operands(self, index: int) -> Access | None:
        """`items += [1]` changes the list, `items + others` reads both."""
        writes = self.steps[index].argrepr.endswith("=")
        left, right = self._receiver(index), self._last(index)
        if left and right and not writes and left != right:
            return Access("items", "", False, None, None)
        path = left or (None if writes else right)
        return Access("items", "", writes, path) if path else None

    def _next(self, index: int) -> Access | None:
        """The next item of a container, or of an iterator over one; a range is nobody else's."""
        path = self._before(index - 1)
        made = self._call(index - 2) if self.steps[index - 2].opname in _CALLS else None
        if path is None and made is not None and made.name == "range":
            return None
        return Access("items", "", False, path)

    def _call(self, index: int) -> Access | None:
        before = self.steps[index - 2 : index]
        if all(step.opname == "LOAD_CONST" and step.argval is None for step in before):
            return None  # the end of a `with`: __exit__(None, None, None)
        callee = self._inner(index)
        if callee is None:
            return Access("call", "")
        path, name = self.paths.get(self.spans[callee]), self.steps[callee].argval
        name = name if isinstance(name, str) else ""
        step, last = self.steps[index], self.steps[index - 1]
        single = step.opname == "CALL" and step.arg == 1
        argument = self._last(index, inset=1) if single else None
        nothing = step.opname == "CALL" and step.arg == 0
        constant = nothing or (single and last.opname == "LOAD_CONST")
        star = step.opname == "CALL_FUNCTION_EX"
        return Access("call", name, False, path, argument, constant, star)

    def _loop(self, index: int) -> Access:
        """A jump back: `writes` unless an iteration can only wait for what others do."""
        start = self.steps[index].argval
        body = [step.opname for step in self.steps[:index] if step.offset >= start]
        return Access("loop", "", any(op.startswith(_CHANGES) for op in body))

    def _path(self, index: int) -> Path | None:
        step = self.steps[index]
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            owner = self._owner(index)
            return (*owner, step.argval) if owner else None
        if step.opname.startswith(("LOAD_FAST", "LOAD_DEREF", "LOAD_GLOBAL")):
            # From 3.13 on two loads may be one instruction, placed where the first one is.
            return (step.argval[0],) if isinstance(step.argval, tuple) else (step.argval,)
        return None

    def _before(self, index: int) -> Path | None:
        """The plain name that the instruction before `index` pushed."""
        step, span = self.steps[index - 1], self.spans[index - 1]
        if isinstance(step.argval, tuple) and step.opname.endswith("LOAD_FAST"):
            return (step.argval[1],)
        return self.paths.get(span) if span and step.opname.startswith("LOAD_") else None

    def _owner(self, index: int) -> Path | None:
        """Whose attribute this is: pushed just before, or (in `x.y += 1`) earlier."""
        return self._before(index) or self._receiver(index)

    def _receiver(self, index: int) -> Path | None:
        """x.y of x.y.z, x.y[...] or x.y(...), if that is a plain name."""
        inner = self._inner(index)
        return None if inner is None else self.paths.get(self.spans[inner])

    def _inner(self, index: int) -> int | None:
        """The instruction for what begins in the same place and is the longest that is shorter."""
        if self.spans[index] is None:
            return None
        start, end = self.spans[index]
        spans = enumerate(self.spans)
        inner = [(s[1], i) for i, s in spans if s and s[0] == start and s[1] < end]
        return max(inner)[1] if inner else None

    def _last(self, index: int, inset: int = 0) -> Path | None:
        """z of x in z or of x(y, z), if that is a plain name."""
        span = self.spans[index]
        if span is None:
            return None
        start, (line, column) = span
        end = (line, column - inset)
        inner = [other for other in self.spans if other and other[1] == end and other[0] > start]
        return self.paths.get(min(inner, key=lambda other: other[0])) if inner else None


def _span(step: dis.Instruction) -> Span | None:
    where = step.positions
    if where is None or where.lineno is None or where.col_offset is None:
        return None
    return (where.lineno, where.col_offset), (where.end_lineno, where.end_col_offset)  # type: ignore
