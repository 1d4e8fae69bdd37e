"""Weights that are quantised while they are written are those of the builder itself, bit for bit, in less memory."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from runner.errors import RunFailed
from runner.models.generation import GenerationSession
from runner.models.handle import ModelHandle
from runner.models.quantized_checkpoint import Scheme, pack
from runner.models.twin import architecture_of
from runner.passes.declaration import PassContext
from runner.passes.export.tiny_twin import make_twin
from runner.passes.genai import lazy_weights, quantised_product, streamed_weights
from runner.passes.genai.builder_options import ModelBuilderOptions
from runner.passes.genai.lazy_weights import Rows
from runner.passes.genai.model_builder import PASS
from runner.passes.genai.nbits_rounding import rounding_of
from runner.passes.quantize import block_rtn, hqq
from runner.passes.quantize.block_quantization import Matrix, nearest
from runner.targets.target import TARGETS

TIED, OWN_HEAD = "HuggingFaceTB/SmolLM2-135M-Instruct", "microsoft/Phi-3-mini-4k-instruct"


@pytest.fixture(scope="module", params=[TIED, OWN_HEAD])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    twin = architecture_of(request.param)
    return make_twin(twin, twin.task, tmp_path_factory.mktemp("source"))


def built(model: ModelHandle, folder: Path, target: str, **options: Any) -> onnx.ModelProto:
    output, scratch = folder / "output", folder / "scratch"
    output.mkdir(parents=True)
    scratch.mkdir()
    context = PassContext(output, scratch, TARGETS[target], 2, lambda _: iter(()), lambda _: None)
    PASS.apply(model, ModelBuilderOptions.model_validate(options), context)
    return onnx.load(output / "model.onnx")


def tensors(model: onnx.ModelProto) -> dict[str, np.ndarray[Any, Any]]:
    return {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}


def nodes(model: onnx.ModelProto) -> list[str]:
    for node in model.graph.node:
        attributes = sorted(node.attribute, key=lambda one: one.name)
        del node.attribute[:]
        node.attribute.extend(attributes)
    return sorted(str(node) for node in model.graph.node)


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("cpu", {"precision": "int4"}),
        ("cpu", {"precision": "int4", "is_symmetric": False, "algo_config": "rtn", "block_size": 16}),
        ("cpu", {"precision": "int4", "algo_config": "k_quant_mixed", "accuracy_level": 4}),
        ("cpu", {"precision": "int8"}),
        ("cpu", {"precision": "fp32"}),
        ("cuda", {"precision": "int4", "matmul_mixed_precision": {"last_matmul": "int8"}}),
        ("cuda", {"precision": "int4", "algo_config": "k_quant_mixed"}),
        ("cuda", {"precision": "int4", "algo_config": "rtn"}),
    ],
)
def test_the_graph_is_that_of_the_builder(
    source: ModelHandle, target: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = built(source, tmp_path / "ours", target, **options)
    monkeypatch.setattr(streamed_weights, "SERVED", ())  # as with a release that is not known
    theirs = built(source, tmp_path / "theirs", target, **options)
    assert nodes(ours) == nodes(theirs)
    one, other = tensors(ours), tensors(theirs)
    assert one.keys() == other.keys()
    assert not [name for name in one if one[name].dtype != other[name].dtype or not np.array_equal(one[name], other[name])]


@pytest.mark.parametrize("target", ["cpu", "cuda"])
@pytest.mark.parametrize("method", ["default", "rtn", "k_quant_mixed"])
def test_onnxruntime_is_asked_for_the_first_rows_alone(
    target: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What remains is rounded here, in less time and on every core, whatever type the weights have."""
    asked, counts = quantised_product.Product.asked, []

    def counted(self: Any, rows: torch.Tensor) -> Any:
        counts.append(len(rows))
        return asked(self, rows)

    monkeypatch.setattr(quantised_product.Product, "asked", counted)
    twin = architecture_of(TIED)
    built(make_twin(twin, twin.task, tmp_path / "source"), tmp_path, target, precision="int4", algo_config=method)
    assert counts
    assert max(counts) <= lazy_weights.ASKED_ROWS


def test_rounding_stays_on_the_cpu_where_cupy_and_a_gpu_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = architecture_of(OWN_HEAD)
    model = make_twin(twin, twin.task, tmp_path / "source")
    plain = built(model, tmp_path / "plain", "cpu", precision="int4", algo_config="k_quant_mixed")
    (tmp_path / "cupy.py").write_text("raise AssertionError('the GPU is asked to quantise')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    beside = built(model, tmp_path / "beside", "cpu", precision="int4", algo_config="k_quant_mixed")
    assert all(map(np.array_equal, tensors(plain).values(), tensors(beside).values()))


@pytest.mark.parametrize("served", [streamed_weights.SERVED, ()])
@pytest.mark.parametrize(("precision", "block_size"), [("int4", 32), ("int8", 64)])
def test_an_embedding_of_its_own_gets_the_codes_of_a_later_pass(
    precision: str, block_size: int, served: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = architecture_of(OWN_HEAD)
    source = make_twin(twin, twin.task, tmp_path / "source")
    options = {"precision": precision, "block_size": block_size}
    built(source, tmp_path / "later", "cpu", **options)
    for name in ("quantised", "scratch"):
        (tmp_path / name).mkdir()
    context = PassContext(tmp_path / "quantised", tmp_path / "scratch", TARGETS["cpu"], 2, lambda _: iter(()), lambda _: None)
    first = ModelHandle("genai", tmp_path / "later" / "output", "model.onnx", "text-generation")
    block_rtn.PASS.apply(first, block_rtn.PASS.options.model_validate({"bits": 8, "block_size": block_size}), context)
    monkeypatch.setattr(streamed_weights, "SERVED", served)
    at_once = built(source, tmp_path / "at-once", "cpu", **options, embedding_bits=8)
    assert not any(one.name == "model.embed_tokens.weight" for one in at_once.graph.initializer)
    found, expected = (lookup_of(one) for one in (at_once, onnx.load(tmp_path / "quantised" / "model.onnx")))
    assert found[0] == expected[0]
    assert all(map(np.array_equal, found[1], expected[1]))


def lookup_of(model: onnx.ModelProto) -> tuple[dict[str, Any], list[np.ndarray[Any, Any]]]:
    """Returns the attributes of a graph's one lookup in codes, and its codes and scales."""
    (node,) = (one for one in model.graph.node if one.op_type == "GatherBlockQuantized")
    known = tensors(model)
    return {one.name: one.i for one in node.attribute}, [known[name] for name in node.input if name in known]


@pytest.mark.parametrize("target", ["cpu", "cuda"])
@pytest.mark.parametrize("block_size", [16, 128])
def test_hqq_gives_what_it_makes_of_a_finished_graph(source: ModelHandle, target: str, block_size: int, tmp_path: Path) -> None:
    """An own embedding, where there is one, included; rows that blocks do not fill as well."""
    built(source, tmp_path / "float", target, precision="fp32" if target == "cpu" else "fp16", shared_embeddings=False)
    made = ModelHandle("genai", tmp_path / "float" / "output", "model.onnx", "text-generation")
    for name, pass_, options in (("products", hqq.PASS, {}), ("lookup", block_rtn.PASS, {"bits": 8})):
        (tmp_path / name / "scratch").mkdir(parents=True)
        (tmp_path / name / "output").mkdir()
        folder = tmp_path / name
        context = PassContext(folder / "output", folder / "scratch", TARGETS[target], 2, lambda _: iter(()), lambda _: None)
        made = pass_.apply(made, pass_.options.model_validate({"block_size": block_size, **options}), context)
    choice = {"algo_config": "hqq", "block_size": block_size, "shared_embeddings": False, "embedding_bits": 8}
    at_once = quantised(built(source, tmp_path / "at-once", target, precision="int4", **choice))
    behind = quantised(onnx.load(made.folder / "model.onnx"))
    assert at_once.keys() == behind.keys() and len(behind) > 2
    for name, (operator, values) in behind.items():
        found, own = at_once[name]
        assert operator == found
        assert [one.dtype for one in values] == [one.dtype for one in own]
        assert all(np.array_equal(one.ravel(), other.ravel()) for one, other in zip(values, own, strict=True)), name


def quantised(model: onnx.ModelProto) -> dict[str, tuple[str, list[np.ndarray[Any, Any]]]]:
    """Returns the operators that read codes and the tensors that they read, by what they read besides and put out."""
    known, kinds = tensors(model), ("MatMulNBits", "GatherBlockQuantized")
    return {
        "/".join(node.output[0].split("/")[:-1]): (node.op_type, [known[name] for name in node.input if name in known])
        for node in model.graph.node
        if node.op_type in kinds
    }


@pytest.mark.parametrize("bits", [4, 8])
def test_hqq_of_rows_does_not_depend_on_how_many_there_are(bits: int) -> None:
    rows = torch.randn(2000, 720, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    rows[3] = 0
    rows[5, :40] = 0.5
    settings = {"block_size": 64}
    product = quantised_product.Product("n", "i", "w", "o", onnx_float(), bits, "default", settings)
    with lazy_weights.Line(2) as line:
        weight = line.add(Rows((rows[:900], rows[900:])), product.by_hqq, lambda _: None)
        whole = [weight.part(at, "w").numpy() for at in range(3)]
    scheme = Scheme(bits, 64, symmetric=False)
    padded = torch.nn.functional.pad(rows.float(), (0, -720 % 64))
    codes, scales, zeros = nearest(hqq.fit)(Matrix(padded, 720, scheme, torch.float32, "i"))
    np.testing.assert_array_equal(whole[0].reshape(2000, -1), pack(codes, bits).numpy())
    np.testing.assert_array_equal(whole[1], scales.numpy())
    np.testing.assert_array_equal(whole[2], pack(zeros.byte(), bits).numpy())


def test_a_weight_is_quantised_while_the_one_before_it_is_written() -> None:
    begun = [threading.Event() for _ in range(4)]
    threads = torch.get_num_threads()

    def kernel(at: int, rows: torch.Tensor) -> list[np.ndarray[Any, Any]]:
        begun[at].set()
        return [rows.numpy() + at]

    with lazy_weights.Line(2) as line:
        weights = [line.add(Rows((torch.ones(40, 8),)), partial(kernel, at), lambda _: None) for at in range(4)]
        assert not any(one.is_set() for one in begun)
        assert (weights[1].part(0, "w").numpy() == 2).all()
        assert begun[2].wait(60)
        assert [one.is_set() for one in begun] == [False, True, True, False]
        for at in (0, 3, 2):
            assert (weights[at].part(0, "w").numpy() == at + 1).all()
    assert torch.get_num_threads() == threads


def test_a_weight_that_cannot_be_quantised_ends_the_writing() -> None:
    def kernel(rows: torch.Tensor) -> list[np.ndarray[Any, Any]]:
        raise ValueError("no room")

    with lazy_weights.Line(2) as line, pytest.raises(ValueError, match="no room"):
        line.add(Rows((torch.ones(40, 8),)), kernel, lambda _: None).part(0, "w")


def onnx_float() -> Any:
    import onnx_ir as ir

    return ir.DataType.FLOAT


def test_the_embedding_reads_the_rows_of_a_head_by_hqq(tmp_path: Path) -> None:
    twin = architecture_of(TIED)
    source = make_twin(twin, twin.task, tmp_path / "source")
    graph = built(source, tmp_path / "made", "cpu", precision="int4", algo_config="hqq")
    (lookup,) = (one for one in graph.graph.node if one.op_type == "GatherBlockQuantized")
    (head,) = (one for one in graph.graph.node if one.name.startswith("/lm_head/MatMul"))
    assert lookup.input[2:] == head.input[2:]
    session = GenerationSession(tmp_path / "made" / "output", 2)
    assert list(session.generate(session.prompt("Why is the sky blue?"), 4))


def test_hqq_is_refused_where_nothing_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed_weights, "SERVED", ())
    twin = architecture_of(TIED)
    source = make_twin(twin, twin.task, tmp_path / "source")
    with pytest.raises(RunFailed, match="OnnxHqqQuantization"):
        built(source, tmp_path / "made", "cpu", precision="int4", algo_config="hqq")


def test_an_embedding_that_is_shared_stays_that_of_the_head(tmp_path: Path) -> None:
    twin = architecture_of(TIED)
    source = make_twin(twin, twin.task, tmp_path / "source")
    one, other = (built(source, tmp_path / name, "cpu", precision="int4", **more) for name, more in SHARED.items())
    assert nodes(one) == nodes(other)


SHARED: dict[str, dict[str, Any]] = {"asked": {"embedding_bits": 8}, "not-asked": {}}


def test_rows_of_several_matrices_are_taken_across_them() -> None:
    parts = tuple(torch.randn(rows, 4) for rows in (5, 3, 8))
    rows, whole = Rows(parts), torch.cat(parts)
    assert rows.shape == (16, 4)
    assert rows.T.shape == (4, 16)
    for start, stop in ((0, 16), (0, 3), (4, 9), (5, 8), (15, 16)):
        assert torch.equal(rows.take(start, stop), whole[start:stop])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("columns", [64, 80, 96])
def test_rounding_is_that_of_onnxruntime(bits: int, symmetric: bool, columns: int) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, DefaultWeightOnlyQuantizer

    rows = torch.randn(64, columns, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    rows[3] = 0
    rows[5, :40] = 0
    rows[7].abs_()
    rows[9, :32] = 0.5
    kernel = DefaultWeightOnlyQuantizer(DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=symmetric, bits=bits))
    codes, scales, zeros = kernel.qbits_block_quant(np.ascontiguousarray(rows.numpy().T))
    expected = [codes, scales] if symmetric else [codes, scales, zeros]
    own = rounding_of("default", bits, 32, symmetric)
    assert own is not None
    for one, other in zip(own(rows), expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [16, 32, 64, 256])
@pytest.mark.parametrize("method", ["k_quant", "rtn", "rtn symmetric"])
def test_rounding_is_that_of_the_quantisers_in_numpy(method: str, block: int, bits: int) -> None:
    from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor, quant_tensor_k_quant_cpu

    rows = torch.randn(80, 512, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    rows[3] = 0
    rows[5, :40] = 0
    rows[7].abs_()
    rows[9, :32] = -0.5
    values = np.ascontiguousarray(rows.float().numpy())
    name, _, symmetric = method.partition(" ")
    with np.errstate(all="ignore"):
        if name == "k_quant":
            codes, scales, zeros = quant_tensor_k_quant_cpu(values, bits, block)
        else:
            codes, scales, zeros = quant_tensor(values, bits, block, "sym" if symmetric else "asym", "uint")

    def packed(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        codes = values.astype("uint8").reshape(len(rows), -1)
        return codes if bits == 8 else codes[:, ::2] | codes[:, 1::2] << 4

    own = rounding_of(name, bits, block, bool(symmetric))
    assert own is not None
    got = own(rows)
    np.testing.assert_array_equal(got[0].reshape(len(rows), -1), packed(codes))
    np.testing.assert_array_equal(got[1], scales.astype("float32").reshape(len(rows), -1))
    assert symmetric or np.array_equal(got[2], packed(zeros))
