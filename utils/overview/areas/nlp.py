"""Language (S1.3-c): find the sentence that answers a question, by meaning and not by words.

A real encoder, all-MiniLM-L6-v2, turns a text into 384 numbers such that texts alike in meaning
point the same way (Reimers & Gurevych, "Sentence-BERT", 2019). The sentences are encoded once;
a query is encoded when it comes and compared with all of them by a matrix product.

One short query is little work for the arithmetic units: much of its time is Python walking
through six layers, and Python holds the GIL. So two workers on two cores fall short of twice
the queries, more workers than cores only wait for each other (look at the slowest query), and
threads inside each operation add threads where cores are missing. The dotted line is the other
way to use a machine: the same queries as one batch on one worker.
"""

from __future__ import annotations

import functools
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from utils.core import assets, plots
from utils.core.bench import measure
from utils.core.experiment import Range, experiment
from utils.core.workers import intra_op, lanes
from utils.overview.areas.common import Contest, Team, contest, draw_rates

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import BertModel

SENTENCES = (
    "A mutex lets one thread at a time into a critical section.",
    "A deadlock is a circle of threads, each waiting for a lock that the next one holds.",
    "Taking locks in one fixed order everywhere prevents circular waiting.",
    "A condition variable lets a thread sleep until another one notifies it.",
    "A waiting thread must check its condition again after it wakes up.",
    "A semaphore counts permits; acquiring takes one and releasing gives one back.",
    "A contest condition makes the result depend on which thread happens to come first.",
    "An update is lost when two threads read the same old value and both write back.",
    "An atomic operation is seen by other threads as done completely or not at all.",
    "A pipe carries bytes in one direction between related processes.",
    "Two processes that map the same shared memory see each other's writes without a copy.",
    "The threads of a process share one address space.",
    "Every thread has a stack of its own.",
    "A context switch saves the registers of one thread and loads those of another.",
    "A thread pool reuses its threads, so that tasks do not pay for creating them.",
    "CPython's global interpreter lock lets one thread at a time run Python bytecode.",
    "Free-threaded builds of Python run bytecode of several threads in parallel.",
    "Numerical libraries can release the interpreter lock while they compute.",
    "Concurrency means that tasks overlap in time; parallelism means they run at one instant.",
    "On a single core, threads take turns in slices of time.",
    "Waiting for the network needs no core, so many waits can overlap on one.",
    "Amdahl's law: the serial part of a program limits its speed-up.",
    "Gustafson's law lets the problem grow with the number of processors.",
    "Throughput counts the requests completed in a second.",
    "Latency is the time from sending a request to having its answer.",
    "The 99th percentile is the latency that one request in a hundred exceeds.",
    "Oversubscription means more busy threads than cores.",
    "Work stealing lets an idle worker take tasks from a busy one's queue.",
    "A bounded queue makes a fast producer wait for a slow consumer.",
    "Data parallelism gives each replica of a model a different part of the batch.",
    "An all-reduce leaves the sum of all workers' gradients with every one of them.",
    "Pipeline parallelism places successive layers on different devices.",
    "A pipeline bubble is time in which a stage has nothing to do.",
    "Tensor parallelism splits a single matrix product over several devices.",
    "Quantization stores weights with fewer bits, which saves memory traffic.",
    "The key-value cache keeps attention from recomputing the past for every new token.",
    "Prefill reads the whole prompt at once; decoding produces one token after another.",
    "Continuous batching lets a request join a running batch after any token.",
    "Paged attention stores the cache in small blocks, like the pages of virtual memory.",
    "Speculative decoding lets a small model propose tokens that the large model verifies.",
)

QUERIES = (
    "threads that block each other in a circle",
    "how do I avoid a deadlock?",
    "only one thread at a time may go in",
    "why was my increment overwritten?",
    "sleep until another thread wakes me",
    "why doesn't Python use all my cores?",
    "python without the interpreter lock",
    "what is the difference between concurrent and parallel?",
    "one core and many network requests",
    "why is there a limit to how much faster a program gets?",
    "the slowest one percent of requests",
    "too many threads for the processor",
    "why not start a new thread for every task?",
    "copying data between processes is slow",
    "training one model on several parts of the data",
    "adding up gradients across machines",
    "an idle stage of the pipeline",
    "smaller weights, faster model",
    "why is generating text sequential?",
    "remembering earlier tokens instead of computing them again",
    "a new request enters while others are being generated",
    "guess several words ahead and check them",
    "the producer is faster than the consumer",
    "which thread came first changes the answer",
)


@dataclass(frozen=True)
class SearchResult:
    """The best sentences for each query, and what the answers took."""

    contest: Contest
    intra_op: int
    rankings: np.ndarray  # int64 [queries, 3]: the three best sentences, best first
    rankings_one: np.ndarray  # the same from one worker
    latencies: tuple[float, ...]  # seconds from a worker taking a query to its answer
    latencies_one: tuple[float, ...]
    batched: float  # queries per second as one batch on one worker

    def answer(self, query: int) -> str:
        """The sentence found for `QUERIES[query]`."""
        return SENTENCES[self.rankings[query, 0]]


@experiment
def search(
    workers: Annotated[int, Range(1, 8)] = 2,
    threads_inside: Annotated[int, Range(1, 4, label="threads inside each operation")] = 1,
) -> SearchResult:
    """Answer 24 queries, one at a time each worker, and once more as one batch."""
    with intra_op(threads_inside):
        known = _encoded()

        def answer(query: str) -> tuple[np.ndarray, float]:
            start = time.perf_counter()
            best = rank(encode([query]), known)[0]
            return best, time.perf_counter() - start

        def answer_all(team: Team) -> tuple[np.ndarray, tuple[float, ...]]:
            rankings, latencies = zip(*team.map(answer, QUERIES, "query"), strict=True)
            return np.stack(rankings), latencies

        raced, (alone, slow_alone), (rankings, slow) = contest(
            answer_all, workers, items=len(QUERIES), unit="queries", rounds=2
        )
        batch = measure(lambda: rank(encode(QUERIES), known), repeats=2)
    return SearchResult(
        raced, threads_inside, rankings, alone, slow, slow_alone, len(QUERIES) / batch.median
    )


def encode(texts: tuple[str, ...] | list[str]) -> Tensor:
    """Unit vectors `[n, 384]`: the mean of each text's token vectors, normalised."""
    tokenizer, model = minilm()
    tokens = [torch.tensor(tokenizer.encode(text).ids) for text in texts]
    ids = pad_sequence(tokens, batch_first=True)
    lengths = torch.tensor([len(one) for one in tokens])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    with torch.inference_mode():  # it holds for one thread only, so each task enters it
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
        mean = (states * mask[..., None]).sum(1) / lengths[:, None]
        return functional.normalize(mean, dim=1)


def rank(queries: Tensor, known: Tensor, best: int = 3) -> np.ndarray:
    """Numbers `[n, best]` of the sentences closest in meaning, by cosine."""
    return torch.topk(queries @ known.T, best, dim=1).indices.numpy()


_loading = threading.Lock()


def minilm() -> tuple[Tokenizer, BertModel]:
    with _loading:
        return _loaded()


@functools.cache
def _loaded() -> tuple[Tokenizer, BertModel]:
    from safetensors.torch import load_file
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel

    folder = assets.path("minilm")
    model = BertModel(BertConfig.from_pretrained(folder), add_pooling_layer=False)
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    # The tokenizer itself and not transformers' wrapper: that one changes its padding settings
    # at every call, which is not safe in threads ("Already borrowed").
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    return tokenizer, model.eval()


@functools.cache
def _encoded() -> Tensor:
    return encode(SENTENCES)


def plot(result: SearchResult) -> plots.Picture:
    """Who answered when, the rates, and how long each query took."""
    fig, (left, middle, right) = plots.figure(11, 3.4, cols=3, width_ratios=[2, 1.1, 1.1])
    contest = result.contest
    inside = f", {result.intra_op} threads inside" if result.intra_op > 1 else ""
    plots.timeline(
        left, contest.trace, lanes=lanes(contest.workers), title=f"{contest.items} queries{inside}"
    )
    draw_rates(middle, contest)
    middle.axhline(result.batched, color=plots.GREEN, linestyle=":", linewidth=1.6)
    middle.text(
        0.01, result.batched, " one batch, one worker", va="bottom", fontsize=8,
        color=plots.GREEN, transform=middle.get_yaxis_transform(),
    )  # fmt: skip
    middle.set_ylim(top=1.15 * max(middle.get_ylim()[1] / 1.18, result.batched))
    groups = {"1 worker": (result.latencies_one, plots.GREY)}
    if contest.workers > 1:
        groups[f"{contest.workers} workers"] = (result.latencies, plots.color("measured"))
    longest = 1e3 * max(max(seconds) for seconds, _ in groups.values())
    for row, (seconds, colour) in enumerate(groups.values()):
        ms = 1e3 * np.array(seconds)
        right.plot(ms, np.full(len(ms), row), "o", color=colour, alpha=0.45, markersize=6)
        # Of 24 queries the slowest is the honest name of the tail: a P99 needs hundreds.
        text = f"median {np.median(ms):.0f}, slowest {ms.max():.0f} ms"
        right.text(0.02 * longest, row - 0.16, text, fontsize=8)
    right.set_yticks(range(len(groups)), list(groups))
    right.set_ylim(len(groups) - 0.5, -0.5)
    right.set_xlim(0, 1.08 * longest)
    right.set_xlabel("milliseconds a query", fontsize=9)
    right.set_title("Latency", loc="left")
    return fig
