"""What a note is worth: the same question with and without it, measured in bits.

An answer read once is an anecdote. The probability that the model gives to the *right* answer is a
number: −log₂ of it is the surprise at that answer, in bits. 0 bits: the model is certain of it; 20
bits: one chance in a million. A wrong note shows what the model really does: it believes.

Source: Lewis et al., "Retrieval-Augmented Generation for Knowledge-Intensive NLP Tasks"
(arXiv:2005.11401). There the search is trained with the model; here both are taken as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated

import torch

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.llm import tokens as vocabularies
from utils.llm import weights
from utils.llm.decoder import Decoder
from utils.llm.generate import generate
from utils.llm.knowledge.notes import FACTS, Subject, library
from utils.llm.knowledge.retrieval import Hit, Library
from utils.llm.tokens import Tokens


def prompt(question: str, notes: Sequence[str] = ()) -> str:
    """The text that the model is to go on with."""
    return "".join(f"Note: {note}\n" for note in notes) + f"Question: {question}\nAnswer:"


@torch.inference_mode()
def bits(model: Decoder, vocabulary: Tokens, text: str, answer: str) -> float:
    """The surprise of `model` at `answer` after `text`, in bits: −log₂ of its probability.

    ValueError: no text, or no answer.
    """
    asked, said = vocabulary.encode(text), vocabulary.encode(answer)
    if not asked or not said:
        raise ValueError(f"text={text!r}, answer={answer!r}: give at least one token of each")
    row = model.hidden(torch.tensor([asked + said]))[0, len(asked) - 1 : -1]
    chances = model.lm_head(row).log_softmax(-1)
    return -chances.gather(1, torch.tensor(said)[:, None]).sum().item() / math.log(2)


@dataclass(frozen=True)
class Asked:
    """A question, the scores of all notes, which were used, and what came of them."""

    subject: Subject
    notes: tuple[str, ...]
    scores: list[float]
    used: list[Hit]
    said: dict[str, str]  # by "without" and "with" notes
    surprise: dict[tuple[str, str], float]  # bits, by the same and by the answer


@cache
def _library(lie_about: Subject | None) -> Library:
    return Library.of(library(lie_about))


@experiment
def ask(
    subject: Subject = "parameters",
    notes: Annotated[int, Range(0, 6)] = 1,
    lie: bool = False,
) -> Asked:
    """Ask about a subject with the best `notes`; with `lie`, its note says something else."""
    model, vocabulary = weights.smollm2(), vocabularies.smollm2()
    fact = FACTS[subject]
    known = _library(subject if lie else None)
    used = known.search(fact.question, notes)
    texts = {
        "without": prompt(fact.question),
        "with": prompt(fact.question, [known.notes[hit.place] for hit in used]),
    }
    said, surprise = {}, {}
    for done, (way, text) in enumerate(texts.items()):
        checkpoint(done, len(texts), f"answering {way} notes")
        reply = generate(model, vocabulary.encode(text), 8, stop=vocabulary.end)
        words = vocabulary.decode([token for token in reply if token != vocabulary.end])
        said[way] = words.strip().split("\n")[0]
        for answer in (fact.answer, fact.wrong):
            surprise[way, answer] = bits(model, vocabulary, text, f" {answer}")
    scores = known.scores(fact.question).tolist()
    return Asked(subject, known.notes, scores, used, said, surprise)


def plot(result: Asked) -> plots.Picture:
    """The notes nearest to the question, and the surprise at two answers."""
    fig, (left, right) = plots.figure(11, 3.4, cols=2, width_ratios=[1.6, 1])
    fact, used = FACTS[result.subject], {hit.place for hit in result.used}
    best = sorted(range(len(result.scores)), key=lambda place: -result.scores[place])[:7]
    colours = [plots.SKY if place in used else plots.PAPER_GREY for place in best]
    left.barh(range(len(best)), [result.scores[place] for place in best], color=colours)
    for row, place in enumerate(best):
        text = result.notes[place]
        text = text if len(text) <= 62 else text[:60] + "…"
        left.text(0.01, row, text, va="center", fontsize=8)
    left.set_yticks([])
    left.invert_yaxis()
    left.set_xlim(0, 1)
    left.set_xlabel("cosine with the question (blue: in the prompt)", fontsize=9)
    left.set_title(fact.question, loc="left")
    answers = ((fact.answer, "right", plots.GREEN), (fact.wrong, "wrong", plots.VERMILION))
    for number, (answer, kind, colour) in enumerate(answers):
        values = [result.surprise[way, answer] for way in result.said]
        places = [x - 0.2 + 0.4 * number for x in range(len(values))]
        drawn = right.bar(places, values, 0.38, color=colour, label=f"{answer} ({kind})")
        right.bar_label(drawn, fmt="%.1f", fontsize=9)
    ticks = [f"{way} notes, it says\n{said!r}" for way, said in result.said.items()]
    right.set_xticks(range(len(ticks)), ticks)
    right.margins(y=0.3)
    right.legend(frameon=False, fontsize=8, ncols=2, loc="upper center")
    right.set_title("surprise at an answer, bits", loc="left")
    return fig
