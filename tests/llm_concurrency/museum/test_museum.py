"""Each bug breaks its invariant and somebody's answer; without it, nothing of the kind."""

from typing import get_args

import pytest

from utils.core import plots
from utils.core.experiment import Cancelled, Control, controlled
from utils.llm_concurrency.engine.blocks import NOTHING, BlockPool, Content
from utils.llm_concurrency.museum import adam, bugs, invariants, visit
from utils.llm_concurrency.museum.visitors import text

EXPECTED = {  # the first to break, and whose answer is another
    "fully cached prompt": ("computes", ["B", "C"]),
    "freed twice": ("not_free", ["A"]),
    "stale entry": ("entries", ["C"]),
    "hash only": ("own", ["C"]),
}


def test_all_bugs_can_be_chosen() -> None:
    assert set(get_args(visit.Bug)) == bugs.EXHIBITS.keys() == EXPECTED.keys()


@pytest.mark.parametrize("size", [3, 4, 8])
@pytest.mark.parametrize("bug", EXPECTED)
def test_a_bug_breaks_its_invariant_before_or_when_an_answer_changes(bug, size) -> None:
    seen = visit.run(bug, True, size)
    invariant, changed = EXPECTED[bug]
    first = min(seen.broken.values())
    assert seen.broken[invariant] == first and seen.changed == changed
    assert not seen.trace.end > len(seen.held) * visit.TICK
    for name in changed:
        wrong = seen.differs(name)
        assert name in seen.failed if wrong is None else seen.came[name][wrong] >= first
    assert seen.bug == bug


@pytest.mark.parametrize("size", [3, 4, 5, 8])
@pytest.mark.parametrize("bug", EXPECTED)
def test_without_the_bug_the_same_requests_do_no_harm(bug, size) -> None:
    seen = visit.run(bug, False, size)
    assert not (seen.broken or seen.changed or seen.failed or any(seen.foreign))
    assert seen.answers == seen.alone and seen.bug == "no bug"


def test_the_exhibits_meet_their_bug_in_the_way_that_is_told() -> None:
    shared = visit.run("freed twice").held[1]
    assert [names for names in shared.values() if len(names) == 2] == [["A", "B"]] * 2
    stale = visit.run("stale entry")
    assert {name for step in stale.foreign for name in step.values()} == {"C"}
    leak = visit.run("hash only")
    assert leak.answers["C"] != leak.alone["C"] and leak.answers["A"] == leak.alone["A"]


def test_the_engine_s_own_check_does_not_see_a_stale_entry() -> None:
    """It compares the books with each other, and they agree: only the memory says otherwise."""
    calls = []

    def check(pool, texts) -> None:
        calls.append(pool)
        assert pool._block == {known.content: block for block, known in pool._known.items()}

    exhibit = bugs.EXHIBITS["stale entry"]
    seen = visit.walk("mine", exhibit.pool(exhibit.blocks, 4), exhibit.visitors(4), check)
    assert "check" not in seen.broken and "entries" in seen.broken
    assert len(calls) == len(seen.held)


def test_the_caller_s_check_is_asked_after_each_step() -> None:
    def refuse(pool, texts) -> None:
        assert not texts

    exhibit = bugs.EXHIBITS["stale entry"]
    seen = visit.walk("mine", BlockPool(exhibit.blocks, 4), exhibit.visitors(4), refuse)
    assert seen.broken == {"refuse": 0}


@pytest.mark.parametrize("before", [NOTHING, 5])
def test_collisions_are_made_without_a_search(before) -> None:
    tokens = text(1, 4)
    other = bugs.collide(tokens)
    one, two = Content(before, tuple(tokens)), Content(before, tuple(other))
    assert one != two and bugs.polynomial(one) == bugs.polynomial(two)
    assert bugs.polynomial(one) != bugs.polynomial(Content(before, tuple(text(2, 4))))
    assert all(0 <= token < 97 for size in range(3, 9) for token in bugs.collide(text(1, size)))


def test_the_shadow_follows_copies(tiny) -> None:
    from utils.llm_concurrency.engine.model import PagedModel
    from utils.llm_concurrency.engine.request import Request
    from utils.llm_concurrency.engine.scheduler import Plan, Work
    from utils.llm_concurrency.engine.sequence import Sequence

    shadow = invariants.Shadow(PagedModel(tiny, 4, 2), lambda plan: None)
    one = Sequence(0, Request([1, 2, 3], 2))
    one.table = [0, 1]
    shadow.run(Plan([Work(one, 0, 3)]))
    assert shadow.texts == {(0, 0): (1,), (0, 1): (1, 2), (1, 0): (1, 2, 3)}
    one.table, one.computed = [0, 2], 3
    one.tokens.append(9)
    shadow.run(Plan([Work(one, 3, 1)], copies=[(1, 2)]))
    assert shadow.texts[2, 0] == (1, 2, 3) and shadow.texts[2, 1] == (1, 2, 3, 9)
    assert shadow.foreign(Work(one, 4, 1)) == []
    one.table = [2, 0]
    assert shadow.foreign(Work(one, 2, 1)) == [2, 2]


def test_a_visit_can_be_cancelled() -> None:
    control = Control()
    control.cancel()
    with controlled(control), pytest.raises(Cancelled):
        visit.run()


@pytest.mark.parametrize("micro_batches", [1, 2, 8])
def test_adam_hides_the_scale_that_raw_gradients_and_sgd_show(micro_batches) -> None:
    seen = adam.run(micro_batches).differences
    assert seen["raw gradients"] == pytest.approx(micro_batches - 1)
    assert seen["parameters after Adam"] < adam.TOLERANCE
    assert (seen["parameters after SGD"] > adam.TOLERANCE) == (micro_batches > 1)


def test_right_gradients_do_not_depend_on_the_number_of_micro_batches(tiny) -> None:
    import copy

    import torch

    batch = torch.arange(8 * 6).view(8, 6)
    found = []
    for micro_batches in (1, 4):
        model = copy.deepcopy(tiny).requires_grad_(True)
        adam.gradients(model, batch, micro_batches, bug=False)
        found.append(model.layers[0].mlp.up_proj.weight.grad)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("bug", EXPECTED)
def test_pictures(bug) -> None:
    assert plots.png(visit.plot(visit.run(bug)), dpi=30)


def test_picture_of_the_comparison() -> None:
    for micro_batches in (1, 3):
        assert plots.png(adam.plot(adam.run(micro_batches)), dpi=30)
