"""Conversion keeps the numbers, leaves sizes free, and says what is wrong."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from runner.data.scripted_model import load_module
from runner.errors import InvalidRecipe, RunFailed, TargetUnavailable
from runner.models.handle import ModelHandle
from runner.models.session import open_session
from runner.models.torch_source import load_torch
from runner.passes.export.torch_export import Export

EXPORTERS = [{}, {"target_opset": 18, "use_dynamo_exporter": True}, {"use_dynamo_exporter": False}]


def padded(batch: int, length: int, side: str = "right") -> dict[str, np.ndarray]:
    generator = np.random.default_rng(batch * length)
    mask = np.ones((batch, length), np.int64)
    shorter = slice(length - length // 3, None) if side == "right" else slice(0, length // 3)
    mask[-1, shorter] = 0
    ids = generator.integers(5, 30, (batch, length))
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def in_torch(model: ModelHandle, inputs: dict[str, np.ndarray], output: str) -> np.ndarray:
    with torch.no_grad():
        result = load_module(model)(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    return result[output].numpy()


def operators(model: ModelHandle) -> list[str]:
    return [node.op_type for node in onnx.load(model.path).graph.node]


@pytest.mark.parametrize("options", EXPORTERS, ids=["opset-23", "opset-18", "tracing"])
def test_text_model_with_padding_and_free_sizes(tiny_bert, apply_pass, options):
    made = apply_pass("OnnxConversion", tiny_bert, **options)
    session = open_session(made, 1)
    assert [value.shape for value in session.get_inputs()] == [["batch", "sequence"]] * 3
    for inputs in (padded(1, 5), padded(3, 17), padded(2, 40, "left")):
        ours = session.run(None, inputs)[0]
        real = inputs["attention_mask"].astype(bool)
        np.testing.assert_allclose(ours[real], in_torch(tiny_bert, inputs, "last_hidden_state")[real], atol=1e-5)


def test_default_opset_has_attention_and_gelu_in_one_node_each(exported_bert):
    assert operators(exported_bert).count("Attention") == 2
    assert operators(exported_bert).count("Gelu") == 2
    assert exported_bert.attributes["opset"] == 23


@pytest.mark.parametrize("exporter", ["exported_bert", "traced_bert"])
def test_nodes_are_named_by_their_module(exporter, request):
    nodes = onnx.load(request.getfixturevalue(exporter).path).graph.node
    names = [node.name for node in nodes]
    assert not any(node.metadata_props or node.doc_string for node in nodes)
    assert "/model/encoder/layer.1/output/dense/MatMul" in names
    assert len(set(names)) == len(names)


def test_companions_go_along_and_weights_stay(exported_bert):
    names = {path.name for path in exported_bert.folder.iterdir()}
    assert {"model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    assert not any(name.endswith(".safetensors") for name in names)


def test_attributes_say_what_the_model_is(exported_bert):
    facts = exported_bert.attributes
    assert (facts["model_type"], facts["hidden_size"], facts["num_attention_heads"]) == ("bert", 32, 4)
    assert facts["architecture"] == "BertModel"


@pytest.mark.parametrize("fixture", ["tiny_masked_bert", "tiny_classifier"])
def test_heads(fixture, request, apply_pass):
    model = request.getfixturevalue(fixture)
    inputs = padded(2, 9)
    ours = open_session(apply_pass("OnnxConversion", model), 1).run(["logits"], inputs)[0]
    theirs = in_torch(model, inputs, "logits")
    real = inputs["attention_mask"].astype(bool) if ours.ndim == 3 else slice(None)
    np.testing.assert_allclose(ours[real], theirs[real], atol=1e-5)


def test_text_generation_without_cache(tiny_llama, apply_pass):
    inputs = {name: array for name, array in padded(2, 11).items() if name != "token_type_ids"}
    inputs["attention_mask"][:] = 1
    ours = open_session(apply_pass("OnnxConversion", tiny_llama), 1).run(["logits"], inputs)[0]
    np.testing.assert_allclose(ours, in_torch(tiny_llama, inputs, "logits"), atol=1e-4)


@pytest.mark.parametrize("options", EXPORTERS, ids=["opset-23", "opset-18", "tracing"])
def test_image_model(tiny_resnet, apply_pass, options):
    made = apply_pass("OnnxConversion", tiny_resnet, **options)
    pixels = {"pixel_values": np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)}
    ours = open_session(made, 1).run(None, pixels)[0]
    np.testing.assert_allclose(ours, in_torch(tiny_resnet, pixels, "logits"), atol=1e-4)
    assert (made.folder / "preprocessor_config.json").is_file()


def test_fixed_sizes(tiny_bert, apply_pass):
    session = open_session(apply_pass("OnnxConversion", tiny_bert, dynamic=False), 1)
    assert session.get_inputs()[0].shape == [1, 64]  # as many positions as the model has


def test_half_precision(tiny_resnet, apply_pass):
    made = apply_pass("OnnxConversion", tiny_resnet, torch_dtype="float16")
    assert open_session(made, 1).get_inputs()[0].type == "tensor(float16)"


def test_external_data(tiny_bert, apply_pass):
    made = apply_pass(
        "OnnxConversion", tiny_bert, save_as_external_data=True, external_data_name="weights.pb", size_threshold=0
    )
    assert (made.folder / "weights.pb").stat().st_size > 10_000
    open_session(made, 1)


SCRIPT = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 2)
    def forward(self, x):
        return self.linear(x).relu()

def load(path):
    torch.manual_seed(1)
    return Net()

def example(model):
    return {"x": torch.ones(2, 4)}

def io_config(model):
    return {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": {"x": {"0": "batch"}, "y": {"0": "batch"}}}

def raising(model):
    raise KeyError("no example")

class Branching(Net):
    def forward(self, x):
        return x if x.sum() > 0 else -x

def load_branching(path):
    return Branching()
"""


def scripted(tmp_path, **attributes) -> ModelHandle:
    (tmp_path / "model.py").write_text(SCRIPT)
    facts = {"model_script": str(tmp_path / "model.py"), "model_loader": "load", "model_path": "weights", **attributes}
    return ModelHandle("pytorch", tmp_path, None, None, facts)


@pytest.mark.parametrize("options", [{}, {"use_dynamo_exporter": False}], ids=["dynamo", "tracing"])
@pytest.mark.parametrize(
    "attributes",
    [
        {"dummy_inputs_func": "example", "io_config": "io_config"},
        {
            "io_config": {
                "input_names": ["x"],
                "input_shapes": [[2, 4]],
                "output_names": ["y"],
                "dynamic_axes": {"x": {"0": "batch"}},
            }
        },
    ],
    ids=["functions", "mapping"],
)
def test_scripted_model(tmp_path, apply_pass, options, attributes):
    model = scripted(tmp_path, **attributes)
    made = apply_pass("OnnxConversion", model, **options)
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    ours = open_session(made, 1).run(["y"], {"x": x})[0]
    np.testing.assert_allclose(ours, load_module(model)(torch.from_numpy(x)).detach().numpy(), atol=1e-6)
    assert "model_script" not in made.attributes


def test_scripted_model_without_inputs_says_what_to_set(tmp_path, apply_pass):
    with pytest.raises(InvalidRecipe, match="dummy_inputs_func"):
        apply_pass("OnnxConversion", scripted(tmp_path))


def test_function_that_raises_is_named(tmp_path, apply_pass):
    with pytest.raises(RunFailed, match=r"raising\(\) raised KeyError"):
        apply_pass("OnnxConversion", scripted(tmp_path, dummy_inputs_func="raising"))


def test_model_that_torch_cannot_export(tmp_path, apply_pass):
    model = scripted(tmp_path, model_loader="load_branching", dummy_inputs_func="example")
    with pytest.raises(RunFailed, match="try another exporter"):
        apply_pass("OnnxConversion", model)


def test_unknown_task(tiny_bert, apply_pass):
    model = ModelHandle("hf", tiny_bert.folder, None, "text-clasification")
    with pytest.raises(InvalidRecipe, match="did you mean 'text-classification'"):
        apply_pass("OnnxConversion", model)


def test_device_that_is_not_here(tiny_bert, apply_pass):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(TargetUnavailable, match="CUDA"):
        apply_pass("OnnxConversion", tiny_bert, device="cuda")


def test_unknown_type(tiny_bert, apply_pass):
    with pytest.raises(InvalidRecipe, match="float32, float16"):
        apply_pass("OnnxConversion", tiny_bert, torch_dtype="flot16")


def test_frequencies_of_a_rotation_stay_in_full_precision(tiny_llama):
    module = load_torch(tiny_llama)
    before = module.model.rotary_emb.inv_freq.clone()
    export = Export(module, (torch.ones(1, 4),), {}, ["x"], None, {}).placed(None, "float16")
    assert export.args[0].dtype == module.lm_head.weight.dtype == torch.float16
    assert torch.equal(module.model.rotary_emb.inv_freq, before)
