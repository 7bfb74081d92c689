"""Choosing by hand: steps, what is seen, going back, sharing a schedule; and the board."""

import threading
from threading import Lock, Thread

import pytest

from utils.threads import schedules
from utils.threads.schedules.by_hand import Hand


def lost_update() -> None:
    count = 0

    def add() -> None:
        nonlocal count
        seen = count
        count = seen + 1

    threads = [Thread(target=add), Thread(target=add)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count == 2


def lock_order() -> None:
    first, second = Lock(), Lock()

    def take(one: Lock, other: Lock) -> None:
        with one, other:
            pass

    threads = [
        Thread(target=take, args=(first, second)),
        Thread(target=take, args=(second, first)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def walk(hand: Hand, names: str) -> None:
    for name in names:
        hand.step(name)


def test_a_person_breaks_the_program_and_sees_how() -> None:
    hand = Hand(lost_update)
    walk(hand, "AB")  # both begin
    assert [standing.next for standing in hand.position.threads[1:]] == ["read count"] * 2
    walk(hand, "A")
    ann = hand.position.threads[1]
    assert ann.next == "write count" and ann.variables == {"seen": "0"}
    assert ann.source == "count = seen + 1"
    walk(hand, "B")
    assert hand.position.shared["count"] == "0"
    walk(hand, "A")  # the rest is B's and needs no choice
    failure = hand.position.failure
    assert failure.kind == "assertion" and hand.position.shared["count"] == "1"
    assert not hand.position.choices and not hand.position.survived


def test_a_schedule_without_switching_survives() -> None:
    hand = Hand(lost_update)
    while hand.position.choices:
        hand.step(hand.position.choices[0])
    assert hand.position.survived and hand.position.failure is None


def test_back_leads_where_one_came_from() -> None:
    hand = Hand(lost_update)
    positions = [hand.position]
    for name in "ABAB":
        positions.append(hand.step(name))
    for before in reversed(positions[:-1]):
        assert hand.back() == before
    assert hand.back() == positions[0]  # there is nothing before the start
    walk(hand, "AB")
    assert hand.restart() == positions[0]


def test_a_schedule_is_shared_as_text() -> None:
    hand = Hand(lost_update)
    walk(hand, "ABABA")
    text, failure = hand.position.schedule, hand.position.failure
    assert failure is not None
    other = Hand(lost_update)
    assert other.load(text).failure.message == failure.message
    assert other.steps == hand.steps
    assert schedules.replay(lost_update, text).kind == failure.kind


def test_what_the_explorer_found_can_be_walked_through() -> None:
    found = schedules.check(lost_update).failure
    hand = Hand(lost_update)
    assert hand.load(found.schedule).failure.kind == found.kind
    assert hand.back().failure is None


def test_locks_show_who_holds_them_and_who_waits() -> None:
    hand = Hand(lock_order)
    walk(hand, "AA")
    assert hand.position.locks == {"first": "A", "second": ""}
    walk(hand, "BB")  # B waits for A's lock now, and all that A can do is to wait for B's
    assert hand.position.failure.kind == "deadlock"
    assert hand.position.locks == {"first": "A", "second": "B"}
    assert {str(wait) for wait in hand.position.failure.waits} >= {"second, held by B"}


def test_only_who_can_go_on_may() -> None:
    hand = Hand(lost_update)
    with pytest.raises(ValueError, match="'main' cannot go on; choose of A, B"):
        hand.step("main")
    with pytest.raises(ValueError, match="another program"):
        hand.load("main:1 B:1")
    hand.step("A")  # a refused choice changes nothing


# ── The board ─────────────────────────────────────────────────────────────────────────────────


def offers(board) -> list[str]:
    return [b.description for b in board.choices if b.layout.display != "none"]


def test_the_board_offers_who_can_go_on_and_shows_the_rest() -> None:
    board = schedules.by_hand(lost_update)
    assert offers(board) == ["A: begin", "B: begin"] and board.back.disabled
    board.choices[0].click()
    board.choices[0].click()
    assert offers(board) == ["A: write count", "B: begin"] and not board.back.disabled
    view = board._view.value
    assert "count = seen + 1" in view and "seen=0" in view and "waits for the end of A" in view
    board.back.click()
    assert offers(board) == ["A: read count", "B: begin"]
    board.restart.click()
    assert offers(board) == ["A: begin", "B: begin"]


def test_the_board_says_how_it_ended_and_takes_a_schedule() -> None:
    board = schedules.by_hand(lost_update)
    while offers(board):
        board.choices[0].click()
    assert "survived" in board._said.value
    board.text.value = schedules.check(lost_update).failure.schedule
    board.load.click()
    assert "You broke it" in board._said.value
    board.text.value = "<b>nonsense"
    board.load.click()
    assert "&lt;b&gt;nonsense" in board._said.value and "<b>nonsense" not in board._said.value


def test_nothing_stays_behind_while_a_person_thinks() -> None:
    before = threading.active_count()
    hand = Hand(lost_update)
    walk(hand, "ABA")
    assert threading.active_count() == before
