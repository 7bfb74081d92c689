"""A tiny decoder in float64, and a core that is checked after every step."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import pytest
import torch

from utils.core.workers import intra_op
from utils.llm.decoder import Cache, Config, Decoder
from utils.llm.generate import generate
from utils.llm_concurrency.engine.blocks import NOTHING, BlockPool
from utils.llm_concurrency.engine.core import Core, ModelRunner
from utils.llm_concurrency.engine.model import PagedModel
from utils.llm_concurrency.engine.request import Request
from utils.llm_concurrency.engine.scheduler import Plan, Scheduler
from utils.llm_concurrency.engine.sequence import Sequence


@pytest.fixture(autouse=True)
def one_thread():
    with intra_op(1):
        yield


@pytest.fixture(scope="session")
def tiny() -> Decoder:
    torch.manual_seed(3)
    config = Config(
        layers=2, hidden=32, heads=4, kv_heads=2, head_dim=8, intermediate=64, vocabulary=97,
        context=200,
    )  # fmt: skip
    model = Decoder(config).double().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(0, 0.3)
    return model


@pytest.fixture(scope="session")
def alone(tiny) -> Callable[[Request], list[int]]:
    """The tokens of a request that has the plain loop of chapter 5 to itself, without any cache."""
    known: dict[Request, list[int]] = {}

    def tokens(request: Request) -> list[int]:
        if request not in known:
            made = generate(
                tiny, request.prompt, request.limit, request.sampling, seed=request.seed,
                cached=False,
            )  # fmt: skip
            known[request] = list(made)
        return known[request]

    return tokens


def check_memory(scheduler: Scheduler) -> None:
    """What must hold between two steps."""
    pool, running = scheduler.pool, scheduler.running
    pool.check(one.table for one in [*running, *scheduler.waiting])
    assert len(running) <= scheduler.slots
    assert not any(one.table or one.draft for one in scheduler.waiting)
    for one in running:
        assert 0 < one.computed < len(one.tokens)
        assert len(one.table) == pool.needed(one.computed)  # so the waste is below one block
        assert len(one.table) * pool.size - one.computed < pool.size


class Truth:
    """What the cache must hold for a row of tokens, by the decoder of chapter 5."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.known: dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor]] = {}

    @torch.inference_mode()
    def of(self, tokens: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values: (layers, kv_heads, tokens, head_dim); rotated pairs side by side."""
        if tokens not in self.known:
            cache = Cache(self.decoder.config, 1, len(tokens), torch.float64)
            self.decoder.hidden(torch.tensor([tokens]), cache)
            keys = cache.keys[:, 0].unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
            self.known[tokens] = keys, cache.values[:, 0]
        return self.known[tokens]

    def check(self, model: PagedModel, table: list[int], tokens: tuple[int, ...]) -> None:
        """The last of these blocks, which hold these tokens (or the end of them)."""
        start = (len(tokens) - 1) // model.cache.size * model.cache.size
        for stored, right in zip(
            (model.cache.keys, model.cache.values), self.of(tokens), strict=False
        ):
            there = stored[:, table[start // model.cache.size], :, : len(tokens) - start]
            assert (there - right[:, :, start:]).abs().max() < 1e-9

    def check_all(self, model: PagedModel, scheduler: Scheduler) -> None:
        """Every table holds its owner's tokens; every entry that can be found, what it says."""
        pool = scheduler.pool
        for one in scheduler.running:
            self.check(model, one.table, tuple(one.tokens[: one.computed]))
            for index in range(one.known):  # the full ones are found by their owner's tokens
                if pool.known(one.table[index]):
                    own = tuple(one.tokens[index * pool.size : (index + 1) * pool.size])
                    assert pool._known[one.table[index]].content.tokens == own
        chains: dict[int, tuple[list[int], tuple[int, ...]]] = {NOTHING: ([], ())}
        for block, (content, identity) in sorted(
            pool._known.items(), key=lambda pair: pair[1].content.before
        ):
            if content.before in chains:  # otherwise what was before it is gone: never found
                table, tokens = chains[content.before]
                chain = [*table, block], (*tokens, *content.tokens)
                chains[identity] = chain
                self.check(model, *chain)


class CheckedRunner(ModelRunner):
    """Refuses a plan that breaks a rule."""

    def __init__(self, model: PagedModel, scheduler: Scheduler) -> None:
        super().__init__(model)
        self.scheduler, self.plans = scheduler, []

    def run(self, plan: Plan):
        scheduler = self.scheduler
        assert plan.work and plan.tokens <= scheduler.budget
        assert len({work.sequence.number for work in plan.work}) == len(plan.work)
        for work in plan.work:
            one = work.sequence
            assert work.start == one.computed and work.count >= 1
            assert work.count - len(one.draft) <= scheduler.chunk
            table = one.table[work.start // scheduler.pool.size :]
            assert all(scheduler.pool.holders[block] == 1 for block in table)  # written: nobody's
            assert len(one.table) * scheduler.pool.size >= work.start + work.count
        self.plans.append([(work.sequence.number, work.count) for work in plan.work])
        return super().run(plan)


@dataclass
class Served:
    """What came of it, and how: by the number of the request."""

    core: Core
    sequences: dict[int, Sequence]
    reasons: dict[int, str] = field(default_factory=dict)
    logprobs: dict[int, list[float]] = field(default_factory=dict)

    @property
    def tokens(self) -> list[list[int]]:
        return [one.generated for one in self.sequences.values()]

    @property
    def preemptions(self) -> int:
        return sum(one.preempted for one in self.sequences.values())


@pytest.fixture
def serve(tiny) -> Callable[..., Served]:
    """Let a core answer requests, and check everything after every step."""
    truth = Truth(tiny)

    def run(
        requests: Iterable[Request],
        *,
        blocks: int = 60,
        size: int = 4,
        share: bool = True,
        arrive: Mapping[int, int] | None = None,  # the step at which a request comes, if not 0
        cancel: Mapping[int, int] | None = None,
        end: int | None = None,
        proposer=None,
        before: Served | None = None,  # whose memory is used on
        recorder=None,
        **scheduling,
    ) -> Served:
        if before is None:
            scheduler = Scheduler(BlockPool(blocks, size, share), **{"budget": 40, **scheduling})
            runner = CheckedRunner(PagedModel(tiny, blocks, size), scheduler)
            core = Core(runner, scheduler, end=end, proposer=proposer, recorder=recorder)
            first = 0
        else:
            core, first = before.core, len(before.sequences)
        scheduler = core.scheduler
        there = {n: Sequence(n, request) for n, request in enumerate(requests, first)}
        served, step, to_come = Served(core, there), 0, dict(there)
        while to_come or not scheduler.idle:
            for number in [n for n in to_come if (arrive or {}).get(n, 0) <= step]:
                core.add(to_come.pop(number))
            for number in [n for n, at in (cancel or {}).items() if at == step]:
                scheduler.remove(there[number])
                served.reasons.setdefault(number, "cancelled")
            check_memory(scheduler)
            if not scheduler.idle:
                for sequence, drawn, ended in core.step():
                    served.logprobs.setdefault(sequence.number, []).extend(drawn.logprobs)
                    if ended:
                        served.reasons[sequence.number] = ended
                check_memory(scheduler)
                truth.check_all(core.runner.model, scheduler)
            step += 1
            assert step < 2000, "somebody is never served"
        assert scheduler.pool.used == 0 and served.reasons.keys() == there.keys()
        return served

    return run


@pytest.fixture(scope="session")
def memory_check() -> Callable[[Scheduler], None]:
    return check_memory


class Letters:
    """A vocabulary of 97 tokens: a letter each, and the two bytes of "é" apart."""

    size = 97

    def __init__(self, end: int = 96) -> None:
        self.end = end

    def spell(self, token: int) -> bytes:
        return {94: b"\xc3", 95: b"\xa9", 96: b"<end>"}.get(token, bytes([33 + token]))

    def text(self, tokens: Iterable[int]) -> str:
        return b"".join(map(self.spell, tokens)).decode("utf-8", "replace")

    def chat(self, question: str) -> list[int]:
        return [ord(letter) - 33 for letter in question]


@pytest.fixture(scope="session")
def letters() -> Letters:
    return Letters()
