"""From what a wheel or a hub holds to what loads fastest: one function an asset.

Each takes a folder with the fetched files and fills an empty one. They run once, in the process
that sets the course up, so they import what they need only then.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from urllib.error import URLError

from utils.core.fetch import AssetMissing


def smollm2(source: Path, target: Path) -> None:
    """GGUF (4-bit, one file) or a hub's bfloat16 → float32 safetensors with its tokenizer.

    Reading GGUF takes half a minute, because transformers dequantises every tensor in Python;
    the result loads in a second or two.
    """
    _quiet()
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    packed = next(source.glob("*.gguf"), None)
    options = {"gguf_file": packed.name} if packed else {}
    loaded = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **options)
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    if packed:
        # transformers would mark the weights as still quantised, and refuse to save them
        del loaded.config.quantization_config
        # "tokenizer.ggml.pre = smollm" says that every digit is a token; the reader ignores it
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    tokenizer.model_max_length = loaded.config.max_position_embeddings
    model = type(loaded)(loaded.config)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def minilm(source: Path, target: Path) -> None:
    """The files BertModel and its tokenizer read, as they are."""
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, target / name)


def mnist_csv(source: Path, target: Path) -> None:
    """5000 lines of 784 grey values and a label → two arrays of bytes."""
    import numpy as np

    table = np.loadtxt(source / "mnist_5k.csv.gz", delimiter=",", dtype=np.uint8)
    images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1]
    np.savez_compressed(target / "digits.npz", images=images, labels=labels)


def mnist_download(source: Path, target: Path) -> None:
    """All digits through torchvision, which checks what it downloads; training digits first."""
    import numpy as np
    from torchvision.datasets import MNIST

    try:
        parts = [MNIST(source, train=train, download=True) for train in (True, False)]
    except (URLError, RuntimeError) as error:
        raise AssetMissing(
            "The full MNIST cannot be reached from here; the course's 5000 digits need no download."
        ) from error
    images = np.concatenate([part.data.numpy() for part in parts])
    labels = np.concatenate([part.targets.numpy() for part in parts]).astype(np.uint8)
    np.savez_compressed(target / "digits.npz", images=images, labels=labels)


def _quiet() -> None:
    """The libraries' own progress bars would run across ours; tqdm reads this when imported."""
    os.environ.update(TQDM_DISABLE="1", TRANSFORMERS_VERBOSITY="error")
