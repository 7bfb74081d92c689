"""PyTorch's own tensor and pipeline parallelism, and ours, in two processes."""

from utils.deep_learning.model_parallel import library


def test_pytorchs_own_and_ours_give_the_gradients_of_one_process() -> None:
    errors = library.compare(batch=16)
    assert len(errors) == 8
    assert max(errors.values()) <= 1e-10
