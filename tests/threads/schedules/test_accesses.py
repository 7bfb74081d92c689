"""Which instructions count as accesses, and whose they are taken to be."""

import linecache
import threading
import types

from utils.threads.schedules.accesses import functions, stored, table
from utils.threads.schedules.probe import Probe
from utils.threads.schedules.races import Clock, Place, Races


def accesses(body: str) -> list[str]:
    """What a method with that body touches, in order."""
    source = "def method(self, n, key):\n" + "".join(f"    {line}\n" for line in body.splitlines())
    linecache.cache["<method>"] = (len(source), None, source.splitlines(True), "<method>")
    names: dict = {"constant": len, "LIMIT": 3}
    exec(compile(source, "<method>", "exec"), names)
    found = table(names["method"].__code__, {"LIMIT"}).values()
    return [str(access) for access in found]


def test_an_augmented_assignment_reads_and_writes() -> None:
    assert [a for a in accesses("self.x += 1") if "x" in a and "[" not in a][0] == "read self.x"
    assert accesses("self.x += 1")[-1] == "write self.x"


def test_containers_are_found_by_name() -> None:
    assert "call self.items.append" in accesses("self.items.append(n)")
    assert "write n" in accesses("n[key] = 1")
    assert "read self.items" in accesses("return key in self.items")
    assert accesses("for item in n: pass").count("read n") == 2  # once to begin, once a turn
    assert "read n" in accesses("if not n: return 1")
    assert "write n" in accesses("n += [1]")


def test_what_cannot_be_named_is_left_open() -> None:
    assert "read ….x" in accesses("return self.all[key].x")
    assert "call acquire" in accesses("self.all[key].acquire()")


def test_constants_and_locals_do_not_count() -> None:
    assert accesses("m = n\nreturn m") == []
    assert accesses("return constant(n)") == ["call constant"]
    assert accesses("return LIMIT") == ["read LIMIT"]


def test_the_end_of_a_with_is_no_call() -> None:
    calls = [a for a in accesses("with n: pass") if a.startswith("call")]
    assert calls == ["call n.__enter__"]


def test_a_waiting_loop_is_told_from_one_that_does_something() -> None:
    def waiting(flag) -> None:
        while not flag.up:
            pass

    def counting(flag) -> None:
        n = 0
        while not flag.up:
            n += 1

    loops = [
        [a.writes for a in table(f.__code__, set()).values() if a.kind == "loop"]
        for f in (waiting, counting)
    ]
    assert not any(loops[0]) and all(loops[1]) and all(loops)


def test_functions_of_a_module_are_found_inside_classes_and_functions() -> None:
    names: dict = {}
    exec(
        "class C:\n"
        "    @property\n"
        "    def p(self): self.a = 1\n"
        "    @staticmethod\n"
        "    def s():\n"
        "        def inner(o): o.b = 2\n"
        "from threading import Thread\n",
        names,
    )
    codes = list(functions(names))
    assert {code.co_name for code in codes} == {"p", "s", "inner"}
    assert set().union(*map(stored, codes)) == {"a", "b"}


# ── Races ─────────────────────────────────────────────────────────────────────────────────────

READ, WRITE = Place("x", 1, False), Place("x", 1, True)


def clocks(count: int) -> list[Clock]:
    made = [Clock() for _ in range(count)]
    for index, clock in enumerate(made):
        clock.advance(index)
    return made


def test_two_reads_do_not_race_and_a_write_does() -> None:
    races, (one, other) = Races(), clocks(2)
    assert races.visit(READ, 0, one, (1, 0)) == set()
    assert races.visit(READ, 1, other, (2, 0)) == set()
    assert races.visit(WRITE, 1, other, (2, 2)) == {(1, 0), (2, 2)}


def test_what_happens_before_does_not_race() -> None:
    races, (one, other) = Races(), clocks(2)
    assert races.visit(WRITE, 0, one, (1, 0)) == set()
    other.join(one)  # as after a release and an acquire
    one.advance(0)
    assert races.visit(WRITE, 1, other, (2, 0)) == set()
    assert races.visit(READ, 0, one, (1, 2)) == {(1, 2), (2, 0)}


def test_other_objects_do_not_race_but_unknown_ones_may() -> None:
    races, (one, other) = Races(), clocks(2)
    assert races.visit(Place("items", 1, True), 0, one, (1, 0)) == set()
    assert races.visit(Place("items", 2, True), 1, other, (2, 0)) == set()
    assert races.visit(Place("items", None, True), 1, other, (2, 2)) == {(1, 0), (2, 2)}
    assert races.visit(Place("items", 7, False), 0, one, (1, 2)) == {(1, 2), (2, 2)}


def test_an_attribute_stored_elsewhere_makes_no_global_of_the_program_a_variable() -> None:
    """Else every module's `self.time = …` doubles the schedules of whoever calls `time.sleep`."""
    elsewhere = types.ModuleType("elsewhere")
    exec("def keep(self): self.time = self.queue = 0", vars(elsewhere))

    def program() -> None:
        threading.queue = None

    probe = Probe(program, [vars(elsewhere)])
    assert {"time", "queue"} <= probe.stored
    assert "time" not in probe.variables and "queue" in probe.variables
