"""The loop that everything else is held against: its tokens, its ends, its errors."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from utils.core.experiment import Cancelled, Control, controlled
from utils.core.workers import intra_op
from utils.llm import tokens, weights
from utils.llm.decoder import Config, Decoder
from utils.llm.generate import generate, stream
from utils.llm.sampling import Sampling

PROMPT = [5, 9, 2, 70]


@pytest.fixture(autouse=True)
def one_thread():
    with intra_op(1):
        yield


@pytest.fixture
def tiny() -> Decoder:
    """In float32, as `generate` keeps its cache."""
    torch.manual_seed(0)
    config = Config(
        layers=2, hidden=32, heads=4, kv_heads=2, head_dim=8, intermediate=64, vocabulary=97,
        context=40,
    )  # fmt: skip
    model = Decoder(config).requires_grad_(False)
    model.embed_tokens.weight.mul_(0.1)  # as it is, the likeliest token leaves the others no chance
    return model


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("layers", [1, 3])
def test_greedy_tokens_are_the_library_s(tmp_path, cached, layers) -> None:
    torch.manual_seed(1)
    reference = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=layers,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
            initializer_range=0.4, eos_token_id=None, pad_token_id=0,
        )
    ).eval()  # fmt: skip
    reference.save_pretrained(tmp_path)
    expected = reference.generate(torch.tensor([PROMPT]), max_new_tokens=20, do_sample=False)
    found = generate(weights.load(tmp_path), PROMPT, 20, cached=cached)
    assert list(found) == expected[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("how", [Sampling(), Sampling(1.2), Sampling(0.9, repetition_penalty=1.3)])
def test_the_cache_changes_no_token(tiny, how) -> None:
    with_cache, without = (
        list(generate(tiny, PROMPT, 30, how, seed=3, cached=cached)) for cached in (True, False)
    )
    assert with_cache == without and len(with_cache) == 30


def test_the_seed_decides(tiny) -> None:
    rows = [list(generate(tiny, PROMPT, 20, Sampling(1.5), seed=seed)) for seed in (1, 1, 2)]
    assert rows[0] == rows[1] != rows[2]


def test_the_penalty_counts_prompt_and_answer(tiny) -> None:
    hard = Sampling(repetition_penalty=1e6)
    row = list(generate(tiny, PROMPT, 30, hard))
    assert len({*PROMPT, *row}) == 34  # scores of 0 and less are never chosen again, nor the others


def test_it_ends_with_the_token_to_stop_at(tiny) -> None:
    whole = list(generate(tiny, PROMPT, 30, Sampling(1.5)))
    stop = whole[7]
    row = list(generate(tiny, PROMPT, 30, Sampling(1.5), stop=stop))
    assert row == whole[: whole.index(stop) + 1]


@pytest.mark.parametrize(
    ("prompt", "limit", "what"),
    [
        ([], 5, "0 tokens of prompt, limit=5"),
        (PROMPT, 0, "limit=0"),
        (PROMPT, 37, "4 tokens and limit=37 do not fit into 40"),
    ],
)
def test_what_cannot_be_is_refused(tiny, prompt, limit, what) -> None:
    with pytest.raises(ValueError, match=what):
        next(generate(tiny, prompt, limit))


def test_the_context_can_be_filled_to_the_last_token(tiny) -> None:
    assert len(list(generate(tiny, PROMPT, 36))) == 36


def test_cancel_ends_it_between_two_tokens(tiny) -> None:
    control, row = Control(), []
    with controlled(control), pytest.raises(Cancelled):
        for token in generate(tiny, PROMPT, 30):
            row.append(token)
            if len(row) == 3:
                control.cancel()
    assert len(row) == 3


def test_nothing_asks_for_gradients(tiny) -> None:
    tiny.requires_grad_(True)
    list(generate(tiny, PROMPT, 3))
    assert all(parameter.grad is None for parameter in tiny.parameters())
    assert torch.is_grad_enabled()


def test_a_real_answer_in_pieces() -> None:
    model, vocabulary = weights.smollm2(), tokens.smollm2()
    question = "What is the capital of France?"
    pieces = list(stream(model, vocabulary, question, 16))
    row = list(generate(model, vocabulary.chat(question), 16, stop=vocabulary.end))
    assert row[-1] == vocabulary.end
    assert "".join(pieces) == vocabulary.decode(row[:-1]) == "The capital of France is Paris."
