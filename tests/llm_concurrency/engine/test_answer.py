"""Text as it comes: stops, letters in two halves; many readers of one answer."""

import asyncio
import threading

import pytest

from utils.llm_concurrency.engine.answer import Answer, Text
from utils.llm_concurrency.engine.request import DeadlinePassed, Request


def pieces(letters, words, stop=()) -> tuple[list[str], bool]:
    text = Text(letters, tuple(stop))
    shown = []
    for word in words:
        shown += [text.add(token) for token in letters.chat(word)]
        if text.stopped:
            break
    return [*shown, text.flush()], text.stopped


@pytest.mark.parametrize(
    "said, stop, expected",
    [
        ("abcdef", (), "abcdef"),
        ("abcdef", ("cd",), "ab"),
        ("abcdef", ("f", "cd", "ef"), "ab"),
        ("ababac", ("abac",), "ab"),  # the begin of a stop that is no stop comes first
        ("aab", ("ab",), "a"),
        ("abcab", ("abx",), "abcab"),  # held back at the end, then shown
        ("x", ("x",), ""),
        ("abc", ("abcd",), "abc"),
    ],
)
def test_an_answer_ends_before_the_first_stop(letters, said, stop, expected) -> None:
    shown, stopped = pieces(letters, said, stop)
    assert "".join(shown) == expected
    assert stopped == any(one in said for one in stop)


def test_what_may_become_a_stop_is_held_back_and_nothing_else(letters) -> None:
    text = Text(letters, ("wait",))
    shown = [text.add(token) for token in letters.chat("nowawake")]
    assert shown == ["n", "o", "", "", "wa", "", "wak", "e"]


def test_half_a_letter_is_never_shown(letters) -> None:
    text = Text(letters, ())
    assert [text.add(token) for token in (64, 94, 95, 64)] == ["a", "", "é", "a"]
    assert text.add(94) == "" and text.flush() == "�"
    text = Text(letters, ("é!",))
    assert [text.add(token) for token in (94, 95, 0)] == ["", "", ""] and text.stopped


def answer(cancel=lambda one: None, **how) -> Answer:
    return Answer(3, Request([1], **how), cancel)


def test_a_result_is_waited_for_no_longer_than_said() -> None:
    one = answer()
    one.write("half")
    with pytest.raises(TimeoutError, match="request 3 is not done after 0.01 s"):
        one.result(0.01)
    one.end("stop")
    assert one.result(0) == one.text == "half"


def test_what_failed_raises_for_every_reader() -> None:
    one, error = answer(), OSError("disk on fire")
    one.write("half")
    one.end("failed", error)
    for read in (one.result, lambda: list(one), lambda: asyncio.run(collect(one))):
        with pytest.raises(OSError, match="disk on fire"):
            read()
    late = answer(deadline=0.5)
    late.end("deadline")
    with pytest.raises(DeadlinePassed, match="request 3 was not complete within 0.5 s"):
        late.result()


async def collect(one: Answer) -> list[str]:
    return [piece async for piece in one]


def test_many_readers_each_see_everything() -> None:
    one, said = answer(), [str(n) for n in range(300)]
    heard: list[list[str]] = []
    started = threading.Barrier(9)

    def listen(read) -> None:
        started.wait(10)
        heard.append(read())

    async def several() -> list[str]:
        first, *others = await asyncio.gather(*(collect(one) for _ in range(3)))
        assert all(each == first for each in others)
        return first

    reads = [lambda: list(one)] * 4 + [lambda: asyncio.run(several())] * 4
    threads = [threading.Thread(target=listen, args=(read,)) for read in reads]
    for thread in threads:
        thread.start()
    started.wait(10)
    for piece in said:
        one.write(piece)
    one.end("length")
    for thread in threads:
        thread.join(10)
    assert heard == [said] * 8
    assert list(one) == asyncio.run(collect(one)) == said  # who comes late, too
    assert one._listeners == []


def test_a_reader_who_is_cancelled_or_whose_loop_is_closed_disturbs_nobody() -> None:
    one = answer()

    async def leave() -> None:
        task = asyncio.create_task(collect(one))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    assert one._listeners == []
    loop, reader = asyncio.new_event_loop(), one.__aiter__()
    loop.run_until_complete(asyncio.wait([loop.create_task(anext(reader))], timeout=0.01))
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.close()  # without a word to the reader
    assert len(one._listeners) == 1
    one.write("still")
    one.end("stop")
    assert one.result(0) == "still"


def test_a_coroutine_lets_others_go_on_while_it_waits() -> None:
    one, turns = answer(), []

    async def other() -> None:
        for turn in range(5):
            turns.append(turn)
            await asyncio.sleep(0)
        one.write("now")
        one.end("stop")

    async def both() -> list[str]:
        heard, _ = await asyncio.gather(collect(one), other())
        return heard

    assert asyncio.run(both()) == ["now"] and turns == [0, 1, 2, 3, 4]


def test_to_cancel_is_to_ask_the_engine() -> None:
    asked = []
    one = answer(asked.append)
    one.cancel()
    assert asked == [one] and one.ended is None
