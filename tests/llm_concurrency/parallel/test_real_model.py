"""The real model, copied and cut: the same tokens, and the bytes of the formulas."""

from utils.core import plots
from utils.deep_learning.collectives.launch import launch
from utils.llm import weights
from utils.llm_concurrency.parallel import parts, pipeline, replicas, tensor, traffic


def test_the_real_model_cut_in_four_ways_says_the_same_and_sends_what_the_table_says() -> None:
    result = traffic.run(ranks=2, tokens=19)
    assert len(set(result.answers)) == 1
    assert result.counted == [row.bytes for row in result.rows]


def test_the_experiments_show_the_real_model() -> None:
    asked = tensor.run(ranks=2, tokens=3)
    assert {said.tokens for said in asked.said} == {asked.alone}
    assert sum(said.sent[-1] for said in asked.said) == asked.formula
    plots.png(tensor.plot(asked))
    flow = pipeline.run(ranks=2, requests=2, tokens=3)
    assert flow.answers[2] == flow.alone and flow.answers[1] == flow.alone[:1]
    assert flow.sent == flow.formula
    plots.png(pipeline.plot(flow))
    served = replicas.run(replicas=2, requests=2, tokens=3)
    assert len({way.answers for way in served.ways.values()}) == 1
    assert all(way.sent == 0 for way in served.ways.values())
    plots.png(replicas.plot(served))


def test_processes_share_the_weights_that_they_map() -> None:
    size = 4 * parts.parameters(weights.smollm2())
    for mapped, copied in launch(replicas.weigh, 2, on="processes", deadline=120).results:
        assert copied - mapped > 0.9 * size  # a copy is one's own
