"""Pipelines that draw become one graph a component, which passes treat one by one."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.evaluation.parity import Parity
from runner.models.components import is_pipeline, parts_of, pipeline_of
from runner.models.diffusion import COMPONENTS, component_of, source_parts
from runner.models.digest import files_below, sha256_of_file
from runner.models.files import read_graph
from runner.models.handle import ModelHandle
from runner.passes import table
from runner.passes.declaration import PassContext
from runner.passes.each_component import apply_pass
from runner.passes.export.tiny_pipeline import TinyPipelineOptions, make_pipeline
from runner.targets.target import TARGETS

IDS = {"sd": "CompVis/stable-diffusion-v1-4", "sdxl": "stabilityai/stable-diffusion-xl-base-1.0"}
QUICK = {"enable_shape_inference": False}  # nine tenths of the time; only fusions of sums with norms need it
GPU_FUSIONS = {
    **QUICK,
    "enable_group_norm": True,
    "enable_nhwc_conv": True,
    "enable_packed_kv": True,
    "enable_packed_qkv": True,
}


ONLY_SD = pytest.mark.parametrize("source", ["sd"], indirect=True)
ONLY_XL = pytest.mark.parametrize("source", ["sdxl"], indirect=True)


class Bench:
    """Applies passes, each into a folder of its own, and keeps what they said."""

    def __init__(self, folder: Path, target: str = "cpu") -> None:
        self.folder, self.target, self.said = folder, TARGETS[target], []  # type: ignore[var-annotated]

    def context(self) -> PassContext:
        count = len(list(self.folder.iterdir()))
        output, scratch = self.folder / f"{count}-output", self.folder / f"{count}-scratch"
        output.mkdir()
        scratch.mkdir()
        return PassContext(output, scratch, self.target, 1, lambda _: [], self.said.append)

    def apply(self, model: ModelHandle, name: str, **options: Any) -> ModelHandle:
        pass_ = table.get(name)
        return apply_pass(pass_, model, pass_.options(**options), self.context())


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    bench = Bench(tmp_path_factory.mktemp(request.param))
    return make_pipeline(ModelHandle("diffusers", Path()), TinyPipelineOptions(model_id=IDS[request.param]), bench.context())


@pytest.fixture(scope="module")
def converted(source: ModelHandle, tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return Bench(tmp_path_factory.mktemp("converted")).apply(source, "OnnxConversion", target_opset=17)


@pytest.fixture(scope="module")
def parity(source: ModelHandle) -> Parity:
    """Keeps what the source gives, the picture included, so that it is drawn once in PyTorch."""
    return Parity(source, 1)


def operators(part: ModelHandle) -> Mapping[str, int]:
    return Counter(node.op_type for node in read_graph(part.path, weights=False).graph.node)


@ONLY_SD
def test_the_same_twin_gives_the_same_bytes(source: ModelHandle, tmp_path: Path) -> None:
    again = make_pipeline(
        source, TinyPipelineOptions(model_id=IDS[source.attributes["model_variant"]]), Bench(tmp_path).context()
    )
    digests = [{name: sha256_of_file(path) for name, path in files_below(model.folder)} for model in (source, again)]
    assert digests[0] == digests[1]


def test_a_pipeline_is_laid_out_as_diffusers_reads_it(source: ModelHandle, converted: ModelHandle) -> None:
    components = COMPONENTS[source.attributes["model_variant"]]
    assert is_pipeline(converted)
    assert set(parts_of(converted)) == set(components)
    index = json.loads((converted.folder / "model_index.json").read_text())
    assert all(index[name] == ["diffusers", "OnnxRuntimeModel"] for name in components)
    assert (converted.folder / "scheduler" / "scheduler_config.json").is_file()
    manifest = json.loads((converted.folder / "components.json").read_text())["components"]
    for name, part in parts_of(converted).items():
        graph = read_graph(part.path, weights=False).graph
        assert [one.name for one in graph.input] == manifest[name]["inputs"]
        assert [one.name for one in graph.output] == manifest[name]["outputs"]
        assert (part.folder / "config.json").is_file()


def test_every_component_and_the_picture_are_those_of_pytorch(
    source: ModelHandle, parity: Parity, converted: ModelHandle, tmp_path: Path
) -> None:
    """XL as it is exported; the smaller one fused, which holds only where its export is right."""
    made, fuses = converted, source.attributes["model_variant"] == "sd"
    if fuses:
        made = Bench(tmp_path).apply(made, "OrtTransformersOptimization", opt_level=1, optimization_options=QUICK)
    told = parity.compare(made)
    assert told["numeric"]
    assert {name.partition(".")[0] for name in told["outputs"]} == set(parts_of(made))
    assert all(one["max_abs_diff"] < 1e-3 and one["cosine"] > 0.99999 for one in told["outputs"].values())
    assert told["picture"]["psnr_db"] >= 35
    assert bool(operators(parts_of(made)["unet"])["MultiHeadAttention"]) == fuses
    assert bool(operators(parts_of(made)["text_encoder"])["QuickGelu"]) == fuses


@ONLY_SD
def test_sizes_stay_free(converted: ModelHandle, source: ModelHandle) -> None:
    from runner.models.inputs import made_up
    from runner.models.session import open_session

    part = parts_of(converted)["unet"]
    component = component_of(source_parts(source)["unet"])
    for sizes in ({"batch": 1, "height": 8, "width": 8}, {"batch": 3, "height": 24, "width": 16}):
        feed = made_up(component.inputs, source.folder / "unet", {**sizes, "sequence": 77, "steps": 1})
        (out,) = open_session(part, 1).run(None, feed)
        assert out.shape == (sizes["batch"], 4, sizes["height"], sizes["width"])


@ONLY_SD
def test_dynamic_quantisation_leaves_the_autoencoder(parity: Parity, converted: ModelHandle, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    made = bench.apply(converted, "OnnxDynamicQuantization", op_types_to_quantize=["MatMul"], per_channel=False)
    parts = parts_of(made)
    assert operators(parts["unet"])["MatMulInteger"] > 0
    assert operators(parts["text_encoder"])["MatMulInteger"] > 0
    for name in ("vae_encoder", "vae_decoder"):
        assert sha256_of_file(parts[name].path) == sha256_of_file(parts_of(converted)[name].path)
        assert f"{name}: left as it is" in bench.said
    assert parity.picture.compare(made, parity.provider)["psnr_db"] > 25


@ONLY_SD
def test_a_gpu_gets_its_operators_in_half_precision(source: ModelHandle, converted: ModelHandle, tmp_path: Path) -> None:
    import onnx

    bench = Bench(tmp_path, "cuda")
    options = {"opt_level": 1, "float16": True, "optimization_options": GPU_FUSIONS}
    chosen = {name: part for name, part in parts_of(converted).items() if name in ("text_encoder", "unet")}
    two = pipeline_of(converted.folder, chosen.items(), converted.task, model_variant="sd")
    made = bench.apply(two, "OrtTransformersOptimization", **options)
    parts = parts_of(made)
    assert {"MultiHeadAttention", "GroupNorm", "NhwcConv"} <= set(operators(parts["unet"]))
    kinds = {name: {one.data_type for one in read_graph(part.path).graph.initializer} for name, part in parts.items()}
    assert all(onnx.TensorProto.FLOAT16 in found for found in kinds.values())
    told = Parity(source, 1, "cuda").compare(made)
    assert not told["numeric"]
    assert "unet" in told["reason"]
    assert "text_encoder.last_hidden_state" in told["outputs"]


@ONLY_XL
@pytest.mark.parametrize("name", ["OrtTransformersOptimization", "OnnxFloatToFloat16"])
def test_an_autoencoder_that_overflows_in_half_precision_stays_in_fp32(
    source: ModelHandle, converted: ModelHandle, name: str, tmp_path: Path
) -> None:
    import onnx

    options = {"float16": True, "optimization_options": QUICK} if name == "OrtTransformersOptimization" else {}
    bench = Bench(tmp_path, "cuda")
    made = bench.apply(parts_of(converted)["vae_decoder"], name, **options)
    assert onnx.TensorProto.FLOAT16 not in {one.data_type for one in read_graph(made.path).graph.initializer}
    assert any("force_upcast" in text for text in bench.said)


@ONLY_SD
def test_numbers_that_are_none_fail_by_component(parity: Parity, converted: ModelHandle, tmp_path: Path) -> None:
    import onnx

    from runner.errors import RunFailed

    broken = replace(converted, folder=shutil.copytree(converted.folder, tmp_path / "broken"))
    part = parts_of(broken)["vae_decoder"]
    graph = read_graph(part.path)
    weight = next(one for one in graph.graph.initializer if len(one.dims) == 4)
    spoilt = onnx.numpy_helper.to_array(weight).copy()
    spoilt[:] = np.nan
    weight.CopyFrom(onnx.numpy_helper.from_array(spoilt, weight.name))
    part.path.unlink()
    onnx.save(graph, part.path)
    with pytest.raises(RunFailed, match="vae_decoder: output 'sample' holds"):
        parity.compare(broken)


@ONLY_SD
def test_a_fixed_batch_of_one_still_draws_with_guidance(converted: ModelHandle, tmp_path: Path) -> None:
    from runner.models.diffusion_pipeline import DrawingPipeline, Wanted

    wanted = Wanted("a cat", steps=1, height=128, width=128)
    shapes = {"batch": 1, "sequence": 77, "steps": 1, "height": 16, "width": 16}
    fixed = Bench(tmp_path).apply(converted, "DynamicToFixedShape", dim_param=list(shapes), dim_value=list(shapes.values()))
    free = DrawingPipeline(converted, 1).draw(wanted)
    assert np.abs(DrawingPipeline(fixed, 1).draw(wanted) - free).max() < 1e-4
