"""However an engine serves a request, the tokens are those of a plain loop without any cache."""

import itertools
import random
from functools import partial

import pytest
import torch

from utils.core import assets
from utils.llm import tokens, weights
from utils.llm.generate import generate
from utils.llm.sampling import Sampling
from utils.llm_concurrency.engine.blocks import BlockPool
from utils.llm_concurrency.engine.core import Core, ModelRunner
from utils.llm_concurrency.engine.model import PagedModel
from utils.llm_concurrency.engine.policies import FairShare, Priority, Shortest, Static
from utils.llm_concurrency.engine.request import Request
from utils.llm_concurrency.engine.scheduler import Scheduler
from utils.llm_concurrency.engine.sequence import Sequence
from utils.llm_concurrency.engine.speculate import PromptLookup

BOLD = Sampling(temperature=1.0, top_p=0.95)


def requests(*lengths: int, limit: int = 12, **how) -> list[Request]:
    rng = random.Random(5)
    shared = [rng.randrange(97) for _ in range(40)]  # half of the prompts begin alike
    return [
        Request(
            [*shared[: length // 2 * (n % 2)], *(rng.randrange(97) for _ in range(length))][
                :length
            ],
            limit + n % 3,
            seed=n,
            user="ab"[n % 2],
            priority=-n,
            **how,
        )
        for n, length in enumerate(lengths)
    ]


EVERYONE = requests(3, 21, 8, 40, 1, 16, 13)
MODES = {
    "all at once": {},
    "blocks of one token": {"size": 1, "blocks": 300},
    "one block each": {"size": 64, "blocks": 8},
    "no prefix cache": {"share": False},
    "chunks of 1": {"chunk": 1},
    "chunks of 7": {"chunk": 7},
    "small budget": {"budget": 9, "slots": 8},
    "one after another": {"slots": 1},
    "static": {"policy": Static(3)},
    "shortest": {"policy": Shortest()},
    "priority": {"policy": Priority(), "chunk": 5},
    "fair share": {"policy": FairShare()},
    "little memory": {"blocks": 16},
    "little memory, chunks": {"blocks": 15, "chunk": 7},
    "guesses": {"proposer": PromptLookup()},
    "guesses and chunks of 1": {"proposer": PromptLookup(longest=1), "chunk": 1},
    "guesses, little memory": {"proposer": PromptLookup(longest=1), "blocks": 16, "budget": 20},
}


@pytest.mark.parametrize("how", [Sampling(), BOLD], ids=["greedy", "sampled"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_the_plain_loop_s_tokens(serve, alone, mode, how) -> None:
    asked = [Request(one.prompt, one.limit, how, one.seed, user=one.user, priority=one.priority)
             for one in EVERYONE]  # fmt: skip
    served = serve(asked, **{"slots": 8, **MODES[mode]})
    assert served.tokens == [alone(one) for one in asked]
    if "little memory" in mode:
        assert served.preemptions > 0


@pytest.mark.parametrize("seed", range(6))
def test_any_order_of_arrival(serve, alone, seed) -> None:
    rng = random.Random(seed)
    arrive = {n: rng.randrange(25) for n in range(len(EVERYONE))}
    shuffled = rng.sample(EVERYONE, len(EVERYONE))
    chunk, blocks = rng.choice([1, 3, 7, 40]), rng.choice([14, 20, 60])
    served = serve(shuffled, arrive=arrive, chunk=chunk, blocks=blocks, slots=rng.choice([2, 5]))
    assert served.tokens == [alone(one) for one in shuffled]


@pytest.mark.parametrize("blocks", [14, 60])
@pytest.mark.parametrize("size", [2, 4])
def test_lengths_around_a_block_s_end_and_a_fully_cached_prompt(serve, alone, size, blocks) -> None:
    around = [k * size + more for k in (1, 2, 3) for more in (-1, 0, 1)]
    asked = [Request(range(length), 5) for length in around]  # each the beginning of the next
    first = serve(asked, size=size, blocks=blocks)
    again = serve(asked, before=first)
    assert first.tokens == again.tokens == [alone(one) for one in asked]
    if blocks == 60:  # all but the last token, as far as whole blocks go
        cached = [one.cached for one in again.sequences.values()]
        assert cached == [(length - 1) // size * size for length in around]


def test_a_seed_gives_the_same_tokens_with_and_without_company(serve) -> None:
    one = Request(range(9), 20, BOLD, seed=7)
    others = requests(5, 30, 11, 2, sampling=BOLD)
    alone_ = serve([one]).tokens[0]
    for place, chunk in itertools.product(range(3), (1, 40)):
        crowd = [*others[:place], one, *others[place:]]
        served = serve(crowd, chunk=chunk, blocks=20, proposer=PromptLookup(longest=1))
        assert served.tokens[place] == alone_
    assert serve([Request(range(9), 20, BOLD, seed=8)]).tokens[0] != alone_


# ── The real model ────────────────────────────────────────────────────────────────────────────

QUESTIONS = (
    "What is a thread?",
    "Say: tick tock tick tock tick tock.",
    "Write a haiku about locks.",
)
LIMIT = 10


def answer(model, prompts, arrive=(), proposer=None, again=False, blocks=40, policy=None, **how):
    """Through a core of its own; with `again`, what the second time brings."""
    pool = BlockPool(blocks, 16, share=again)
    scheduler = Scheduler(pool, policy, slots=8, **how)
    core = Core(ModelRunner(model), scheduler, end=tokens.smollm2().end, proposer=proposer)
    for turn in range(1 + again):
        there = [Sequence(100 * turn + n, Request(p, LIMIT)) for n, p in enumerate(prompts)]
        to_come = dict(enumerate(there))
        step = 0
        while to_come or not scheduler.idle:
            for n in [n for n in to_come if dict(arrive).get(n, 0) <= step]:
                core.add(to_come.pop(n))
            if not scheduler.idle:
                core.step()
            step += 1
    assert pool.used == 0
    if again:
        assert all(one.cached >= len(one.request.prompt) - 16 for one in there)
    if blocks < 40:
        assert any(one.preempted for one in there)
    return [one.generated for one in there]


def test_the_real_model_says_the_same_in_every_mode() -> None:
    from transformers import AutoModelForCausalLM

    end, model = tokens.smollm2().end, weights.smollm2()
    real_prompts = [tokens.smollm2().chat(question) for question in QUESTIONS]
    reference = [list(generate(model, p, LIMIT, stop=end)) for p in real_prompts]
    library = AutoModelForCausalLM.from_pretrained(assets.path("smollm2"), dtype=torch.float32)
    theirs = [
        library.generate(
            torch.tensor([p]), max_new_tokens=LIMIT, do_sample=False, eos_token_id=end,
            pad_token_id=end, attention_mask=torch.ones(1, len(p), dtype=torch.long),
        )[0, len(p) :].tolist()
        for p in real_prompts
    ]  # fmt: skip
    del library
    ask = partial(answer, PagedModel(model, 40, 16))
    found = {
        "transformers": theirs,
        "no cache": [
            list(generate(model, p, LIMIT, stop=end, cached=False)) for p in real_prompts[:1]
        ],
        "continuous": ask(real_prompts),
        "arriving one by one, backwards": ask(real_prompts, [(n, 6 - 2 * n) for n in range(3)]),
        "static": ask(real_prompts, policy=Static(2)),
        "cached prefixes": ask(real_prompts, again=True),
        "chunks of 1": ask(real_prompts[:1], chunk=1),
        "chunks of 7": ask(real_prompts, chunk=7),
        "preempted": ask(real_prompts, blocks=sum(len(p) // 16 + 1 for p in real_prompts)),
        "guesses": ask(real_prompts, proposer=PromptLookup()),
    }
    for mode, answers in found.items():
        for prompt, right, said in zip(real_prompts, reference, answers, strict=False):
            if said != right:  # allowed only where rounding may decide
                pairs = enumerate(itertools.zip_longest(right, said))
                place = next(n for n, (a, b) in pairs if a != b)
                with torch.inference_mode():
                    scores = model(torch.tensor([prompt + right[:place]]))[0, -1]
                best, second = scores.topk(2).values.tolist()
                assert best - second < 1e-3, f"{mode}: {said} instead of {right}"
