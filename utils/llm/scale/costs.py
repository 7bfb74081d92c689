"""What a model costs, from its shape alone: parameters, operations, bytes; and the least time.

Two counts decide nearly everything. A token takes two operations (multiply, add) with each weight
of each matrix product; and a step of decoding reads each of these weights once. What else a step
moves (norms, biases, what one layer hands to the next) is left out: these are least costs.

Sources: Kaplan et al., "Scaling Laws for Neural Language Models" (arXiv:2001.08361, 2N and 6N);
Chowdhery et al., "PaLM" (arXiv:2204.02311, appendix B, MFU); Rajbhandari et al., "ZeRO"
(arXiv:1910.02054, 16 bytes a parameter); Korthikanti et al., "Reducing Activation Recomputation"
(arXiv:2205.05198, activations); Williams et al., "Roofline" (CACM 52(4), 2009).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from utils.llm.decoder import Config

BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5}  # of a number


@dataclass(frozen=True)
class Shape(Config):
    """A `Config`, and what GPT-2, GPT-3 and Qwen2.5 do otherwise than Llama."""

    gated: bool = True  # SwiGLU has three matrices, a plain MLP two
    qkv_bias: bool = False  # queries, keys and values get a learnt vector added
    bias: bool = False  # each product and each norm does
    learnt_positions: bool = False  # a vector for each position, instead of a rotation

    @staticmethod
    def of(config: Config) -> Shape:
        return Shape(**asdict(config))


@dataclass(frozen=True)
class Device:
    """What memory and cores reach: bytes, bytes/s, operations/s."""

    name: str
    memory: float
    read: float
    matrix: float
    source: str = ""


def matrices(shape: Shape) -> dict[str, int]:
    """Weights in matrix products, by part of the model; the head counts even if it is tied."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return {
        "attention": shape.layers * shape.hidden * 2 * (queries + keys),  # q, o; k, v
        "MLP": shape.layers * (2 + shape.gated) * shape.hidden * shape.intermediate,
        "head": shape.vocabulary * shape.hidden,
    }


def parameters(shape: Shape) -> dict[str, int]:
    """Learnt numbers by part. A tied head has none of its own: it is the embedding."""
    count, norms = matrices(shape), 2 * shape.layers + 1
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    if shape.bias or shape.qkv_bias:
        count["attention"] += shape.layers * (queries + 2 * keys)
    if shape.bias:
        count["attention"] += shape.layers * shape.hidden
        count["MLP"] += shape.layers * ((1 + shape.gated) * shape.intermediate + shape.hidden)
    embedding = count["head"] + shape.learnt_positions * shape.context * shape.hidden
    count["head"] *= not shape.tied
    return {"embedding": embedding} | count | {"norms": norms * shape.hidden * (1 + shape.bias)}


def flops(
    shape: Shape, new: int, past: int = 0, batch: int = 1, scored: int | None = None
) -> float:
    """Operations to put `new` tokens, that follow `past`, through the model, `batch` times.

    The head compares the last `scored` of them (default: all). Every product of a query with a key
    counts, also those that an explicit mask throws away.
    """
    if new < 1 or past < 0 or batch < 1 or not 0 <= (scored or 0) <= new:
        raise ValueError(f"new={new}, past={past}, batch={batch}, scored={scored} make no step")
    weights = matrices(shape)
    products = (weights["attention"] + weights["MLP"]) * new
    products += weights["head"] * (new if scored is None else scored)
    scores = 2 * shape.layers * shape.heads * shape.head_dim * new * (past + new)  # q·k, then ·v
    return 2.0 * batch * (products + scores)


def training_flops(shape: Shape, context: int) -> float:
    """Operations a token in training: forward, and twice that backward. 6N + 12·L·d·T."""
    return 3 * flops(shape, context) / context


def mfu(shape: Shape, tokens_a_second: float, context: int, peak: float) -> float:
    """Model FLOPs utilisation: what part of `peak` operations/s training makes use of."""
    return tokens_a_second * training_flops(shape, context) / peak


def weight_bytes(shape: Shape, dtype: str) -> float:
    return sum(parameters(shape).values()) * _bytes(dtype)


def cache_bytes(shape: Shape, tokens: int, batch: int = 1, dtype: str = "float32") -> float:
    """Keys and values of `batch` sequences of `tokens`."""
    numbers = 2 * shape.layers * shape.kv_heads * shape.head_dim
    return numbers * tokens * batch * _bytes(dtype)


def training_bytes(shape: Shape, tokens: int) -> dict[str, float]:
    """Memory for steps of `tokens` tokens in mixed precision with Adam; activations roughly.

    A parameter has 2 bytes, a gradient 2, and a float32 copy with Adam's two means 12. A layer
    keeps some 34 bytes for each number of its stream (a GPT's; without the scores of attention,
    which a fused kernel computes anew).
    """
    count = sum(parameters(shape).values())
    kept = 34.0 * shape.layers * shape.hidden * tokens
    return {"weights": 2.0 * count, "gradients": 2.0 * count, "Adam": 12.0 * count,
            "activations": kept}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One pass through the model: operations, and the bytes it moves at least."""

    flops: float
    bytes: float

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.flops / self.bytes

    def least(self, device: Device) -> float:
        """Seconds below which nobody comes: the bytes must move, the operations be done."""
        return max(self.bytes / device.read, self.flops / device.matrix)


def step(
    shape: Shape,
    new: int,
    past: int = 0,
    batch: int = 1,
    dtype: str = "float32",
    cached: str | None = None,
) -> Step:
    """`new` tokens after `past`, of which the last goes to the head, for `batch` sequences.

    Each weight moves once for all of them; the keys and values of each sequence once. `cached` is
    the format of these (None: `dtype`).
    """
    weights = sum(matrices(shape).values()) * _bytes(dtype)
    moved = weights + cache_bytes(shape, past + new, batch, cached or dtype)
    return Step(flops(shape, new, past, batch, scored=1), moved)


def _bytes(dtype: str) -> float:
    if dtype not in BYTES:
        raise ValueError(f"dtype={dtype!r} is not allowed: give one of {', '.join(BYTES)}")
    return BYTES[dtype]
