import pytest

from utils.deep_learning import models, recipe
from utils.deep_learning.acceleration import measure
from utils.deep_learning.acceleration.compressed import as_csr, variants
from utils.deep_learning.acceleration.prune import pruned
from utils.deep_learning.acceleration.sparse import CSR


@pytest.fixture(scope="module")
def results():
    """The trained CNN in all its variants."""
    made = variants(recipe.trained())
    return {each.name: each for each in measure.measure(made, repeats=1)}


def test_all_are_smaller_and_nearly_as_good(results) -> None:
    reference, *others = results.values()
    assert reference.agreement == 1 and reference.accuracy >= 0.9
    assert len(others) == 5
    for each in others:
        assert each.megabytes < reference.megabytes, each.name
        assert each.accuracy >= reference.accuracy - 0.04, each.name
        assert each.agreement >= 0.9, each.name


def test_only_what_has_smaller_dense_tensors_does_less_work(results) -> None:
    macs = {name: each.macs for name, each in results.items()}
    whole = macs.pop("float32")
    less = {name for name, each in macs.items() if each < whole}
    assert less == {"50% of channels", "rank 12"}
    assert max(macs.values()) == whole


def test_a_layer_is_stored_in_the_smaller_of_both_ways() -> None:
    model = models.make("small")
    for sparsity in (0, 0.9):
        sizes = as_csr(pruned(model, sparsity))
        dense = {n: getattr(model, n).weight.nbytes for n in ("conv1", "conv2", "fc1", "fc2")}
        if sparsity == 0:
            assert sizes == dense
        else:
            layer = pruned(model, sparsity).fc1
            assert sizes["fc1"] == CSR.of(layer.weight).nbytes < dense["fc1"] / 2
