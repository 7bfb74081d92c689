"""Masks, cross-attention and the recurrent chain: what each network may see, against references."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from utils.llm.architectures import inside
from utils.llm.architectures.networks import (
    CrossAttention,
    Encoder,
    EncoderDecoder,
    Recurrent,
    make,
)
from utils.llm.decoder import Cache, Config, Decoder

SMALL = Config(97, layers=2, hidden=32, heads=4, kv_heads=2, head_dim=8, intermediate=64)


def network(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    return make(kind, SMALL, seed).double().eval().requires_grad_(False)


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, 97, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("place", [0, 4, 8])
@pytest.mark.parametrize("kind", [Decoder, Recurrent])
def test_a_changed_token_changes_nothing_before_it(kind, place):
    model, text = network(kind), tokens(2, 9)
    other = text.clone()
    other[:, place] = 1
    before, after = model(text), model(other)
    torch.testing.assert_close(before[:, :place], after[:, :place], atol=1e-12, rtol=0)
    assert (before[:, place:] != after[:, place:]).any(-1).all()


def test_in_an_encoder_a_changed_token_changes_all():
    model, text = network(Encoder), tokens(2, 9)
    other = text.clone()
    other[:, -1] = 1
    assert (model.hidden(text) - model.hidden(other)).norm(dim=-1).min() > 1e-6


def test_an_encoder_is_the_decoder_without_its_mask():
    decoder, encoder, text = network(Decoder), network(Encoder), tokens(1, 9)
    free = inside.walk(decoder, text[0].tolist(), causal=False)[-1]
    torch.testing.assert_close(decoder.norm(free), encoder.hidden(text)[0])


def test_an_encoder_ignores_padding_and_refuses_a_cache():
    model, text = network(Encoder), tokens(1, 6)
    padded = torch.cat([text, tokens(1, 3, seed=1)], 1)
    real = torch.arange(9)[None] < 6
    torch.testing.assert_close(model.hidden(padded, real=real)[:, :6], model.hidden(text))
    with pytest.raises(ValueError, match="cache"):
        model(text, Cache(SMALL, 1, 9))


def test_the_walk_ends_where_the_decoder_does():
    model, text = network(Decoder), tokens(1, 9)
    stream = inside.walk(model, text[0].tolist())
    assert stream.shape == (3, 9, 32)
    torch.testing.assert_close(model.norm(stream[-1]), model.hidden(text)[0])


def test_attention_weights_are_what_the_kernel_used():
    model, text = network(Decoder), tokens(1, 9)
    x = inside.walk(model, text[0].tolist())[1]
    block = model.layers[1]
    weights = inside.attention_weights(model, x, 1)
    assert weights.triu(1).eq(0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(4, 9, dtype=torch.float64))
    inner = block.input_layernorm(x)
    values = block.self_attn.v_proj(inner).unflatten(-1, (2, 8)).transpose(0, 1)
    mixed = block.self_attn.o_proj((weights @ values.repeat_interleave(2, 0)).mT.flatten(0, 1).mT)
    after = x + mixed
    after = after + block.mlp(block.post_attention_layernorm(after))
    torch.testing.assert_close(after, inside.walk(model, text[0].tolist())[2])


def test_without_mask_and_rotation_there_is_no_order():
    model, text = network(Decoder), tokens(9).tolist()
    shuffled = [*reversed(text[:-1]), text[-1]]

    def last(layer: int, **known: bool) -> torch.Tensor:
        one, other = (inside.walk(model, t, **known)[layer, -1] for t in (text, shuffled))
        return (one - other).norm()

    assert last(2, causal=False, rotated=False) < 1e-12
    assert last(1, causal=True, rotated=False) < 1e-12  # the first block is not enough …
    assert last(2, causal=True, rotated=False) > 1e-6  # … to learn order from the mask
    assert last(1, causal=False, rotated=True) > 1e-6


def test_cross_attention_is_dense_attention_over_what_is_real():
    layer = CrossAttention(SMALL).double()
    x, source = torch.randn(2, 5, 32).double(), torch.randn(2, 7, 32).double()
    real = torch.arange(7) < torch.tensor([[7], [4]])
    found, weights = layer(x, source, real)
    q, k, v = (
        project(y).unflatten(-1, (4, 8)).transpose(1, 2)
        for project, y in ((layer.q_proj, x), (layer.k_proj, source), (layer.v_proj, source))
    )
    dense = functional.scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, None, :])
    torch.testing.assert_close(found, layer.o_proj(dense.transpose(1, 2).flatten(2)))
    assert weights.shape == (2, 4, 5, 7)
    assert weights[1, :, :, 4:].eq(0).all()


def test_encoder_decoder_sees_all_of_the_source_and_nothing_it_has_not_written():
    model, source, written = network(EncoderDecoder), tokens(1, 7), tokens(1, 5, seed=1)
    real = torch.ones(1, 7, dtype=torch.bool)
    scores, _ = model(source, real, written)
    later, changed = written.clone(), source.clone()
    later[0, 3], changed[0, -1] = 1, 1
    torch.testing.assert_close(model(source, real, later)[0][:, :3], scores[:, :3])
    assert (model(changed, real, written)[0] - scores).norm(dim=-1).min() > 1e-6
    hidden = real.clone()
    hidden[0, -1] = False  # padding: whatever stands there is not read
    torch.testing.assert_close(
        model(changed, hidden, written)[0], model(source, hidden, written)[0]
    )


def test_what_was_written_is_what_teacher_forcing_would_say():
    model, source = network(EncoderDecoder), tokens(3, 7)
    real = torch.ones(3, 7, dtype=torch.bool)
    written, _ = model.write(source, real, 1, 5)
    start = torch.ones(3, 1, dtype=torch.long)
    scores, _ = model(source, real, torch.cat([start, written[:, :-1]], 1))
    assert scores.argmax(-1).equal(written)


def test_a_recurrent_network_reads_step_by_step_what_it_reads_at_once():
    model, text = network(Recurrent), tokens(2, 9)
    whole, end = model.read(text)
    state, steps = None, []
    for place in range(9):
        scores, state = model.read(text[:, place : place + 1], state)
        steps.append(scores)
    torch.testing.assert_close(torch.cat(steps, 1), whole)
    torch.testing.assert_close(state, end)


def test_the_same_seed_makes_the_same_network_and_leaves_the_callers_dice_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, other, third = make(Decoder, SMALL, 3), make(Decoder, SMALL, 3), make(Decoder, SMALL, 4)
    assert torch.rand(1) == expected
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert a.equal(b)
    assert not one.embed_tokens.weight.equal(third.embed_tokens.weight)
    assert one.lm_head.weight is one.embed_tokens.weight
