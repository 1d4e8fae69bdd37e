from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from runner.errors import RunFailed
from runner.evaluation.parity import Parity
from runner.models.handle import ModelHandle
from runner.models.torch_source import load_torch
from runner.models.twin import architecture_of
from runner.passes.export.tiny_twin import make_twin


def twin_of(model_id: str, folder: Path) -> ModelHandle:
    twin = architecture_of(model_id)
    return make_twin(twin, twin.task, folder)


def exported(source: ModelHandle, folder: Path, inputs: dict[str, torch.Tensor], outputs: list[str]) -> ModelHandle:
    """The source's graph by torch's exporter; batch and length are open where the inputs are words."""
    folder.mkdir()
    open_axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    torch.onnx.export(
        load_torch(source),
        kwargs=inputs,
        f=folder / "model.onnx",
        input_names=list(inputs),
        output_names=outputs,
        dynamic_shapes=dict.fromkeys(inputs, open_axes) if "input_ids" in inputs else None,
        external_data=False,
        dynamo=True,
        verbose=False,
    )
    return ModelHandle("onnx", folder, "model.onnx", source.task)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelHandle, ModelHandle]:
    folder = tmp_path_factory.mktemp("encoder")
    source = twin_of("sentence-transformers/all-MiniLM-L6-v2", folder / "source")
    ids = torch.ones(2, 8, dtype=torch.long)
    mask = ids.clone()
    mask[0, 5:] = 0  # a mask without padding lets transformers leave it out of the graph
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids * 0}
    return source, exported(source, folder / "onnx", given, ["last_hidden_state", "pooler_output"])


def edited(model: ModelHandle, folder: Path, change) -> ModelHandle:
    folder.mkdir()
    graph = onnx.load(model.path)
    change(graph)
    onnx.save(graph, folder / "model.onnx")
    return ModelHandle("onnx", folder, "model.onnx", model.task)


def test_an_exported_encoder_equals_its_source(encoder):
    source, graph = encoder
    compared = Parity(source, 2).compare(graph)
    assert compared["numeric"] is True
    assert compared["inputs"]["input_ids"][0] == 2
    for output in ("last_hidden_state", "pooler_output"):
        assert compared["outputs"][output]["max_abs_diff"] < 1e-4
        assert compared["outputs"][output]["cosine"] == pytest.approx(1.0)


def test_a_graph_that_forgot_its_mask_is_seen(encoder, tmp_path: Path):
    source, _ = encoder
    ids = torch.ones(2, 8, dtype=torch.long)
    given = {"input_ids": ids, "attention_mask": ids, "token_type_ids": ids * 0}
    graph = exported(source, tmp_path / "unmasked", given, ["last_hidden_state", "pooler_output"])
    assert Parity(source, 2).compare(graph)["outputs"]["last_hidden_state"]["cosine"] < 0.99


def test_changed_weights_are_seen(encoder, tmp_path: Path):
    source, graph = encoder

    def disturb(model: onnx.ModelProto) -> None:
        weight = max(model.graph.initializer, key=lambda one: len(one.raw_data))
        noisy = numpy_helper.to_array(weight) + np.random.default_rng(0).normal(0, 0.2, weight.dims).astype(np.float32)
        weight.CopyFrom(numpy_helper.from_array(noisy, weight.name))

    compared = Parity(source, 2).compare(edited(graph, tmp_path / "noisy", disturb))
    assert compared["outputs"]["last_hidden_state"]["cosine"] < 0.9999


def test_nan_is_an_error(encoder, tmp_path: Path):
    source, graph = encoder

    def spoil(model: onnx.ModelProto) -> None:
        weight = max(model.graph.initializer, key=lambda one: len(one.raw_data))
        weight.CopyFrom(numpy_helper.from_array(np.full(weight.dims, np.nan, np.float32), weight.name))

    with pytest.raises(RunFailed, match="output-not-finite"):
        Parity(source, 2).compare(edited(graph, tmp_path / "nan", spoil))


def test_a_graph_that_does_not_load_is_an_error(encoder, tmp_path: Path):
    source, _ = encoder
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(RunFailed, match="output-does-not-run"):
        Parity(source, 2).compare(ModelHandle("onnx", tmp_path, "model.onnx", source.task))


def test_an_operator_of_another_provider(encoder, tmp_path: Path):
    source, graph = encoder

    def replace_op(model: onnx.ModelProto) -> None:
        node = next(one for one in model.graph.node if one.op_type == "LayerNormalization")
        node.op_type, node.domain = "GroupNorm", "com.microsoft"
        del node.attribute[:]
        node.attribute.extend([helper.make_attribute("groups", 1), helper.make_attribute("activation", 0)])
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        del model.graph.value_info[:]

    foreign = edited(graph, tmp_path / "foreign", replace_op)
    compared = Parity(source, 2, target="cuda").compare(foreign)
    assert compared["numeric"] is False
    assert "no kernel" in compared["reason"]
    with pytest.raises(RunFailed, match="output-does-not-run"):
        Parity(source, 2).compare(foreign)


def test_outputs_of_other_names_are_compared_in_their_order(encoder, tmp_path: Path):
    source, graph = encoder

    def rename(model: onnx.ModelProto) -> None:
        for at, output in enumerate(model.graph.output):
            model.graph.node.append(helper.make_node("Identity", [output.name], [f"renamed_{at}"]))
            output.name = f"renamed_{at}"

    compared = Parity(source, 2).compare(edited(graph, tmp_path / "renamed", rename))
    assert compared["outputs"]["renamed_0"]["cosine"] > 0.9999


def test_other_outputs_are_recorded(encoder, tmp_path: Path):
    source, graph = encoder

    def put_out_another(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("Shape", [model.graph.output[0].name], ["shape"]))
        model.graph.ClearField("output")
        model.graph.output.append(helper.make_tensor_value_info("shape", onnx.TensorProto.INT64, [None]))

    compared = Parity(source, 2).compare(edited(graph, tmp_path / "other", put_out_another))
    assert compared["numeric"] is False
    assert "shape" in compared["reason"]


def test_fixed_axes_and_half_precision_inputs(tmp_path: Path):
    source = twin_of("google/vit-base-patch16-224", tmp_path / "source")
    graph = exported(source, tmp_path / "fixed", {"pixel_values": torch.zeros(1, 3, 224, 224)}, ["logits"])
    compared = Parity(source, 2).compare(graph)
    assert compared["inputs"]["pixel_values"] == [1, 3, 224, 224]
    assert compared["outputs"]["logits"]["top1_agreement"] == 1.0

    def halve_input(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
        model.graph.node.insert(0, helper.make_node("Cast", ["pixel_values"], ["wide"], to=TensorProto.FLOAT))
        for node in model.graph.node[1:]:
            node.input[:] = ["wide" if name == "pixel_values" else name for name in node.input]

    halved = Parity(source, 2).compare(edited(graph, tmp_path / "half", halve_input))
    assert halved["outputs"]["logits"]["cosine"] > 0.999


def test_torch_against_torch(tmp_path: Path):
    source = twin_of("FacebookAI/roberta-base", tmp_path / "source")
    compared = Parity(source, 2).compare(source)
    assert compared["outputs"]["logits"] == {"max_abs_diff": 0.0, "cosine": pytest.approx(1.0), "top1_agreement": 1.0}


def test_onnx_against_onnx(encoder):
    _, graph = encoder
    assert Parity(graph, 2).compare(graph)["outputs"]["pooler_output"]["max_abs_diff"] == 0.0


def test_a_scripted_source(tmp_path: Path):
    script = tmp_path / "user_script.py"
    script.write_text(
        "import torch\n"
        "def load(model_path):\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Linear(4, 2)\n"
        "def inputs(model):\n"
        "    return {'input': torch.ones(3, 4)}\n"
    )
    attributes = {"model_script": str(script), "model_loader": "load", "dummy_inputs_func": "inputs"}
    source = ModelHandle("pytorch", tmp_path, None, None, attributes)
    compared = Parity(source, 1).compare(source)
    assert compared["inputs"] == {"input": [3, 4]}
    assert compared["outputs"]["output_0"]["max_abs_diff"] == 0.0
