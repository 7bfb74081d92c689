"""Tokens are the library's; pieces join to the text they are pieces of."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from utils.core import assets
from utils.llm import tokens
from utils.llm.tokens import Pieces

SAMPLES = (
    "", " ", "Hello, world!", "  two  spaces ", "line\n\n\tline\r\n", "naïve 🙂🏳️‍🌈", "你好，世界",
    "12345 3.14", "<|im_start|>user\n<|im_end|>", "<|endoftext|>", "e\u0301 \u200b\u00a0",
)  # fmt: skip
ANY = settings(max_examples=150, deadline=None)
UNKNOWN = "\x04\x06\x13\x14\x16\x1d"  # the vocabulary has no token for these
TEXTS = st.text(st.characters(codec="utf-8", max_codepoint=0x3FFFF, exclude_characters=UNKNOWN))


@pytest.fixture(scope="module")
def reference():
    return AutoTokenizer.from_pretrained(assets.path("smollm2"))


def pieces_of(row: list[int]) -> list[str]:
    pieces = Pieces(tokens.smollm2())
    return [*(pieces.add(token) for token in row), pieces.flush()]


@pytest.mark.parametrize("text", SAMPLES)
def test_tokens_are_the_library_s(reference, text) -> None:
    row = tokens.smollm2().encode(text)
    assert row == reference.encode(text, add_special_tokens=False)
    assert tokens.smollm2().decode(row) == text


@pytest.mark.parametrize("question", SAMPLES)
def test_a_question_is_put_as_the_library_puts_it(reference, question) -> None:
    turns = [{"role": "user", "content": question}]
    expected = reference.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert tokens.smollm2().chat(question) == expected
    turns.insert(0, {"role": "system", "content": "Be brief."})
    expected = reference.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert tokens.smollm2().chat(question, "Be brief.") == expected


def test_the_end_and_the_size(reference) -> None:
    assert tokens.smollm2().end == reference.eos_token_id
    assert tokens.smollm2().size == len(reference) == 49152


@ANY
@given(TEXTS)
def test_the_bytes_of_the_tokens_are_those_of_the_text(text) -> None:
    row = tokens.smollm2().encode(text)
    assert b"".join(map(tokens.smollm2().spell, row)) == text.encode()


def test_an_unknown_byte_is_left_out_as_the_library_does(reference) -> None:
    row = tokens.smollm2().encode(f"a{UNKNOWN}b")
    assert row == reference.encode(f"a{UNKNOWN}b")
    assert tokens.smollm2().decode(row) == "ab"


def test_every_token_is_spelt_as_it_is_decoded() -> None:
    vocabulary = tokens.smollm2()
    for token in range(vocabulary.size):
        assert vocabulary.spell(token).decode(errors="replace") == vocabulary.decode([token])


@ANY
@given(TEXTS)
def test_pieces_join_to_any_text_and_show_no_half_letter(text) -> None:
    row = tokens.smollm2().encode(text)
    shown, whole = "", b""
    for token, piece in zip(row, pieces_of(row), strict=False):
        shown, whole = shown + piece, whole + tokens.smollm2().spell(token)
        assert text.startswith(shown)
        assert len(whole) - len(shown.encode()) < 4  # nothing waits but the start of one letter
    assert "".join(pieces_of(row)) == text


@ANY
@given(st.lists(st.integers(0, 49151), max_size=30))
def test_pieces_join_to_what_any_tokens_mean(row) -> None:
    assert "".join(pieces_of(row)) == tokens.smollm2().decode(row)


@ANY
@given(st.lists(st.sampled_from([138, 176, 178, 239, 230, 240, 250, 7906, 31, 472]), max_size=24))
def test_pieces_join_for_broken_letters_too(row) -> None:
    assert "".join(pieces_of(row)) == tokens.smollm2().decode(row)


def test_a_letter_of_four_tokens_comes_at_once() -> None:
    row = tokens.smollm2().encode("𓀀")
    assert len(row) > 2
    *nothing, letter, rest = pieces_of(row)
    assert letter == "𓀀" and not any([*nothing, rest])


def test_a_letter_that_never_ends_is_shown_at_the_end() -> None:
    assert pieces_of(tokens.smollm2().encode("界")[:-1])[-1] == "�"
