import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from utils.core.workers import crew, intra_op
from utils.llm import tokens, weights
from utils.llm_concurrency.hardware import linears
from utils.llm_concurrency.hardware.linears import Int8Linear, encode_rows, encode_weight, with_int8

SHAPES = [(960, 576), (576, 576), (3072, 576), (576, 1536), (49152, 576), (5, 7), (1, 1)]
TEXT = (
    "The Industrial Revolution began in Britain in the eighteenth century. Machines driven by "
    "water and later by steam took over the work of hands, first in spinning and weaving, then in "
    "mining, in iron and on the railways. Towns grew around the factories faster than houses, "
    "drains and schools could be built. Wages rose slowly, and for many years the working day was "
    "longer than it had been on the farm. In 1833 Parliament limited the hours of children, and "
    "sent inspectors to see that the law was kept."
)


def exact(layer: Int8Linear, x: torch.Tensor) -> torch.Tensor:
    """The same in integers: nothing is rounded but x."""
    q, scale, zero = encode_rows(x)
    sums = (q.double() - zero) @ layer.codes.double().T  # below 2^53: every sum is exact
    return (sums * scale * layer.scale).float()


@pytest.fixture(params=["kernel", "plain"])
def way(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(linears, "kernel_is_right", lambda: False)
    elif not linears.kernel_is_right():
        pytest.skip("platform: no kernel here")
    return request.param


@pytest.mark.parametrize("shape", SHAPES)
def test_is_the_integer_arithmetic(way, shape):
    torch.manual_seed(0)
    weight = 0.05 * torch.randn(shape) * torch.rand(shape[0], 1)
    layer = Int8Linear.of(weight)
    large = shape[0] > 10_000
    for batch in (1, 8) if large else (1, 8, 32, 64):
        x = torch.randn(batch, shape[1])
        x[0, 0] = 40  # an outlier takes nobody else's precision
        for threads in (1,) if large else (1, 2):
            with intra_op(threads):
                found = layer(x)
        reference = exact(layer, x)
        size = reference.abs().amax(1, keepdim=True)
        # one row: the kernel's own rounding may differ where x lies between two codes
        bound = (
            1e-5 * size if batch > 1 else 1e-5 * size + 2 * x.abs().max() / 255 * weight.abs().max()
        )
        assert ((found - reference).abs() <= bound + 1e-12).all()


def test_is_close_to_the_float_layer(way):
    torch.manual_seed(0)
    weight, x = torch.randn(96, 64), torch.randn(9, 64)
    x[3] *= 1000
    error = (Int8Linear.of(weight)(x) - x @ weight.T).norm(dim=1) / (x @ weight.T).norm(dim=1)
    assert error.max() < 0.03  # of every row


def test_no_two_products_overflow_16_bits():
    torch.manual_seed(0)
    for weight in (torch.randn(64, 33), torch.ones(4, 8), -torch.ones(4, 8), torch.zeros(3, 4)):
        codes, scale = encode_weight(weight)
        even = nn.functional.pad(codes, (0, codes.shape[1] % 2)).int().unflatten(1, (-1, 2))
        assert even.clamp(min=0).sum(-1).max() <= 128 and even.clamp(max=0).sum(-1).min() >= -128
        assert ((codes * scale[:, None] - weight).abs() <= scale[:, None] / 2 * (1 + 1e-5)).all()


def test_every_row_of_codes_ends_at_255():
    torch.manual_seed(0)
    x = torch.cat([torch.randn(200, 9), torch.tensor([[-0.5, 0, 0, 0, 0, 0, 0, 0, 254.5]])])
    q, scale, zero = encode_rows(x)
    assert torch.equal(q, q.round()) and (q.amin(1) >= 0).all() and (q.amax(1) == 255).all()
    assert (((q - zero) * scale - x).abs() <= scale / 2 * (1 + 1e-4)).all()


def test_the_fullest_sums_are_right(way):
    layer = Int8Linear.of(torch.ones(8, 576))
    x = torch.ones(3, 576)  # every code 255
    assert torch.allclose(layer(x), exact(layer, x), rtol=1e-5)
    assert torch.allclose(layer(x[0]), exact(layer, x)[0], rtol=1e-5)


@pytest.mark.skipif(not linears.kernel_is_right(), reason="no kernel: floats are added")
def test_a_row_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    layer, x = Int8Linear.of(torch.randn(48, 64)), torch.randn(6, 64)
    x[2] *= 100
    alone = [layer(x[pair]) for pair in ([0, 1], [2, 3], [4, 5])]
    assert torch.equal(layer(x), torch.cat(alone))


def test_rows_of_every_kind(way):
    torch.manual_seed(0)
    weight = torch.randn(5, 8)
    layer = Int8Linear.of(weight)
    x = torch.stack([torch.zeros(8), torch.ones(8), -torch.ones(8), torch.arange(8.0)])
    error = (layer(x) - x @ weight.T).abs().max()
    assert error < 0.2 and layer(x)[0].abs().max() < 1e-30
    assert layer(x.view(2, 2, 8)).shape == (2, 2, 5)
    assert torch.equal(layer(x.view(2, 2, 8)).view(4, 5), layer(x))
    assert layer(torch.zeros(0, 8)).shape == (0, 5)
    before = x.clone()
    layer(x)
    assert torch.equal(x, before)


def test_copies_and_pickles_compute_the_same(way):
    torch.manual_seed(0)
    layer, x = Int8Linear.of(torch.randn(5, 8)), torch.randn(3, 8)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))


def test_no_warning_reaches_the_learner():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Int8Linear.of(torch.randn(5, 8))(torch.randn(3, 8))


def test_threads_may_share_it(way):
    torch.manual_seed(0)
    layer, xs = Int8Linear.of(torch.randn(64, 64)), torch.randn(40, 6, 64)
    with intra_op(1):
        expected = [layer(x) for x in xs]
        with crew(4) as pool:
            found = list(pool.map(layer, xs, timeout=30))
    # To the bit by the kernel; in float32 another number of threads sums in another order.
    error = 0 if way == "kernel" else 1e-5
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=error, atol=error)


@pytest.mark.parametrize("weight", [torch.zeros(3), torch.tensor([[1.0, float("nan")]])])
def test_refuses_what_it_cannot_hold(weight):
    with pytest.raises(ValueError, match="weight"):
        Int8Linear.of(weight)


def test_a_wrong_kernel_is_not_used(monkeypatch):
    monkeypatch.setattr(linears, "_pack", lambda codes, scale: None)  # no such operation
    assert linears.kernel_is_right.__wrapped__() is False


@torch.inference_mode()
def perplexity(model, row) -> float:
    return nn.functional.cross_entropy(model(row)[0, :-1], row[0, 1:]).exp().item()


def test_perplexity_of_the_real_model_stays():
    row = torch.tensor([tokens.smollm2().encode(TEXT)])
    plain = perplexity(weights.smollm2(), row)
    small = perplexity(with_int8(copy.deepcopy(weights.smollm2())), row)
    assert abs(small / plain - 1) < 0.03
