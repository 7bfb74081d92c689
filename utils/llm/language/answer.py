"""A short answer of the model: what it chose, how likely that was, and when each token came."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Annotated, Literal

from utils.core import bench, plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.llm import tokens, weights
from utils.llm.generate import generate
from utils.llm.language import coloured
from utils.llm.language.perplexity import losses
from utils.llm.sampling import Sampling

WIDTH = 9.2  # inches of the text
Question = Literal[
    "What is the capital of France?",
    "Tell me a joke about a computer.",
    "Write a short poem about the sea.",
    "Why is the sky blue?",
]


@dataclass(frozen=True)
class Answer:
    """`chances`: the model's own probability of each token; `seconds`: until each was there."""

    question: str
    prompt: int  # tokens
    tokens: tuple[int, ...]
    chances: tuple[float, ...]
    seconds: tuple[float, ...]

    @property
    def text(self) -> str:
        return tokens.smollm2().decode(self.tokens)


@experiment
def run(
    question: Question = "Write a short poem about the sea.",
    temperature: Annotated[float, Range(0, 2, 0.1)] = 0.8,
    top_k: Annotated[int, Range(0, 50, label="top-k (0: all)")] = 0,
    top_p: Annotated[float, Range(0.05, 1, 0.05, label="top-p")] = 0.95,
    repetition_penalty: Annotated[float, Range(1, 2, 0.1)] = 1,
    limit: Annotated[int, Range(1, 64, label="most tokens")] = 24,
    seed: Annotated[int, Range(0, 50)] = 0,
) -> Answer:
    """Generate, then let one more pass over prompt and answer tell every probability at once."""
    model, vocabulary = weights.smollm2(), tokens.smollm2()
    prompt = vocabulary.chat(question)
    how = Sampling(temperature, top_k, top_p, repetition_penalty=repetition_penalty)
    chosen, seconds, began = [], [], time.perf_counter()
    for token in generate(model, prompt, limit, how, stop=vocabulary.end, seed=seed):
        chosen.append(token)
        seconds.append(time.perf_counter() - began)
        checkpoint(len(chosen), limit, "tokens")
    chances = losses(model, prompt + chosen)[-len(chosen) :].neg().exp()
    return Answer(question, len(prompt), tuple(chosen), tuple(chances.tolist()), tuple(seconds))


def plot(result: Answer) -> plots.Picture:
    """The answer, coloured; and what each token had to be waited for."""
    shown = coloured.words(tokens.smollm2(), result.tokens)
    text_height = 0.9 + 0.27 * (1 + coloured.lines(shown, WIDTH)[-1][0])
    fig, (text, ax) = plots.figure(
        9.5, text_height + 2, rows=2, gridspec_kw={"height_ratios": [text_height, 2]}
    )
    coloured.draw(text, shown, result.chances, WIDTH)
    coloured.legend(text)
    text.set_title(result.question, loc="left")
    waits = [b - a for a, b in zip((0, *result.seconds), result.seconds, strict=False)]
    colors = [plots.color("prefill")] + [plots.color("decode")] * (len(waits) - 1)
    ax.bar(range(1, len(waits) + 1), [1e3 * wait for wait in waits], color=colors)
    ax.set_xlim(0.3, len(waits) + 0.7)
    ax.set_xlabel("token of the answer", fontsize=9)
    ax.set_ylabel("ms to wait for it", fontsize=9)
    title = f"first token after {bench.seconds(waits[0])}"
    if len(waits) > 1:
        title += f", then {bench.seconds(statistics.mean(waits[1:]))} a token"
    ax.set_title(title, loc="left")
    names = {"prefill": f"reads {result.prompt} tokens of prompt", "decode": "reads one token"}
    plots.legend(fig, ["prefill", "decode"], names)
    return fig
