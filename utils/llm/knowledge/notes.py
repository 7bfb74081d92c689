"""Forty notes on concurrency, and six about this course, which no model has read.

What those six say comes from the code itself, so it stays true, and each has one right answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from utils.deep_learning import models
from utils.llm.decoder import Config
from utils.overview.areas.nlp import SENTENCES

Subject = Literal["parameters", "digits", "held out", "layers", "vocabulary", "colour"]


@dataclass(frozen=True)
class Fact:
    """A note with `{}` where the answer stands, a question, the right answer and a wrong one."""

    text: str
    question: str
    answer: str
    wrong: str


FACTS: dict[Subject, Fact] = {
    "parameters": Fact(
        "The course's small network has {} parameters.",
        "How many parameters does the small network of the course have?",
        str(sum(weights.numel() for weights in models.make("small").parameters())),
        "90125",
    ),
    "digits": Fact(
        "The course trains its networks on {} handwritten digits.",
        "How many handwritten digits does the course train on?",
        "4000",
        "7300",
    ),
    "held out": Fact(
        "To measure accuracy, {} handwritten digits are held out.",
        "How many handwritten digits are held out?",
        "1000",
        "625",
    ),
    "layers": Fact(
        "The language model of the course has {} layers.",
        "How many layers does the language model of the course have?",
        str(Config().layers),
        "84",
    ),
    "vocabulary": Fact(
        "The vocabulary of the course's language model has {} tokens.",
        "How many tokens are in the vocabulary of the language model?",
        str(Config().vocabulary),
        "31700",
    ),
    "colour": Fact(
        "In the course's pictures, the colour {} means that a thread is computing.",
        "Which colour means that a thread is computing?",
        "blue",
        "pink",
    ),
}


def library(lie_about: Subject | None = None) -> tuple[str, ...]:
    """All notes; the one about `lie_about` gives the wrong answer."""
    told = (
        fact.text.format(fact.wrong if subject == lie_about else fact.answer)
        for subject, fact in FACTS.items()
    )
    return (*SENTENCES, *told)
