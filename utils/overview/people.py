"""Several people ask one language model at once: who waits how long, what comes out.

The same greedy loop (`answer`) serves everybody; only *who calls it* differs:

- one after another: a loop over people,
- threads: a thread for each person, all on the same weights,
- one batch: a single call for all of them.

The answers are the same (float sums in another order differ in the last digits, which changes a
token only where two are nearly tied); the waiting is not. Every step has costs that come once,
whoever is served: reading the weights, walking through the layers. A batch shares them, threads
repeat them.
Source of the idea: Pope et al., "Efficiently Scaling Transformer Inference" (arXiv:2211.05102).
"""

from __future__ import annotations

import contextvars
import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from utils.core import assets, machine, plots
from utils.core.experiment import Range, checkpoint, experiment, gather
from utils.core.trace import Recorder, Trace, now
from utils.core.workers import crew, intra_op

if TYPE_CHECKING:
    from torch import Tensor

QUESTIONS = {
    "Ada": "Why is the sky blue?",
    "Alan": "What is a thread in a computer?",
    "Grace": "How do I make a good pot of tea?",
    "Edsger": "Why do leaves turn red in autumn?",
    "Barbara": "What is gravity?",
    "Tony": "Tell me something about cats.",
    "Leslie": "How do clocks stay in time?",
    "Frances": "What does a compiler do?",
    "Radia": "How does the internet find a computer?",
    "Ken": "What makes music sound sad?",
    "Margaret": "How did people land on the Moon?",
    "Katherine": "Why do we have leap years?",
    "Donald": "How should I learn to program?",
    "Lynn": "How does a computer chip work?",
    "Tim": "What is a web page made of?",
    "Shafi": "How can two people share a secret?",
}
MODES = ("one after another", "threads", "one batch")


@dataclass(frozen=True)
class Run:
    """One way of serving everybody: the trace, and each person's token ids and words."""

    trace: Trace
    tokens: dict[str, tuple[int, ...]]
    words: dict[str, str]

    @property
    def seconds(self) -> float:
        return self.trace.duration

    @property
    def tokens_per_second(self) -> float:
        """Output throughput: every token of every answer, by the time to the last one."""
        return sum(map(len, self.tokens.values())) / self.seconds

    def wait(self, person: str) -> float:
        """Time to first token (TTFT) in seconds, from asking; everybody asks at the start."""
        first = self.trace.select(lane=person, category="prefill").spans[0]
        return (first.end - self.trace.start) / 1e9

    @property
    def mean_wait(self) -> float:
        return statistics.mean(map(self.wait, self.tokens))


@dataclass(frozen=True)
class Answers:
    """How the same questions fared in each of `MODES`.

    `best_speedup` is the theory: if a step cost the same whoever it serves, a batch of n would take
    as long as one person alone, so everybody together is served n times as fast.
    """

    people: int
    runs: dict[str, Run]

    @property
    def speedup(self) -> float:
        """How many times sooner the batch is done than one after another."""
        return self.runs["one after another"].seconds / self.runs["one batch"].seconds

    @property
    def best_speedup(self) -> float:
        return float(self.people)


@experiment
def ask(
    people: Annotated[int, Range(1, 16, label="people asking")] = 4,
    tokens: Annotated[int, Range(4, 32, step=4, label="tokens each")] = 12,
) -> Answers:
    """Serve `people` in each mode; every answer is cut after `tokens` tokens."""
    asking = dict(list(QUESTIONS.items())[:people])
    checkpoint(0, 0, "loading SmolLM2")
    model()
    checkpoint(0, 0, "warming up")
    answer(["warm up"], tokens=2)
    runs = {}
    for index, mode in enumerate(MODES):
        spoken = people * tokens
        runs[mode] = _serve(mode, asking, tokens, before=index * spoken, total=len(MODES) * spoken)
    return Answers(people, runs)


def _serve(mode: str, asking: dict[str, str], tokens: int, before: int, total: int) -> Run:
    """Serve everybody in `mode`; of `total` tokens in all modes, `before` are already spoken."""
    recorder = Recorder()
    said: dict[str, tuple[int, ...]] = {}
    spoken: list[int] = []  # tokens of each step; appending is safe from several threads
    asked = now()

    def serve(names: Sequence[str]) -> None:
        """Answer `names` in one call and record it; runs in whichever thread the mode chose."""
        last = [asked]

        def on_step(step: int) -> None:
            end = now()
            category, name = ("decode", f"token {step + 1}") if step else ("prefill", "prompt")
            for person in names:
                recorder.add(person, category, name, last[0], end)
            last[0] = end
            spoken.append(len(names))
            checkpoint(before + sum(spoken), total, mode)

        begun = now()
        for person in names:
            if begun - asked > 1_000_000:  # under a millisecond nobody waited for anybody
                recorder.add(person, "queue", "waiting", asked, begun)
        last[0] = begun
        rows = answer([asking[person] for person in names], tokens, on_step)
        said.update(zip(names, rows, strict=True))

    if mode == "one after another":
        for person in asking:
            serve([person])
    elif mode == "threads":
        # The cores are shared out: n threads with all cores inside each operation would make
        # n × cores of them, and spend their time waiting for one another.
        with intra_op(max(1, machine.cores() // len(asking))), crew(len(asking), "ask") as pool:
            # A thread starts with an empty context: hand ours over, so that Cancel reaches it.
            calls = [(contextvars.copy_context(), [person]) for person in asking]
            gather([pool.submit(c.run, serve, names) for c, names in calls], timeout=600)
    else:
        serve(list(asking))
    words = {person: tokenizer().decode(said[person]).strip() for person in asking}
    return Run(recorder.trace(), {person: said[person] for person in asking}, words)


def answer(
    questions: Sequence[str], tokens: int, on_step: Callable[[int], None] = lambda step: None
) -> list[tuple[int, ...]]:
    """Greedy answers to `questions` as one batch: `tokens` token ids each.

    The prompts differ in length, so they are padded on the *left*: then the newest token of
    every row stands in the last column. `mask` hides the padding, which is why a row's answer does
    not depend on who else is in the batch. `positions` leave the padding out as well, so that a
    row is given the numbers it would have alone; this model uses only their differences (Su et
    al., "RoFormer", arXiv:2104.09864), others do not.
    """
    import torch

    prompts = [prompt(question) for question in questions]
    batch = tokenizer()(prompts, return_tensors="pt", padding=True)
    ids: Tensor = batch.input_ids  # [people, length]; after the first step [people, 1]
    mask: Tensor = batch.attention_mask  # [people, length so far]
    cache = None
    chosen: list[Tensor] = []
    with torch.inference_mode():
        for step in range(tokens):
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            output = model()(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = output.past_key_values
            ids = output.logits[:, -1].argmax(-1, keepdim=True)
            mask = torch.cat([mask, torch.ones_like(ids)], dim=-1)
            chosen.append(ids)
            on_step(step)
    return [tuple(row) for row in torch.cat(chosen, dim=-1).tolist()]


def prompt(question: str) -> str:
    """The question as the model was trained to see one, up to where the answer begins."""
    return tokenizer().apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )


@functools.cache
def model() -> Any:
    """SmolLM2-135M-Instruct in float32, loaded once."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would print into the cell, and leave a thread behind
    return AutoModelForCausalLM.from_pretrained(assets.path("smollm2"), dtype=torch.float32).eval()


@functools.cache
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(assets.path("smollm2"), padding_side="left")


def plot(result: Answers) -> plots.Picture:
    """A timeline for each mode, all on one scale: a row a person, a bar a token."""
    height = len(MODES) * (0.75 + 0.24 * max(2, result.people))
    fig, axes = plots.figure(9, height, rows=len(MODES), sharex=True)
    until = max(run.seconds for run in result.runs.values()) * 1.01
    for ax, (mode, run) in zip(axes, result.runs.items(), strict=True):
        title = (
            f"{mode}:  {run.tokens_per_second:.0f} tokens/s,  "
            f"first token after {run.mean_wait:.1f} s on average,  all done in {run.seconds:.1f} s"
        )
        plots.timeline(ax, run.trace, lanes=tuple(run.tokens), until=until, title=title)
        ax.label_outer()
    plots.legend(
        fig,
        ["queue", "prefill", "decode"],
        {
            "queue": "waiting for a turn",
            "prefill": "reading the question, first token",
            "decode": "one more token",
        },
    )
    return fig
