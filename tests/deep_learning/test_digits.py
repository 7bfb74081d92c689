import torch

from utils.deep_learning import digits


def test_the_split_is_even_and_without_overlap():
    train, held_out = digits.load()
    assert (len(train), len(held_out)) == (4000, 1000)
    assert train.images.shape == (4000, 1, 28, 28) and train.images.dtype == torch.float32
    assert torch.bincount(train.labels).tolist() == [400] * 10
    assert torch.bincount(held_out.labels).tolist() == [100] * 10
    assert digits.load()[0] is train
    everything = {image.numpy().tobytes() for image in train.images}
    assert not any(image.numpy().tobytes() in everything for image in held_out.images)


def test_pixels_are_normalised():
    train, _ = digits.load()
    assert abs(train.images.mean().item()) < 0.05 and abs(train.images.std().item() - 1) < 0.05


def test_a_slice_is_a_view_and_a_choice_a_copy():
    train, _ = digits.load()
    assert train[:3].images.data_ptr() == train.images.data_ptr()
    chosen = train[torch.tensor([5, 2])]
    assert torch.equal(chosen.images[1], train.images[2]) and len(chosen) == 2
    assert chosen.to(torch.float64).images.dtype == torch.float64
