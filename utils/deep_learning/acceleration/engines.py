"""A second engine: the network as an ONNX graph, run by ONNX Runtime, in float32 and in int8.

An engine that has the whole graph before the first image can fuse operations, lay out weights once
and choose kernels; PyTorch meets one operation at a time. ONNX is the exchange format, and this
engine also has int8 kernels for most CPUs. Source: ONNX Runtime, "Quantize ONNX Models".
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import onnx
import onnxruntime
import torch
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn
from tqdm import tqdm

from utils.deep_learning import digits
from utils.deep_learning.acceleration.measure import Variant

CALIBRATION = 200  # digits to train on that static quantisation looks at


@lru_cache(maxsize=4)  # making one takes seconds
def graph_of(model: nn.Module) -> onnx.ModelProto:
    """`model` as an ONNX graph from "images" (n, 1, 28, 28) to "logits" (n, 10), n being free.

    Who changes the model afterwards needs a copy of it for a new graph.
    """
    with _no_monitor():
        program = torch.onnx.export(
            model,
            (torch.zeros(2, 1, 28, 28),),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            dynamo=True,
            verbose=False,
        )
    return program.model_proto


@contextmanager
def _no_monitor() -> Iterator[None]:
    """The export has a progress bar, whose monitor is a thread that would stay for ever."""
    before, tqdm.monitor_interval = tqdm.monitor_interval, 0
    try:
        yield
    finally:
        tqdm.monitor_interval = before


def answering(graph: onnx.ModelProto, threads: int = 1) -> Callable[[Tensor], Tensor]:
    """A session that runs `graph` with `threads` threads: images to logits, both float32."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Idle threads of a pool may spin for more work; here they would slow down what is next in turn.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def parameter_bytes(graph: onnx.ModelProto) -> int:
    """Bytes of all constants of the graph: weights, biases, scales, zeros."""
    return sum(onnx.numpy_helper.to_array(entry).nbytes for entry in graph.graph.initializer)


def dynamic(graph: onnx.ModelProto, seven_bits: bool = True) -> onnx.ModelProto:
    """The graph with int8 weights; every batch measures its activations anew.

    `seven_bits` leaves one bit of the weights unused, so that no kernel can saturate
    (`integer.saturating_sums`); ONNX Runtime calls it `reduce_range`.
    """

    def quantise(source: Path, target: Path) -> None:
        quantization.quantize_dynamic(
            source,
            target,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=seven_bits,
        )

    return _converted(graph, quantise)


def static(graph: onnx.ModelProto, seven_bits: bool = True) -> onnx.ModelProto:
    """The graph with int8 weights and activations whose ranges `CALIBRATION` digits have shown."""

    def quantise(source: Path, target: Path) -> None:
        quantization.quantize_static(
            source,
            target,
            _Examples(digits.load()[0].images[:CALIBRATION]),
            quant_format=quantization.QuantFormat.QDQ,
            weight_type=quantization.QuantType.QInt8,
            activation_type=quantization.QuantType.QUInt8,
            per_channel=True,
            reduce_range=seven_bits,
        )

    return _converted(graph, quantise)


def variants(graph: onnx.ModelProto, macs: int, threads: int = 1) -> dict[str, Variant]:
    """The engine's float32, dynamic and static int8; all do `macs` multiply-adds an image."""
    made = {
        "ONNX Runtime": graph,
        "int8 dynamic": dynamic(graph),
        "int8 static": static(graph),
    }
    return {
        name: Variant(answering(form, threads), parameter_bytes(form), macs)
        for name, form in made.items()
    }


class _Examples(quantization.CalibrationDataReader):
    """Hands the engine images to look at, some at a time, and None after the last."""

    def __init__(self, images: Tensor) -> None:
        self._parts = iter(images.split(50))

    def get_next(self) -> dict | None:
        part = next(self._parts, None)
        return None if part is None else {"images": part.numpy()}


def _converted(graph: onnx.ModelProto, quantise: Callable[[Path, Path], None]) -> onnx.ModelProto:
    """The library's converters work on files."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "prepared.onnx"), Path(folder, "quantised.onnx")
        quant_pre_process(graph, source)
        quantise(source, target)
        return onnx.load(target)
