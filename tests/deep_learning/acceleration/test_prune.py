import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import prune as library
from torch.nn.utils.parametrize import is_parametrized

from utils.core.experiment import Cancelled, Control, controlled
from utils.deep_learning import digits, models, recipe
from utils.deep_learning.acceleration import prune


def zeros(masks) -> int:
    return sum((~mask).sum().item() for mask in masks.values())


@settings(max_examples=40, deadline=None)
@given(sparsity=st.floats(0, 1), scope=st.sampled_from(["global", "layer"]))
def test_masks_have_exactly_the_zeros_asked_for(sparsity, scope) -> None:
    model = models.make("small")
    layers = prune.weighted(model)
    masks = prune.magnitude_masks(model, sparsity, scope)
    sizes = {name: layer.weight.numel() for name, layer in layers.items()}
    assert {n: m.shape for n, m in masks.items()} == {n: w.weight.shape for n, w in layers.items()}
    if scope == "global":
        assert zeros(masks) == round(sparsity * sum(sizes.values()))
    else:
        assert {n: zeros({n: m}) for n, m in masks.items()} == {
            name: round(sparsity * size) for name, size in sizes.items()
        }


def test_equal_weights_do_not_change_how_many_go() -> None:
    model = models.make("tower")
    for layer in prune.weighted(model).values():
        torch.nn.init.ones_(layer.weight)
    total = sum(layer.weight.numel() for layer in prune.weighted(model).values())
    assert zeros(prune.magnitude_masks(model, 0.3)) == round(0.3 * total)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_what_goes_is_nowhere_larger_than_what_stays(scope) -> None:
    model = models.make("small")
    masks = prune.magnitude_masks(model, 0.6, scope)
    sizes = {name: layer.weight.abs() for name, layer in prune.weighted(model).items()}
    gone = {name: size[~masks[name]].max().item() for name, size in sizes.items()}
    kept = {name: size[masks[name]].min().item() for name, size in sizes.items()}
    if scope == "global":
        assert max(gone.values()) <= min(kept.values())
    assert all(gone[name] <= kept[name] for name in gone)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_library_chooses_the_same_weights(scope) -> None:
    model, theirs = models.make("small"), models.make("small")
    ours = prune.pruned(model, 0.9, scope)
    layers = prune.weighted(theirs)
    if scope == "global":
        weights = [(layer, "weight") for layer in layers.values()]
        library.global_unstructured(weights, library.L1Unstructured, amount=0.9)
    else:
        for layer in layers.values():
            library.l1_unstructured(layer, "weight", 0.9)
    for name, layer in prune.weighted(ours).items():
        assert layer.weight.equal(layers[name].weight)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_masked_weights_stay_zero_in_training_and_after(make) -> None:
    """With momentum from before the cut and decay: what would bring a weight back."""
    torch.manual_seed(0)
    model, train = models.make("small"), digits.load()[0]
    extra = {"momentum": 0.9} if make is torch.optim.SGD else {}
    optimizer = make(model.parameters(), lr=0.01, weight_decay=0.1, **extra)
    masks = prune.magnitude_masks(model, 0.8)
    before = [layer.weight.detach().clone() for layer in prune.weighted(model).values()]
    for step in range(8):
        if step == 3:
            prune.hold(model, masks)
        optimizer.zero_grad()
        recipe.loss_of(model, train[32 * step : 32 * step + 32]).backward()
        optimizer.step()
        if step >= 3:
            for name, layer in prune.weighted(model).items():
                assert not layer.weight[~masks[name]].any()
    prune.settle(model, masks)
    for old, (name, layer) in zip(before, prune.weighted(model).items(), strict=True):
        assert not is_parametrized(layer)
        assert not layer.weight[~masks[name]].any()
        assert not layer.weight[masks[name]].equal(old[masks[name]])  # the others have learnt


def test_a_pruned_model_is_a_copy_with_zeros_and_nothing_else() -> None:
    model = models.make("small")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cut = prune.pruned(model, 0.5)
    for name, tensor in model.state_dict().items():
        assert tensor.equal(before[name])
        after = cut.state_dict()[name]
        assert after.equal(torch.where(after == 0, 0, tensor))
    assert cut.state_dict().keys() == before.keys()
    assert not any(parameter.requires_grad for parameter in cut.parameters())


def test_fine_tuning_leaves_as_many_zeros_as_before(monkeypatch) -> None:
    train, held_out = digits.load()
    monkeypatch.setattr(digits, "load", lambda: (train[:200], held_out))
    tuned = prune.pruned(models.make("small"), 0.9, epochs=1)
    weights = [layer.weight for layer in prune.weighted(tuned).values()]
    total = sum(weight.numel() for weight in weights)
    assert sum((weight == 0).sum().item() for weight in weights) == round(0.9 * total)


@pytest.mark.parametrize("sparsity", [-0.1, 1.1, float("nan")])
def test_a_sparsity_out_of_range_is_named(sparsity) -> None:
    with pytest.raises(ValueError, match=r"sparsity=.* is not allowed: give 0 to 1"):
        prune.magnitude_masks(models.make("small"), sparsity)


@pytest.mark.parametrize("sparsity, scope", [(0, "global"), (99, "layer")])
def test_the_experiment_is_drawn_at_both_ends(monkeypatch, sparsity, scope) -> None:
    monkeypatch.setattr(recipe, "trained", lambda: models.make("small"))
    result = prune.run(sparsity=sparsity, scope=scope, epochs=0)
    assert result.cut["global"][0] == result.cut["layer"][0]
    assert result.tuned == {}
    assert result.left["layer"] == pytest.approx(
        dict.fromkeys(result.left["layer"], 1 - sparsity / 100), abs=0.005
    )
    assert prune.plot(result)._repr_png_()


def test_the_experiment_can_be_cancelled(monkeypatch) -> None:
    monkeypatch.setattr(recipe, "trained", lambda: models.make("small"))
    control = Control()
    control.cancel()
    with controlled(control), pytest.raises(Cancelled):
        prune.run()
