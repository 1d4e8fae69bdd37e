"""Scripts in the shape that published recipes give them: exported, compared with their source, and named where they fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.errors import InvalidRecipe, RunFailed
from runner.evaluation.parity import Parity
from runner.models.handle import ModelHandle
from runner.models.session import open_session

NEIGHBOUR = """
import torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.proj = torch.nn.Linear(12, 16)
        self.embed = torch.nn.Embedding(50, 16)

    def get_image_features(self, pixel_values, image_grid_thw=None, return_dict: bool = True):
        return self.proj(pixel_values).tanh() * image_grid_thw.prod(-1).sum()

    def forward(self, input_ids, image_features=None):
        embedded = self.embed(input_ids)
        return embedded.masked_scatter((input_ids == 7).unsqueeze(-1).expand_as(embedded), image_features)
"""
SCRIPT = """
import sys
from pathlib import Path

import torch
from olive.constants import Framework
from olive.data.registry import Registry
from olive.model import PyTorchModelHandler

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from codes.modeling import Model

@Registry.register_dataset()
def made_up_dataset(**kwargs):
    return []

def get_vision_model(model_path=None):
    model = Model()
    model.forward, model.get_image_features = model.get_image_features, model.forward
    return model

def get_vision_io_config(model_path=None):
    return {
        "input_names": ["pixel_values", "image_grid_thw"],
        "output_names": ["image_features"],
        "dynamic_shapes": {"pixel_values": {0: "num_patches"}, "image_grid_thw": None},
    }

def get_vision_dummy_inputs(model: PyTorchModelHandler = None):
    return {"pixel_values": torch.randn(24, 12), "image_grid_thw": torch.tensor([[1, 4, 6]])}

def get_embedding_model(model_path=None):
    return Model()

def get_embedding_dummy_inputs(model):
    assert model.model_path == "owner/some-model"
    ids = torch.randint(8, 50, (2, 9))
    ids[:, 3:6] = 7
    return {"input_ids": ids, "image_features": torch.randn(6, 16)}

class Unet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.conv = torch.nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, sample, timestep, encoder_hidden_states, return_dict=True):
        made = self.conv(sample) + timestep.reshape(-1, 1, 1, 1) + encoder_hidden_states.mean()
        return {"sample": made} if return_dict else (made,)

def unet_load(model_name):
    return Unet()

def unet_inputs(model=None):
    return {"encoder_hidden_states": torch.randn(1, 7, 6), "sample": torch.randn(1, 4, 8, 8), "timestep": torch.rand(1),
            "return_dict": False}

def returns_nothing(model_path):
    return None

def raises(model_path):
    raise FileNotFoundError("no weights at " + str(model_path))

def needs_olive(model_path):
    from olive.systems.docker import DockerSystem
"""
AXES = {"0": "batch", "1": "channels", "2": "height", "3": "width"}
UNET_IO = {
    "input_names": ["sample", "timestep", "encoder_hidden_states", "return_dict"],
    "output_names": ["out_sample"],
    "dynamic_axes": {"sample": AXES, "timestep": {"0": "batch"}, "encoder_hidden_states": {"0": "states", "1": "length"}},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as published recipes have it: scripts by device, shared code beside them."""
    for name, text in {"codes/__init__.py": "", "codes/modeling.py": NEIGHBOUR, "cpu/user_script.py": SCRIPT}.items():
        (tmp_path / "recipe" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "recipe" / name).write_text(text)
    return tmp_path / "recipe"


def model(folder: Path, loader: str, **attributes: Any) -> ModelHandle:
    script = folder / "cpu" / "user_script.py"
    facts = {"model_script": str(script), "model_loader": loader, "model_path": "owner/some-model", **attributes}
    return ModelHandle("pytorch", script.parent, None, None, facts)


def described(made: ModelHandle) -> dict[str, list[Any]]:
    session = open_session(made, 1)
    return {one.name: one.shape for one in (*session.get_inputs(), *session.get_outputs())}


def test_forward_that_was_swapped_and_dynamic_shapes_of_a_function(folder: Path, apply_pass: Any) -> None:
    source = model(
        folder, "get_vision_model", io_config="get_vision_io_config", dummy_inputs_func="get_vision_dummy_inputs"
    )  # fmt: skip
    made = apply_pass("OnnxConversion", source, use_dynamo_exporter=True)
    assert described(made)["pixel_values"] == ["num_patches", 12]
    assert Parity(source, 1).compare(made)["outputs"]["image_features"]["cosine"] > 0.9999


def test_dynamic_axes_through_the_tracing_exporter(folder: Path, apply_pass: Any) -> None:
    io = {
        "input_names": ["input_ids", "image_features"],
        "output_names": ["inputs_embeds"],
        "dynamic_axes": {"input_ids": {"0": "batch_size", "1": "sequence_length"}, "image_features": {"0": "patches"}},
    }
    source = model(folder, "get_embedding_model", io_config=io, dummy_inputs_func="get_embedding_dummy_inputs")
    made = apply_pass("OnnxConversion", source, use_dynamo_exporter=False)
    shapes = described(made)
    assert shapes["input_ids"] == ["batch_size", "sequence_length"]
    assert shapes["image_features"] == ["patches", 16]
    assert Parity(source, 1).compare(made)["numeric"]
    assert not {"model_path", "io_config", "model_script"} & set(made.attributes)


@pytest.mark.parametrize("options", [{"target_opset": 17}, {"use_dynamo_exporter": True}], ids=["tracing", "dynamo"])
def test_switches_among_the_inputs_and_axes_of_one(folder: Path, apply_pass: Any, options: dict[str, Any]) -> None:
    source = model(folder, "unet_load", io_config=UNET_IO, dummy_inputs_func="unet_inputs")
    made = apply_pass("OnnxConversion", source, **options)
    session = open_session(made, 1)
    assert [one.name for one in session.get_inputs()] == ["sample", "timestep", "encoder_hidden_states"]
    random = np.random.default_rng(0)
    feed = {
        "sample": random.standard_normal((3, 4, 6, 10)).astype(np.float32),
        "timestep": random.random(3).astype(np.float32),
        "encoder_hidden_states": random.standard_normal((3, 5, 6)).astype(np.float32),
    }
    assert session.run(["out_sample"], feed)[0].shape == (3, 4, 6, 10)


def test_types_and_sizes_as_text(folder: Path, apply_pass: Any) -> None:
    io = {
        "input_names": ["input_ids", "image_features"], "input_types": ["int32", "float32"], "input_shapes": [[2, 6], [12, 16]],
        "output_names": ["inputs_embeds"], "dynamic_axes": {"input_ids": [0], "inputs_embeds": {"0": "n", "1": "6"}},
        "string_to_int_dim_params": ["6"],
    }  # fmt: skip
    (folder / "cpu" / "config.json").write_text('{"vocab_size": 50}')
    made = apply_pass("OnnxConversion", model(folder, "get_embedding_model", io_config=io), use_dynamo_exporter=False)
    assert open_session(made, 1).get_inputs()[0].type == "tensor(int32)"
    assert described(made)["inputs_embeds"] == ["n", 6, 16]


@pytest.mark.parametrize(
    ("loader", "told"),
    [
        ("returns_nothing", "returned nothing"),
        ("raises", "raises.. raised FileNotFoundError: no weights at owner"),
        ("needs_olive", "olive"),
    ],
)
def test_loader_that_fails(folder: Path, apply_pass: Any, loader: str, told: str) -> None:
    with pytest.raises(RunFailed, match=told):
        apply_pass("OnnxConversion", model(folder, loader, io_config=UNET_IO, dummy_inputs_func="unet_inputs"))


@pytest.mark.parametrize(
    ("io", "told"),
    [
        ({"input_name": ["x"]}, "did you mean 'input_names'"),
        ({"input_names": ["x", "y"], "input_shapes": [[1]]}, "2 inputs and has 1 input_shapes"),
    ],
)
def test_io_config_that_cannot_be(folder: Path, apply_pass: Any, io: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidRecipe, match=told):
        apply_pass("OnnxConversion", model(folder, "unet_load", io_config=io))


def test_example_with_an_input_that_forward_does_not_take(folder: Path, apply_pass: Any) -> None:
    source = model(folder, "get_embedding_model", dummy_inputs_func="get_vision_dummy_inputs")
    with pytest.raises(RunFailed, match="cannot export"):
        apply_pass("OnnxConversion", source, use_dynamo_exporter=False)


@pytest.mark.parametrize(
    "options", [{"use_dynamo_exporter": True, "target_opset": 17}, {"use_dynamo_exporter": False, "target_opset": 21}]
)
def test_opset_that_an_exporter_does_not_write(folder: Path, apply_pass: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="leave"):
        apply_pass("OnnxConversion", model(folder, "unet_load"), **options)
