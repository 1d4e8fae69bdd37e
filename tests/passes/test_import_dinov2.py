"""DINOv2's weights come back out of a traced graph exactly, whatever stands on top of them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from runner.errors import ModelUnavailable, RunFailed
from runner.models.handle import ModelHandle
from runner.passes.declaration import PassContext
from runner.passes.export.import_dinov2 import PASS, ImportDinov2Options
from runner.targets.target import TARGETS

TASK = "image-feature-extraction"
LINEAR = ("query.weight", "key.weight", "value.weight", "dense.weight", "fc1.weight", "fc2.weight")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, patch_size=14, image_size=56
    )  # fmt: skip
    Dinov2Model(config).save_pretrained(folder)
    return folder


def traced(source: Path, written: Path, leave_out: str = "") -> ModelHandle:
    """The weights as the tracing exporter leaves them below a detector: linear ones transposed, positions cut in two."""
    from safetensors.numpy import load_file

    initializers, nodes = [tensor("head.weight", np.ones((128, 3), np.float32))], []
    for name, array in load_file(source / "model.safetensors").items():
        if name == leave_out or name == "embeddings.mask_token":
            continue
        if name == "embeddings.position_embeddings":
            initializers += [tensor("onnx::Concat_1", array[:, :1]), tensor("onnx::Reshape_2", array[:, 1:])]
        elif name.endswith(LINEAR):
            anonymous = f"onnx::MatMul_{len(initializers)}"
            initializers.append(tensor(anonymous, array.T))
            scope = "/backbone/" + name.removesuffix(".weight").replace(".", "/").replace("layer/", "layer.")
            nodes.append(helper.make_node("MatMul", ["x", anonymous], [anonymous + "_out"], name=f"{scope}/MatMul"))
        else:
            initializers.append(tensor(f"backbone.{name}", array))
    nodes.append(helper.make_node("MatMul", ["x", "head.weight"], ["y"], name="/head/MatMul"))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy")
    onnx.save(helper.make_model(helper.make_graph(nodes, "traced", [x], [y], initializers)), written)
    return ModelHandle("onnx", written.parent, written.name, TASK)


def tensor(name: str, array: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(array), name)


def imported(model: ModelHandle, tmp_path: Path) -> ModelHandle:
    output, scratch = tmp_path / "output", tmp_path / "scratch"
    output.mkdir()
    scratch.mkdir()
    context = PassContext(output, scratch, TARGETS["cpu"], 1, lambda name: iter(()), lambda text: None)
    return PASS.apply(model, ImportDinov2Options(), context)


def test_the_model_answers_as_before_and_knows_how_to_take_pictures(source: Path, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, Dinov2Model

    made = imported(traced(source, tmp_path / "detector.onnx"), tmp_path)
    assert (made.kind, made.task) == ("hf", TASK)
    pixels = torch.randn(2, 3, 42, 42, generator=torch.Generator().manual_seed(1))
    theirs, ours = (Dinov2Model.from_pretrained(folder).eval() for folder in (source, made.folder))
    with torch.no_grad():
        assert torch.equal(theirs(pixels).last_hidden_state, ours(pixels).last_hidden_state)
    processor = AutoImageProcessor.from_pretrained(made.folder, backend="pil")
    assert processor(np.zeros((300, 400, 3), np.uint8), return_tensors="np")["pixel_values"].shape == (1, 3, 224, 224)


@pytest.mark.parametrize("name", ["encoder.layer.1.norm1.bias", "encoder.layer.0.mlp.fc2.weight", "layernorm.weight"])
def test_a_missing_weight_is_named(source: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelUnavailable, match=r"not those of a DINOv2 model"):
        imported(traced(source, tmp_path / "detector.onnx", leave_out=name), tmp_path)


def test_missing_positions(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="no position embedding"):
        imported(traced(source, tmp_path / "detector.onnx", leave_out="embeddings.position_embeddings"), tmp_path)


def test_another_graph_is_refused(exported_resnet: ModelHandle, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="no patch embedding of DINOv2"):
        imported(exported_resnet, tmp_path)
