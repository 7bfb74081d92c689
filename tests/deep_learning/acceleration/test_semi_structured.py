import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.deep_learning.acceleration.semi_structured import pack, two_of_four

shapes = st.tuples(st.integers(1, 9), st.integers(1, 9).map(lambda n: 8 * n))


@settings(max_examples=60, deadline=None)
@given(shape=shapes, seed=st.integers(0, 2**16), dtype=st.sampled_from([torch.float32, torch.half]))
def test_two_of_each_four_stay_and_come_back_from_the_packed_form(shape, seed, dtype) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    mask = two_of_four(weight)
    groups, sizes = mask.view(-1, 4), weight.abs().view(-1, 4)
    assert (groups.sum(1) == 2).all()
    smallest_kept = sizes.masked_fill(~groups, torch.inf).amin(1)
    assert (sizes.masked_fill(groups, 0).amax(1) <= smallest_kept).all()
    packed = pack(weight * mask)
    assert packed.dense().equal(weight * mask) and packed.dense().dtype == dtype
    bits = 8 * weight.element_size()
    assert 8 * packed.nbytes == weight.numel() // 4 * (2 * bits + 2 * 2)


def test_by_hand() -> None:
    weight = torch.tensor([[1.0, -4, 0, 3, 5, 5, 5, 5]])
    assert two_of_four(weight).int().tolist() == [[0, 1, 0, 1, 1, 1, 0, 0]]
    packed = pack(weight * two_of_four(weight))
    assert packed.values.tolist() == [[-4, 3, 5, 5]]
    assert packed.places.tolist() == [[0b01_00_11_01]]


@pytest.mark.parametrize("place", range(4))
def test_fewer_than_two_non_zeros_come_back_too(place) -> None:
    weight = torch.zeros(2, 8)
    weight[1, 4 + place] = 7
    assert pack(weight).dense().equal(weight)


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(ValueError, match="1 groups of four with over two non-zeros"):
        pack(torch.tensor([[1.0, 2, 3, 0, 0, 0, 0, 0]]))
    for shape in ((4, 12), (8,), (2, 8, 8)):
        with pytest.raises(ValueError, match="multiple of 8 columns"):
            two_of_four(torch.ones(shape))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="platform: 2:4 kernels need CUDA")
def test_pytorch_keeps_the_same_weights() -> None:
    weight = torch.randn(128, 128)
    half = (weight * two_of_four(weight)).half().cuda()
    theirs = torch.sparse.to_sparse_semi_structured(half)
    assert theirs.to_dense().equal(half)
