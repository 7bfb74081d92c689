"""A checkpoint's shape and parameters are read as they are meant, or refused by name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from utils.core.workers import intra_op
from utils.llm import weights
from utils.llm.weights import UnsupportedModel

PROMPT = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3]])


@pytest.fixture(autouse=True)
def one_thread():
    with intra_op(1):
        yield


def checkpoint(folder, **changes):
    """A random model of transformers', saved in `folder`."""
    shape = {
        "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    }  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**shape | changes)).eval()
    with torch.no_grad():  # the library starts norms at 1, with which a missing one would not show
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return model


def edit(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": True},
        {"tie_word_embeddings": False},
        {"num_key_value_heads": 1},
        {"num_key_value_heads": 4},
        {"head_dim": 16},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"rms_norm_eps": 0.1},
    ],
    ids=lambda changes: "-".join(map(str, next(iter(changes.items()))))[:40],
)
@torch.inference_mode()
def test_any_shape_gives_the_library_s_logits(tmp_path, changes) -> None:
    reference = checkpoint(tmp_path, **changes)
    expected = reference(PROMPT).logits
    torch.testing.assert_close(weights.load(tmp_path)(PROMPT), expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_an_old_config_has_its_theta_outside_and_may_say_less(tmp_path) -> None:
    changes = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
    expected = checkpoint(tmp_path, num_key_value_heads=4, **changes)(PROMPT).logits
    edit(tmp_path, rope_parameters=None, rope_theta=500.0, num_key_value_heads=None, head_dim=None)
    torch.testing.assert_close(weights.load(tmp_path)(PROMPT), expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_parameters_in_several_files_and_in_half_precision(tmp_path) -> None:
    checkpoint(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    expected = weights.load(tmp_path)(PROMPT)
    (tmp_path / "model.safetensors").unlink()
    names = sorted(state)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: state[name].half() for name in part}, tmp_path / f"m-{number}.safetensors")
    model = weights.load(tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    torch.testing.assert_close(model(PROMPT), expected, rtol=0.02, atol=0.2)


def test_a_loaded_model_is_ready_and_wants_no_gradient(tmp_path) -> None:
    checkpoint(tmp_path)
    model = weights.load(tmp_path)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.lm_head.weight is model.embed_tokens.weight


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "qwen2"}, "model_type='qwen2'"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8}}, "rope_type='llama3'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "rope_type='linear'"),
        ({"num_hidden_layers": 3}, "layers.2"),
        ({"intermediate_size": 40}, "gate_proj"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_decoder_does_not_compute_is_refused(tmp_path, changes, named) -> None:
    checkpoint(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(UnsupportedModel, match=named):
        weights.load(tmp_path)


@pytest.mark.parametrize("gone", ["model.norm.weight", "model.embed_tokens.weight"])
def test_a_missing_parameter_is_named(tmp_path, gone) -> None:
    checkpoint(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state[gone]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModel, match=gone.removeprefix("model.")):
        weights.load(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path, name) -> None:
    checkpoint(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name.removeprefix("model")):
        weights.load(tmp_path)
