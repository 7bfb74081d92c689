"""The decoder computes what transformers computes, in one piece or in several."""

from collections.abc import Iterator

import pytest
import torch
from transformers import AutoModelForCausalLM

from utils.core import assets
from utils.core.workers import intra_op
from utils.llm import tokens, weights
from utils.llm.decoder import Cache, Config, Decoder, rotate, rotation

TINY = Config(
    layers=2, hidden=32, heads=4, kv_heads=2, head_dim=8, intermediate=64, vocabulary=97, context=64
)
PROMPTS = (
    "a", "The capital of France is", "def fib(n):\n    if n < 2:\n        return n\n", "1 + 1 =",
    "你好，世界", "Привет", "🙂🙃🙂", "   ", "\n\n\n\n", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "SELECT * FROM t WHERE x = 'y';",
    "the the the the the the the the the the", "https://example.org/a?b=c&d=%20", "Σ αᵢ² ≤ ∞",
    "Once upon a time, in a small village by the sea, there lived an old man and his dog.",
    "{\"a\": [1, 2, {\"b\": null}]}", "Es war einmal", "xqzjv kwpfm", "2, 3, 5, 7, 11, 13, 17, 19,",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with intra_op(1):
        yield


@pytest.fixture
def tiny() -> Decoder:
    """In float64, where two ways to compute the same thing leave no doubt."""
    torch.manual_seed(0)
    return Decoder(TINY).double().requires_grad_(False)


def rows(batch: int, length: int) -> torch.Tensor:
    return torch.randint(97, (batch, length), generator=torch.Generator().manual_seed(1))


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, as a part of the largest score."""
    return float((found - expected).abs().max() / expected.abs().max())


# ---------------------------------------------------------------- the real model


@pytest.fixture(scope="module")
def reference() -> Iterator:
    model = AutoModelForCausalLM.from_pretrained(assets.path("smollm2"), dtype=torch.float32)
    yield model.eval()


@pytest.mark.parametrize("number", range(len(PROMPTS)))
@torch.inference_mode()
def test_logits_are_the_library_s(reference, number) -> None:
    row = torch.tensor([tokens.smollm2().encode(PROMPTS[number])])
    assert off(weights.smollm2()(row), reference(row).logits) <= 1e-4


@torch.inference_mode()
def test_logits_of_a_padded_batch_are_the_library_s_and_those_of_each_row_alone(reference) -> None:
    model, rows = weights.smollm2(), [tokens.smollm2().encode(prompt) for prompt in PROMPTS[1:6]]
    longest = max(map(len, rows))
    padded = torch.tensor([[2] * (longest - len(row)) + row for row in rows])
    real = torch.tensor([[False] * (longest - len(row)) + [True] * len(row) for row in rows])
    mine = model(padded, real=real)
    positions = (real.long().cumsum(-1) - 1).clamp(min=0)
    theirs = reference(padded, attention_mask=real.long(), position_ids=positions).logits
    assert off(mine[real], theirs[real]) <= 1e-4
    for scores, row in zip(mine, rows, strict=True):
        assert off(scores[-len(row) :], model(torch.tensor([row]))[0]) <= 1e-4


def test_every_parameter_of_the_real_model_is_there_once() -> None:
    assert sum(parameter.numel() for parameter in weights.smollm2().parameters()) == 134_515_008


# ---------------------------------------------------------------- small ones


@pytest.mark.parametrize("chunk", [1, 7, 20])
def test_chunks_through_a_cache_are_the_whole(tiny, chunk) -> None:
    row = rows(2, 20)
    cache = Cache(TINY, 2, 20, torch.float64)
    pieces = [tiny(part, cache) for part in row.split(chunk, dim=1)]
    assert cache.length == 20
    assert off(torch.cat(pieces, 1), tiny(row)) <= 1e-12


@pytest.mark.parametrize("chunk", [1, 7])
def test_chunks_of_a_padded_batch_are_the_whole(tiny, chunk) -> None:
    row, padding = rows(3, 20), torch.tensor([0, 5, 19])
    real = torch.arange(20) >= padding[:, None]
    cache, pieces, end = Cache(TINY, 3, 20, torch.float64), [], 0
    for part in row.split(chunk, dim=1):
        end += part.shape[1]
        pieces.append(tiny(part, cache, real[:, :end]))
    found = torch.cat(pieces, 1)
    assert found.isfinite().all()
    for scores, ids, skip in zip(found, row, padding.tolist(), strict=True):
        assert off(scores[skip:], tiny(ids[None, skip:])[0]) <= 1e-12


@pytest.mark.parametrize("at", [0, 4, 9])
def test_a_token_changes_nothing_before_it(tiny, at) -> None:
    row = rows(1, 10)
    other = row.clone()
    other[0, at] = (other[0, at] + 1) % 97
    same, changed = tiny(row)[0], tiny(other)[0]
    assert torch.equal(same[:at], changed[:at])
    assert (same[at:] != changed[at:]).any(-1).all()


def test_a_cache_that_is_full_says_so(tiny) -> None:
    cache = Cache(TINY, 1, 4, torch.float64)
    tiny(rows(1, 3), cache)
    with pytest.raises(ValueError, match="5 tokens do not fit into a cache of 4"):
        tiny(rows(1, 2), cache)
    assert cache.length == 3


def test_rotation_keeps_lengths_and_knows_only_distances() -> None:
    queries, keys = torch.randn(2, 1, 8, dtype=torch.float64)
    products = []
    for position in (0, 5, 40):
        turn = rotation(torch.tensor([position, position + 3]), TINY, torch.float64)
        turned = rotate(torch.cat([keys, queries]), *turn)
        torch.testing.assert_close(turned.norm(dim=-1), torch.cat([keys, queries]).norm(dim=-1))
        products.append(turned[0] @ turned[1])
    torch.testing.assert_close(products[1:], products[:1] * 2, rtol=1e-5, atol=1e-5)


def test_heads_must_share_keys_evenly() -> None:
    with pytest.raises(ValueError, match="heads=9 must be a multiple of kv_heads=2"):
        Config(kv_heads=2)
