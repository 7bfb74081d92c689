"""A language model that sees: a picture becomes vectors where the vectors of words are expected.

Two trained models stay as they are: a network that looks, and one that talks. Between them stands
the only new part, a linear map from what the one knows of a picture to `tokens` vectors of the
other's width. They take the place of a `{}` in a prompt. Such a vector is the name of no word, so
it is called a soft token.

Source: Liu et al., "Visual Instruction Tuning" (LLaVA, arXiv:2304.08485), whose first stage trains
the projector alone; "soft" tokens are from Lester et al., "The Power of Scale for
Parameter-Efficient Prompt Tuning" (arXiv:2104.08691).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from utils.deep_learning import digits, recipe
from utils.llm.decoder import Decoder
from utils.llm.tokens import Tokens

# Each is one token of SmolLM2, the space before it included.
DIGITS = (" zero", " one", " two", " three", " four", " five", " six", " seven", " eight", " nine")


class Encoder(nn.Module):
    """What Chapter 4's network has found in a picture before it decides: (n, 1, 28, 28) → (n, 50).

    Each of the numbers has mean 0 and deviation 1 over the pictures to train on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = copy.deepcopy(recipe.trained())
        self.network.fc2 = nn.Identity()  # the last layer would choose one of ten
        with torch.no_grad():
            found = self.network(digits.load()[0].images)
        self.mean, self.deviation = found.mean(0), found.std(0) + 1e-3

    def forward(self, images: Tensor) -> Tensor:
        return (self.network(images) - self.mean) / self.deviation


@cache
def encoder() -> Encoder:
    """The same for everyone; nobody changes it."""
    return Encoder().requires_grad_(False)


class Projector(nn.Module):
    """The part that learns: (n, features) → (n, tokens, hidden).

    At first every soft token is near `origin`, (hidden,). ValueError: no token at all.
    """

    def __init__(self, features: int, tokens: int, origin: Tensor) -> None:
        super().__init__()
        if tokens < 1:
            raise ValueError(f"tokens={tokens} is not allowed: give at least 1")
        self.tokens = tokens
        spread = 0.13 / features**0.5  # so a soft token is about as long as a word's vector
        dice = torch.Generator().manual_seed(0)
        start = spread * torch.randn(tokens * len(origin), features, generator=dice)
        self.weight = nn.Parameter(start.to(origin.dtype))
        self.bias = nn.Parameter(origin.repeat(tokens))

    def forward(self, features: Tensor) -> Tensor:
        return functional.linear(features, self.weight, self.bias).unflatten(-1, (self.tokens, -1))


class Seeing:
    """A frozen language model that reads prompts with soft tokens."""

    def __init__(self, model: Decoder, vocabulary: Tokens) -> None:
        self.model, self.vocabulary = model, vocabulary

    def vectors(self, text: str) -> Tensor:
        """The vectors of a text's tokens: (tokens, hidden)."""
        return self.model.embed_tokens(torch.tensor(self.vocabulary.encode(text), dtype=torch.long))

    def scores(self, prompt: str, soft: Tensor) -> Tensor:
        """Scores for what follows `prompt`, whose `{}` is a picture: soft (n, tokens, hidden) →
        (n, vocabulary). ValueError: not exactly one `{}`.
        """
        if prompt.count("{}") != 1:
            raise ValueError(f"prompt={prompt!r} is not allowed: give a text with one {{}}")
        before, after = (
            self.vectors(part).expand(len(soft), -1, -1) for part in prompt.split("{}")
        )
        x = torch.cat([before, soft, after], dim=1)
        return self.model.lm_head(self.model.run(x)[:, -1])

    def nearest(self, soft: Tensor, count: int = 3) -> list[list[str]]:
        """The words whose vectors point most nearly as each of `soft`, (tokens, hidden), does."""
        words = functional.normalize(self.model.embed_tokens.weight, dim=1)
        places = (functional.normalize(soft, dim=1) @ words.T).topk(count).indices
        return [[self.vocabulary.decode([token]) for token in row] for row in places.tolist()]

    def token(self, word: str) -> int:
        """The number of a word that is one token. ValueError: it is several."""
        if len(found := self.vocabulary.encode(word)) != 1:
            raise ValueError(f"word={word!r} is not allowed: it is {len(found)} tokens, give one")
        return found[0]


def share_right(scores: Tensor, labels: Tensor, words: Sequence[int]) -> float:
    """Share of `scores`, (n, vocabulary), whose best token of *all* is the label's word."""
    return scores.argmax(1).eq(torch.tensor(words)[labels]).double().mean().item()
