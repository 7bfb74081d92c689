"""One answer, token after token: the loop that every engine speeds up and none may change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from utils.core.experiment import checkpoint
from utils.llm.decoder import Cache, Decoder
from utils.llm.sampling import GREEDY, Sampling, choose
from utils.llm.tokens import Pieces, Tokens


@torch.inference_mode()
def generate(
    model: Decoder,
    prompt: Sequence[int],
    limit: int,
    how: Sampling = GREEDY,
    *,
    stop: int | None = None,
    seed: int = 0,
    cached: bool = True,
) -> Iterator[int]:
    """Tokens that follow `prompt`, one by one: at most `limit`, and none after `stop`.

    Without `cached`, all tokens so far go through the model again for each new one.
    ValueError: no prompt, or more tokens than the model was trained to see.
    """
    if not prompt or limit < 1:
        raise ValueError(f"{len(prompt)} tokens of prompt, limit={limit}: give at least 1 of each")
    if len(prompt) + limit > model.config.context:
        raise ValueError(
            f"{len(prompt)} tokens and limit={limit} do not fit into {model.config.context}"
        )
    dice = torch.Generator().manual_seed(seed)
    cache = Cache(model.config, 1, len(prompt) + limit) if cached else None
    said, new = list(prompt), list(prompt)
    for _ in range(limit):
        checkpoint()
        last = model.hidden(torch.tensor([new]), cache)[0, -1]
        token = choose(model.lm_head(last), how, dice, said)
        yield token
        if token == stop:
            return
        said.append(token)
        new = [token] if cached else said


def stream(
    model: Decoder, tokens: Tokens, question: str, limit: int, how: Sampling = GREEDY, seed: int = 0
) -> Iterator[str]:
    """The answer to a question in pieces of text, each as soon as it can be shown."""
    pieces = Pieces(tokens)
    prompt = tokens.chat(question)
    for token in generate(model, prompt, limit, how, stop=tokens.end, seed=seed):
        if token != tokens.end:
            yield pieces.add(token)
    yield pieces.flush()
