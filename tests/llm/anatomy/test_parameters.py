"""Every parameter is counted once, in its part and layer."""

from dataclasses import replace

import pytest

from utils.core import plots
from utils.llm import weights
from utils.llm.anatomy import parameters
from utils.llm.decoder import Config, Decoder
from utils.llm.scale import costs

TINY = Config(layers=2, hidden=32, heads=4, kv_heads=2, head_dim=8, intermediate=64, vocabulary=97)


@pytest.mark.parametrize("tied", [True, False])
def test_counts_agree_with_the_calculator_part_by_part(tied):
    config = replace(TINY, tied=tied)
    counted = parameters.total(parameters.by_layer(Decoder(config)))
    calculated = costs.parameters(costs.Shape.of(config))
    assert dict(counted) == {part: count for part, count in calculated.items() if count}


def test_every_layer_of_the_real_model_has_parameters_and_equally_many():
    model = weights.smollm2()
    counts = parameters.by_layer(model)
    layers = [sum(counts[str(layer)].values()) for layer in range(model.config.layers)]
    assert len(set(layers)) == 1 and layers[0] > 0
    total = parameters.total(counts)
    assert sum(total.values()) == sum(each.numel() for each in model.parameters())
    assert "head" not in total  # it is the embedding
    assert plots.png(parameters.plot(counts)).startswith(b"\x89PNG")
