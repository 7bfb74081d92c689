import pytest
import torch
from torch import nn
from torch.nn.utils import prune as library

from utils.deep_learning import digits, models, recipe
from utils.deep_learning.acceleration import measure, prune, structured


def images(dtype=torch.float64):
    return digits.load()[1].images[:40].to(dtype)


def weights(model):
    return [layer.weight for layer in prune.weighted(model).values()]


@pytest.mark.parametrize("share", [0, 0.1, 0.33, 0.5, 0.9, 1])
@pytest.mark.parametrize("name", ["small", "deep", "tower"])
def test_the_small_network_says_what_the_large_one_says_with_zeros(name, share) -> None:
    model = models.make(name, dtype=torch.float64)
    small, large = structured.shrink(model, share), structured.zeroed(model, share)
    assert (small(images()) - large(images())).abs().max() <= 1e-12
    assert [w.shape for w in weights(large)] == [w.shape for w in weights(model)]


def test_also_in_float32() -> None:
    model, pixels = models.make("small"), images(torch.float32)
    small, large = structured.shrink(model, 0.5), structured.zeroed(model, 0.5)
    torch.testing.assert_close(small(pixels), large(pixels), rtol=1e-5, atol=1e-6)


def test_all_tensors_are_smaller_and_layers_know_it() -> None:
    small = structured.shrink(models.make("small"), 0.3)
    assert [tuple(w.shape) for w in weights(small)] == [
        (3, 1, 5, 5), (6, 3, 5, 5), (15, 96), (10, 15)]  # fmt: skip
    assert [len(layer.bias) for layer in prune.weighted(small).values()] == [3, 6, 15, 10]
    assert (small.conv2.in_channels, small.conv2.out_channels) == (3, 6)
    assert (small.fc1.in_features, small.fc1.out_features) == (96, 15)
    assert measure.stored_bytes(small) == 4 * (75 + 3 + 450 + 6 + 1440 + 15 + 150 + 10)


def test_those_with_the_largest_norms_stay_in_their_order() -> None:
    layer = nn.Linear(2, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 4], [0, 1], [-6, 0], [2, 2]]))
    assert structured.strongest(layer, 0.5).tolist() == [0, 2]
    assert structured.strongest(layer, 0).tolist() == [2]  # one always stays
    assert structured.strongest(layer, 1).tolist() == [0, 1, 2, 3]


def test_a_bias_must_go_with_its_channel() -> None:
    """The library's masks leave the bias, so its network is not the small one, nor smaller."""
    model = models.make("small", dtype=torch.float64)
    masked = models.make("small", dtype=torch.float64)
    for layer in list(prune.weighted(masked).values())[:-1]:
        nn.init.ones_(layer.bias)
        library.ln_structured(layer, "weight", 0.5, n=2, dim=0)
    for layer in list(prune.weighted(model).values())[:-1]:
        nn.init.ones_(layer.bias)
    small = structured.shrink(model, 0.5)
    for layer, theirs in zip(weights(structured.zeroed(model, 0.5))[:-1],
                             weights(masked)[:-1], strict=True):  # fmt: skip
        assert layer.equal(theirs)  # the same channels
    assert (small(images()) - masked(images())).abs().max() > 0.1
    assert measure.stored_bytes(masked) > measure.stored_bytes(model) > measure.stored_bytes(small)


def test_layers_without_bias_work() -> None:
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3)).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    difference = structured.shrink(model, 0.5)(x) - structured.zeroed(model, 0.5)(x)
    assert difference.abs().max() <= 1e-12


def test_the_model_itself_stays_and_the_small_one_can_learn() -> None:
    model = models.make("small")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small = structured.shrink(model, 0.5)
    recipe.loss_of(small, digits.load()[0][:20]).backward()
    for parameter in small.parameters():
        assert parameter.grad is not None and parameter.grad.shape == parameter.shape
        parameter.data.zero_()
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_layers_that_do_not_follow_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="does not follow"):
        structured.shrink(nn.ModuleList([nn.Linear(4, 6), nn.Linear(8, 2)]), 0.5)
    with pytest.raises(ValueError, match=r"share=1.5 is not allowed: give 0 to 1"):
        structured.shrink(models.make("small"), 1.5)


@pytest.mark.parametrize("kept", [5, 100])
def test_the_experiment_is_drawn_at_both_ends(monkeypatch, kept) -> None:
    monkeypatch.setattr(recipe, "trained", lambda: models.make("small").requires_grad_(False))
    result = structured.run(kept=kept, epochs=0, batch=10)
    costs = [(each.macs, each.megabytes) for each in result.cut.values()]
    assert costs == sorted(costs, reverse=True) and kept in result.cut
    assert result.cut[100].agreement == 1
    assert structured.plot(result)._repr_png_()
