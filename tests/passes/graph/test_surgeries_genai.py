"""Surgeons on folders that onnxruntime-genai loads: the model still generates, from one matrix where there were two."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from runner.errors import RunFailed
from runner.evaluation.parity import Parity
from runner.models.files import external_files
from runner.models.generation import GenerationSession
from runner.models.handle import ModelHandle
from runner.models.twin import architecture_of
from runner.passes.export.tiny_twin import make_twin

TIE = [{"surgeon": "TieWordEmbeddings"}]
INT8 = [{"surgeon": "QuantizeEmbeddingInt8"}, {"surgeon": "ShareEmbeddingLmHead"}]


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    twin = architecture_of("HuggingFaceTB/SmolLM2-135M-Instruct")
    return make_twin(twin, twin.task, tmp_path_factory.mktemp("tied"))


def tokens(model: ModelHandle) -> list[int]:
    session = GenerationSession(model.folder, 2)
    return list(session.generate(session.prompt("Why is the sky blue?"), 12))


def size(model: ModelHandle) -> int:
    return sum((model.folder / name).stat().st_size for name in (model.file or "", *external_files(model.path)))


def weights(model: ModelHandle) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in onnx.load(model.path, load_external_data=False).graph.initializer}


@pytest.mark.parametrize("options", [{"precision": "fp32"}, {"precision": "fp32", "prune_lm_head": True}], ids=["all", "last"])
def test_floating_point_is_tied_without_a_change(apply_pass, tied: ModelHandle, options: dict[str, Any]):
    apart = apply_pass("ModelBuilder", tied, shared_embeddings=False, **options)
    once = apply_pass("GraphSurgeries", apart, surgeries=TIE)
    assert once.kind == "genai"
    assert tokens(once) == tokens(apart)
    assert size(apart) - size(once) > 650 * 192 * 4
    assert sum(shape in ((656, 192), (192, 656)) for shape in weights(once).values()) == 1
    assert Parity(apart, 2).compare(once)["outputs"]["logits"]["max_abs_diff"] < 1e-4


@pytest.mark.parametrize("options", [{"precision": "fp32"}, {"precision": "int4"}], ids=["fp32", "int4"])
def test_what_is_tied_stays(apply_pass, tied: ModelHandle, options: dict[str, Any]):
    once = apply_pass("ModelBuilder", tied, shared_embeddings=True, **options)
    again = apply_pass("GraphSurgeries", once, surgeries=TIE)
    assert apply_pass.said[-1] == "TieWordEmbeddings: nothing to do, embedding and head read one matrix already"
    assert size(again) == size(once)
    assert (again.folder / "model.onnx.data").samefile(once.folder / "model.onnx.data") or size(once) < 2_000_000
    assert tokens(again) == tokens(once)


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_embedding_in_the_rows_of_a_quantised_head(apply_pass, tied: ModelHandle, precision: str):
    apart = apply_pass("ModelBuilder", tied, precision=precision, shared_embeddings=False)
    once = apply_pass("GraphSurgeries", apart, surgeries=TIE)
    assert apply_pass.said[-1].endswith(f"the embedding reads the head's rows, in {precision[3:]} bits")
    assert size(apart) - size(once) > 650 * 192 * 4
    assert len(tokens(once)) == 12
    cosine = Parity(apart, 2).compare(once)["outputs"]["logits"]["cosine"]
    assert cosine > (0.9 if precision == "int4" else 0.999)


def test_equal_codes_of_embedding_and_head(apply_pass, tied: ModelHandle):
    apart = apply_pass("ModelBuilder", tied, precision="int4", shared_embeddings=False)
    once = apply_pass("GraphSurgeries", apart, surgeries=TIE)
    twice = with_copied_codes(once)
    merged = apply_pass("GraphSurgeries", twice, surgeries=TIE)
    assert apply_pass.said[-1] == "TieWordEmbeddings: 1 change"
    assert size(merged) < size(twice)
    assert tokens(merged) == tokens(once)


def with_copied_codes(model: ModelHandle) -> ModelHandle:
    """Gives the embedding copies of the head's codes and scales, as quantisers of whole graphs leave them."""
    graph = onnx.load(model.path)
    named = {tensor.name: tensor for tensor in graph.graph.initializer}
    lookup = next(node for node in graph.graph.node if node.op_type == "GatherBlockQuantized")
    reshape = next(node for node in graph.graph.node if node.output[0] == lookup.input[0])
    codes = numpy_helper.to_array(named[reshape.input[0]])
    graph.graph.initializer.append(numpy_helper.from_array(codes.reshape(len(codes), -1).copy(), "copied.codes"))
    graph.graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(named[lookup.input[2]]), "copied.scales"))
    lookup.input[0], lookup.input[2] = "copied.codes", "copied.scales"
    graph.graph.node.remove(reshape)
    (model.folder / "model.onnx.data").unlink()
    onnx.save(graph, model.path, save_as_external_data=True, location="model.onnx.data")
    return model


@pytest.mark.parametrize("precision", ["int4", "fp32"])
def test_embedding_and_head_in_eight_bits(apply_pass, tied: ModelHandle, precision: str):
    apart = apply_pass("ModelBuilder", tied, precision=precision, shared_embeddings=False)
    shared = apply_pass("GraphSurgeries", apart, surgeries=INT8)
    assert size(apart) - size(shared) > 650 * 192 * 2
    assert len(tokens(shared)) == 12
    assert Parity(apart, 2).compare(shared)["outputs"]["logits"]["cosine"] > 0.98
    alone = apply_pass("GraphSurgeries", apart, surgeries=INT8[:1])
    assert Parity(apart, 2).compare(alone)["outputs"]["logits"]["cosine"] > 0.999
    apply_pass("GraphSurgeries", shared, surgeries=INT8)
    assert apply_pass.said[-2:] == [
        "QuantizeEmbeddingInt8: nothing to do, the embedding is quantised already, in 8 bits",
        "ShareEmbeddingLmHead: nothing to do, embedding and head read one matrix already",
    ]


def test_embedding_that_reads_a_turned_head(apply_pass, tied: ModelHandle):
    once = apply_pass("ModelBuilder", tied, precision="fp32")
    quantised = apply_pass("GraphSurgeries", once, surgeries=INT8)
    assert len(tokens(quantised)) == 12
    assert Parity(once, 2).compare(quantised)["outputs"]["logits"]["cosine"] > 0.999


@pytest.mark.parametrize("surgeries", [TIE, INT8])
def test_different_matrices_are_not_shared(apply_pass, tiny_llama: ModelHandle, surgeries: list[dict[str, str]]):
    apart = apply_pass("ModelBuilder", tiny_llama, precision="fp32")
    with pytest.raises(RunFailed, match=r"cannot-tie.*: embedding and head are different matrices"):
        apply_pass("GraphSurgeries", apart, surgeries=surgeries)
    twin = replace(apart, attributes={**apart.attributes, "twin_of": "somebody/model"})
    apply_pass("GraphSurgeries", twin, surgeries=surgeries)
    assert "which says nothing of the real model" in apply_pass.said[-1]


def test_names_that_the_runtime_needs_stay(apply_pass, tied: ModelHandle):
    model = apply_pass("ModelBuilder", tied, precision="fp32")
    rename = [{"surgeon": "RenameInputs", "old_names": ["input_ids"], "new_names": ["ids"]}]
    with pytest.raises(RunFailed, match=r"genai_config.json names input_ids"):
        apply_pass("GraphSurgeries", model, surgeries=rename)


def test_every_graph_of_a_folder(apply_pass, tied: ModelHandle, tmp_path: Path):
    decoder = apply_pass("ModelBuilder", tied, precision="fp32")
    relu = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[1,4] pixels) => (float[1,5] features) { features = Gemm(pixels, w) }'
    )
    relu.graph.initializer.append(numpy_helper.from_array(np.ones((4, 5), np.float32), "w"))
    onnx.save(relu, decoder.folder / "vision.onnx")
    config = decoder.folder / "genai_config.json"
    config.write_text(config.read_text().replace('"decoder": {', '"vision": {"filename": "vision.onnx"}, "decoder": {', 1))
    name = {"surgeon": "RenameInputDims", "input_name": "pixels", "dim_idx": 0, "dim_name": "images"}
    after = apply_pass("GraphSurgeries", decoder, surgeries=[name, {"surgeon": "GemmToMatMulAdd"}])
    assert apply_pass.said[-2:] == [
        "RenameInputDims: vision.onnx: 1 change",
        "GemmToMatMulAdd: model.onnx: nothing to do; vision.onnx: 1 change",
    ]
    vision = onnx.load(after.folder / "vision.onnx")
    assert [node.op_type for node in vision.graph.node] == ["MatMul"]
    assert vision.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "images"
    assert tokens(after) == tokens(decoder)
