"""The requests that this section's experiments answer: real questions, as tokens."""

from __future__ import annotations

from utils.llm import tokens

QUESTIONS = (
    "What is a thread?",
    "Name three colours of the rainbow.",
    "Why is the sky blue?",
    "What does a compiler do?",
    "How many legs has a spider?",
    "What is the capital of France?",
    "Explain what a mutex is for.",
    "Write one sentence about the sea.",
)


def prompts(number: int) -> list[list[int]]:
    """So many of the questions, over and over, in the form in which the model is asked."""
    vocabulary = tokens.smollm2()
    return [vocabulary.chat(QUESTIONS[place % len(QUESTIONS)]) for place in range(number)]
