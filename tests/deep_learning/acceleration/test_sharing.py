import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.deep_learning import models, recipe
from utils.deep_learning.acceleration import prune, sharing


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(1, 8), data=st.data())
def test_packing_comes_back_and_leaves_no_gap(bits, data) -> None:
    numbers = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=70))
    packed = sharing.pack(torch.tensor(numbers), bits)
    assert packed.dtype == torch.uint8 and len(packed) == -(-len(numbers) * bits // 8)
    assert sharing.unpack(packed, bits, len(numbers)).tolist() == numbers


@settings(max_examples=40, deadline=None)
@given(bits=st.integers(1, 8), count=st.integers(1, 400), seed=st.integers(0, 99))
def test_each_weight_gets_the_nearest_value(bits, count, seed) -> None:
    weight = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    shared = sharing.share(weight.view(1, count), bits)
    decoded = shared.decode()
    assert decoded.shape == (1, count) and len(decoded.unique()) <= 2**bits == len(shared.codebook)
    distances = (weight[:, None] - shared.codebook).abs()
    assert distances.gather(1, shared.indices.long()[:, None])[:, 0].equal(distances.amin(1))
    assert (decoded[0] - weight).abs().equal(distances.amin(1))
    assert shared.bits == bits and shared.nbytes == 4 * 2**bits + -(-count * bits // 8)


def test_centres_are_the_means_of_their_members(monkeypatch) -> None:
    monkeypatch.setattr(sharing, "ROUNDS", 1000)
    values = torch.randn(500, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    centres, nearest = sharing.cluster(values, 8)
    assert centres.equal(centres.sort().values)
    for index, centre in enumerate(centres):
        assert values[nearest == index].mean().item() == pytest.approx(centre.item(), abs=1e-9)


def test_clear_groups_are_found_and_a_value_without_members_is_harmless() -> None:
    values = torch.tensor([30.0, 0, 5, 30.5, 5.5, 0.5])
    centres, nearest = sharing.cluster(values, 7)
    assert centres[nearest].tolist() == [30.25, 0.25, 5.25, 30.25, 5.25, 0.25]
    assert centres.isfinite().all()


def test_k_means_beats_evenly_spaced_values() -> None:
    weight = torch.randn(2000, generator=torch.Generator().manual_seed(2))
    even = torch.linspace(weight.min(), weight.max(), 16)
    error = (weight[:, None] - even).abs().amin(1).square().sum()
    assert (sharing.share(weight, 4).decode() - weight).square().sum() < error


@pytest.mark.parametrize("weight", [torch.full((3, 4), 2.5), torch.zeros(5), torch.ones(1)])
def test_equal_weights_come_back_exactly(weight) -> None:
    assert sharing.share(weight, 4).decode().equal(weight)


def test_a_model_with_shared_weights_is_a_copy_that_its_storage_decodes_to() -> None:
    model = models.make("small")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    decoded, stored = sharing.shared(model, 4)
    for name, layer in prune.weighted(decoded).items():
        assert layer.weight.equal(stored[name].decode())
        assert layer.bias.equal(before[f"{name}.bias"])
        assert len(layer.weight.unique()) <= 16
        assert stored[name].nbytes == 64 + layer.weight.numel() // 2
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("bits", [0, 9])
def test_bits_out_of_range_are_named(bits) -> None:
    with pytest.raises(ValueError, match=f"bits={bits} is not allowed: give 1 to 8"):
        sharing.share(torch.ones(3), bits)


@pytest.mark.parametrize("bits", [1, 8])
def test_the_experiment_is_drawn_at_both_ends(monkeypatch, bits) -> None:
    model = models.make("small").requires_grad_(False)
    monkeypatch.setattr(recipe, "trained", lambda: model)
    result = sharing.run(bits=bits)
    assert list(result.nbytes.values()) == sorted(result.nbytes.values())
    assert sharing.plot(result)._repr_png_()
