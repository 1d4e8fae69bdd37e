"""What graphs for GPUs are made of: patches by a product, attention without needless biases, UNets in half precision."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers

from runner.models.handle import ModelHandle
from runner.models.session import open_session
from runner.models.torch_source import load_torch
from runner.models.twin import architecture_of
from runner.passes.export.tiny_twin import make_twin

LAYERS = 2
FUSED: Mapping[str, Any] = {"use_multi_head_attention": True, "fold_attention_biases": True, "use_product_for_patches": True}
Apply = Callable[..., ModelHandle]


def with_biases(folder: Path, source: str, task: str) -> ModelHandle:
    """Returns a tiny twin whose biases, tokens and places are no zeros."""
    twin = make_twin(architecture_of(source), task, folder)
    auto = transformers.AutoModelForImageClassification if task == "image-classification" else transformers.AutoModel
    module = auto.from_pretrained(twin.folder)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if name.endswith("bias") or "embeddings" in name:
                weight.normal_(std=0.3)
    module.save_pretrained(twin.folder)
    return twin


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return with_biases(tmp_path_factory.mktemp("vit"), "google/vit-base-patch16-224", "image-classification")


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return with_biases(tmp_path_factory.mktemp("dinov2"), "facebook/dinov2-small", "image-feature-extraction")


def operators(model: ModelHandle) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(model.folder / model.file, load_external_data=False).graph.node)


def outputs(model: ModelHandle, feed: dict[str, np.ndarray[Any, Any]], name: str) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = open_session(model, 1).run([name], feed)[0]
    return found


def picture(model: ModelHandle) -> dict[str, np.ndarray[Any, Any]]:
    (value,) = open_session(model, 1).get_inputs()
    sides = [size if isinstance(size, int) else 224 for size in value.shape[1:]]
    return {value.name: np.random.default_rng(0).standard_normal((3, *sides)).astype(np.float32)}


@pytest.mark.parametrize(("name", "output"), [("vit", "logits"), ("dinov2", "last_hidden_state")])
def test_a_vision_transformer_is_the_same_by_products(
    name: str, output: str, request: pytest.FixtureRequest, apply_pass: Apply
) -> None:
    source: ModelHandle = request.getfixturevalue(name)
    exported = apply_pass("OnnxConversion", source)
    plain = apply_pass("OnnxPeepholeOptimizer", exported, use_multi_head_attention=True)
    made = apply_pass("OnnxPeepholeOptimizer", exported, **FUSED)
    assert operators(plain)["Conv"] == 1
    assert operators(made)["Conv"] == 0
    assert operators(made)["MultiHeadAttention"] == LAYERS
    assert f"{2 * LAYERS} biases of keys and values are no longer added" in apply_pass.said  # type: ignore[attr-defined]
    feed = picture(made)
    with torch.inference_mode():
        expected = load_torch(source)(**{key: torch.from_numpy(value) for key, value in feed.items()})[output].numpy()
    np.testing.assert_allclose(outputs(made, feed, output), expected, atol=2e-5)


def test_a_class_token_is_part_of_what_is_added_for_places(vit: ModelHandle, apply_pass: Apply) -> None:
    made = apply_pass("OnnxPeepholeOptimizer", apply_pass("OnnxConversion", vit), **FUSED)
    found = operators(made)
    assert found["Pad"] == 1
    assert found["Concat"] == found["Expand"] == found["Shape"] == 0


@pytest.mark.parametrize("target", ["cuda", "directml"])
def test_what_is_left_of_a_fused_transformer_has_kernels_in_half_precision(
    target: str, vit: ModelHandle, apply_pass: Apply
) -> None:
    made = apply_pass("OnnxPeepholeOptimizer", apply_pass("OnnxConversion", vit), **FUSED)
    half = apply_pass("OrtTransformersOptimization", made, target=target, model_type="vit", opt_level=1, float16=True)
    lower = apply_pass("OnnxOpVersionConversion", half, target_opset=18)
    assert operators(lower)["MultiHeadAttention"] == LAYERS
    assert operators(lower)["BiasGelu"] == LAYERS
    feed = picture(lower)
    whole, found = (outputs(one, feed, "logits") for one in (made, lower))
    np.testing.assert_allclose(found, whole, atol=0.02)


def written(text: str, folder: Path, **weights: tuple[int, ...]) -> ModelHandle:
    """Returns a graph of that text with random weights of these shapes."""
    graph, random = onnx.parser.parse_model(text), np.random.default_rng(0)
    for name, shape in weights.items():
        graph.graph.initializer.append(onnx.numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name))
    onnx.save(graph, folder / "model.onnx")
    return ModelHandle("onnx", folder, "model.onnx")


ATTENTION = """<ir_version: 10, opset_import: ["": 20, "com.microsoft": 1]>
g (float[2,5,8] x, float[8,8] w) => (float[2,5,8] y)
{
    k = Add (x, key_bias)
    v = Add (x, value_bias)
    a = com.microsoft.MultiHeadAttention <num_heads = 2> (x, k, v)
    y = MatMul (a, OUT)
}"""


@pytest.mark.parametrize("weights", ["w", "out"])
def test_a_bias_of_values_stays_where_no_bias_can_hold_it(weights: str, tmp_path: Path, apply_pass: Apply) -> None:
    before = written(ATTENTION.replace("OUT", weights), tmp_path, key_bias=(8,), value_bias=(8,), out=(8, 8))
    random = np.random.default_rng(1)
    after = apply_pass("OnnxPeepholeOptimizer", before, fold_attention_biases=True)
    assert operators(after)["Add"] == 1
    feed = {name: random.standard_normal(shape).astype(np.float32) for name, shape in (("x", (2, 5, 8)), ("w", (8, 8)))}
    feed = {one.name: feed[one.name] for one in open_session(after, 1).get_inputs()}
    np.testing.assert_allclose(outputs(after, feed, "y"), outputs(before, feed, "y"), atol=1e-5)


PATCHES = """<ir_version: 10, opset_import: ["": 20]>
g (float[n,3,8,8] x) => (float[n,t,4] y)
<int64[3] flat = {0, 4, -1}>
{
    c = Conv <strides = STRIDES> (x, w)
    f = Reshape (c, flat)
    y = Transpose <perm = [0, 2, 1]> (f)
}"""


@pytest.mark.parametrize(("strides", "replaced"), [("[4, 4]", True), ("[2, 2]", False)])
def test_windows_that_overlap_stay_a_convolution(strides: str, replaced: bool, tmp_path: Path, apply_pass: Apply) -> None:
    before = written(PATCHES.replace("STRIDES", strides), tmp_path, w=(4, 3, 4, 4))
    after = apply_pass("OnnxPeepholeOptimizer", before, use_product_for_patches=True)
    assert operators(after)["Conv"] == (not replaced)
    feed = {"x": np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)}
    np.testing.assert_allclose(outputs(after, feed, "y"), outputs(before, feed, "y"), atol=1e-4)


RESIZED = """<ir_version: 8, opset_import: ["": 17]>
g (float[1,2,4,4] x) => (float[1,2,8,8] y)
{
    scales = Constant <value = float[4] {1.0, 1.0, 2.0, 2.0}> ()
    y = Resize <mode = "nearest"> (x, , scales)
}"""


def test_scales_stay_in_single_precision_where_shapes_are_unknown(
    tmp_path: Path, apply_pass: Apply, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime.transformers.optimizer  # noqa: F401  its modules are there by their bare names then

    def too_large(*_: Any, **__: Any) -> None:
        raise ValueError("a graph of more than 2 GB")

    shapes = importlib.import_module("shape_infer_helper").SymbolicShapeInferenceHelper
    monkeypatch.setattr(shapes, "infer_shapes", too_large)
    before = written(RESIZED, tmp_path)
    half = apply_pass("OrtTransformersOptimization", before, model_type="unet", opt_level=0, float16=True)
    feed = {"x": np.random.default_rng(0).standard_normal((1, 2, 4, 4)).astype(np.float32)}
    np.testing.assert_allclose(outputs(half, feed, "y"), outputs(before, feed, "y"), atol=2e-3)


def test_the_attention_of_a_unet_is_fused(tmp_path: Path, apply_pass: Apply) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, cross_attention_dim=16, attention_head_dim=2, norm_num_groups=4, layers_per_block=1,
        block_out_channels=[8, 8],
        down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"], up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
    ).eval()  # fmt: skip
    names = ["sample", "timestep", "encoder_hidden_states"]
    inputs = (torch.randn(2, 4, 8, 8), torch.tensor([5.0, 5.0]), torch.randn(2, 7, 16))
    axes = {name: {0: "batch"} for name in names}
    torch.onnx.export(
        unet,
        inputs,
        tmp_path / "model.onnx",
        input_names=names,
        output_names=["noise"],
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
    )
    before = ModelHandle("onnx", tmp_path, "model.onnx")
    after = apply_pass("OrtTransformersOptimization", before, model_type="unet", opt_level=0)
    assert operators(after)["MultiHeadAttention"] > 0
    feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    np.testing.assert_allclose(outputs(after, feed, "noise"), outputs(before, feed, "noise"), atol=1e-4)


@pytest.mark.parametrize(("width", "fused"), [(1280, 1), (256, 0)])
def test_split_gelu_is_fused_at_widths_that_its_kernel_takes(width: int, fused: int, tmp_path: Path, apply_pass: Apply) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.onnx.export(
        diffusers.models.activations.GEGLU(8, width).eval(),
        (torch.randn(2, 5, 8),),
        tmp_path / "model.onnx",
        input_names=["x"],
        output_names=["y"],
        dynamic_axes={"x": {0: "batch", 1: "tokens"}},
        opset_version=17,
        dynamo=False,
    )
    before = ModelHandle("onnx", tmp_path, "model.onnx")
    after = apply_pass("OrtTransformersOptimization", before, model_type="unet", opt_level=0, target="cuda")
    assert operators(after)["BiasSplitGelu"] == fused
