"""What a provider runs of a graph, told without its device."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest
from onnx import parser

from runner.errors import NotForTarget, RunFailed
from runner.evaluation.parity import Parity
from runner.evaluation.structure import check_structure, missing_on_cpu, summary
from runner.evaluation.typed_nodes import typed_nodes
from runner.models.handle import ModelHandle
from runner.targets.operator_kernels import kernels_of, loadable_by
from runner.targets.target import TARGETS, Target

CUDA, DIRECTML = TARGETS["cuda"], TARGETS["directml"]


def model_of(folder: Path, text: str, file: str = "model.onnx") -> ModelHandle:
    """The graph of ONNX's textual form, as a model on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(parser.parse_model(text), folder / file)
    return ModelHandle("onnx", folder, file)


def head(opset: int, more: str = "") -> str:
    return f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1{more}]>'


def problems(model: ModelHandle, target: Any) -> list[tuple[str, str, str]]:
    with pytest.raises(NotForTarget) as raised:
        check_structure(model, target)
    return [(one.rule, one.cause, one.remedy or "") for one in raised.value.problems]


CONVOLUTION = "agraph (float16[1,3,8,8] x, float16[4,3,3,3] w) => (float16[1,4,6,6] y) { y = Conv (x, w) }"


def test_a_kernel_without_a_last_version_serves_no_later_definition(tmp_path: Path) -> None:
    """DirectML's Conv is of opset 11; opset 22 defines Conv anew."""
    assert check_structure(model_of(tmp_path / "21", head(21) + CONVOLUTION), DIRECTML) == {
        "nodes": 1, "on_cpu": {}, "folded": 0, "notes": [], "kernels": kernels_of(DIRECTML.provider).version,
    }  # fmt: skip
    later = model_of(tmp_path / "22", head(22) + CONVOLUTION)
    ((rule, cause, remedy),) = problems(later, DIRECTML)
    assert rule == "no-kernel"
    assert "model.onnx: DmlExecutionProvider has no kernel for 1 Conv (version 22, float16): (makes y)" in cause
    assert "up to opset 21" in cause
    assert "at most 21 (target_opset)" in remedy
    assert check_structure(later, CUDA) is not None


ADDITION = "agraph (float16[2] x) => (float16[2] y) { y = Add (x, x) }"


@pytest.mark.parametrize("target", [CUDA, DIRECTML], ids=["cuda", "directml"])
def test_a_newer_opset_or_format_than_the_pinned_runtime_loads_is_refused(tmp_path: Path, target: Target) -> None:
    limit = loadable_by(target.provider)
    newest = model_of(tmp_path / "newest", head(limit.opset).replace("10", str(limit.ir), 1) + ADDITION)
    assert check_structure(newest, target) is not None
    later = model_of(tmp_path / "later", head(limit.opset + 1).replace("10", str(limit.ir + 1), 1) + ADDITION)
    opset, ir = problems(later, target)
    assert opset == (
        "opset-not-loaded",
        f"model.onnx: the graph is of opset {limit.opset + 1}, and {target.wheels[0]} {limit.runtime}, "
        f"which is pinned for {target.name}, loads none beyond {limit.opset}",
        f"make the graph with an opset of at most {limit.opset} (target_opset)",
    )
    assert ir[0] == "ir-version-not-loaded"
    assert f"is of IR version {limit.ir + 1}, and {target.wheels[0]} {limit.runtime}" in ir[1]
    assert f"at most {limit.ir}" in ir[2]


@pytest.mark.parametrize("target", [CUDA, DIRECTML], ids=["cuda", "directml"])
def test_the_runtime_that_is_known_is_the_one_that_is_pinned(target: Target) -> None:
    pinned = (Path(__file__).resolve().parents[2] / "constraints" / f"{target.name}.txt").read_text().splitlines()
    assert f"{target.wheels[0]}=={loadable_by(target.provider).runtime}" in pinned


def test_types_decide(tmp_path: Path) -> None:
    attention = (
        "agraph ({0}[1,4,64] q, {0}[1,4,64] k, {0}[1,4,64] v, {0}[1,2,s,32] pk, {0}[1,2,s,32] pv, int32[1] n, int32 t) "
        "=> ({0}[1,4,64] y, {0}[1,2,s,32] nk, {0}[1,2,s,32] nv) {{ y, nk, nv = com.microsoft.GroupQueryAttention "
        "<num_heads = 2, kv_num_heads = 2> (q, k, v, pk, pv, n, t) }}"
    )
    full = model_of(tmp_path / "fp32", head(21) + attention.format("float"))
    ((_, cause, _),) = problems(full, CUDA)
    assert "1 com.microsoft.GroupQueryAttention (float)" in cause
    assert check_structure(full, DIRECTML) is not None
    narrow = model_of(tmp_path / "bf16", head(21) + attention.format("bfloat16"))
    assert check_structure(narrow, CUDA) is not None
    assert problems(narrow, DIRECTML)[0][0] == "type-not-for-provider"
    assert missing_on_cpu(narrow) == "GroupQueryAttention (bfloat16)"
    assert missing_on_cpu(full) == ""


def test_all_problems_are_told_at_once_and_nodes_alike_are_counted(tmp_path: Path) -> None:
    text = head(22) + (
        "agraph (float16[1,3,8,8] x, float16[3,3,1,1] w) => (float16[1,3,8,8] y) "
        "{ a = Conv (x, w) b = Conv (a, w) c = Conv (b, w) d = Conv (c, w) y = com.microsoft.SkipGroupNorm "
        "<groups = 1, activation = 0> (d, w, w, x) }"
    )
    found = problems(model_of(tmp_path, text), DIRECTML)
    assert len(found) == 2
    assert "4 Conv (version 22, float16): (makes a), (makes b), (makes c) …" in found[0][1]
    assert "SkipGroupNorm" in found[1][1]
    assert "it has none in any version" in found[1][1]


def test_integers_and_shapes_may_stay_on_the_cpu(tmp_path: Path) -> None:
    text = head(17) + (
        "agraph (float16[n,4] x, int64[n] i) => (float16[n,4] y, int64[n] j) "
        "{ two = Constant <value = int64 {2}> () j = Mod (i, two) s = Shape (x) y = Reshape (x, s) }"
    )
    found = check_structure(model_of(tmp_path, text), DIRECTML)
    assert found is not None
    assert found["on_cpu"] == {"Mod": 1}
    assert found["nodes"] == 3
    assert summary(found, "directml") == "3 nodes, 2 with DirectML kernels, 1 of shapes or integers on the CPU (Mod 1)"


def test_a_graph_that_the_provider_takes_nothing_of_is_refused(tmp_path: Path) -> None:
    model = model_of(tmp_path, head(17) + "agraph (string[n] x) => (string[m] y) { y = StringNormalizer (x) }")
    for target in (DIRECTML, CUDA):
        assert [rule for rule, _, _ in problems(model, target)] == ["nothing-on-provider"]


def test_what_is_computed_on_loading_needs_no_kernel(tmp_path: Path) -> None:
    text = head(22) + (
        "agraph (float16[1,3,8,8] x) => (float16[1,3,8,8] y) <float16[3,3,1,1] w = {1,0,0,0,1,0,0,0,1}> "
        "{ c = Cos (w) z = Cast <to = 10> (c) y = Add (x, z) }"
    )
    found = check_structure(model_of(tmp_path, text), DIRECTML)
    assert found is not None
    assert (found["nodes"], found["folded"]) == (1, 2)


def test_operators_that_onnx_defines_by_others_are_looked_up_as_these(tmp_path: Path) -> None:
    """No provider here has HardSwish in fp16, so ONNX Runtime puts Mul and HardSigmoid in its place; DirectML has both."""
    text = head(21) + "agraph (float16[2] x) => (float16[2] y) { y = HardSwish (x) }"
    found = check_structure(model_of(tmp_path / "21", text), DIRECTML)
    assert found is not None
    assert found["nodes"] == 2


def test_functions_and_subgraphs_count(tmp_path: Path) -> None:
    text = head(22, ', "local" : 1') + (
        "agraph (float16[1,3,8,8] x, float16[3,3,1,1] w, bool b) => (float16[1,3,8,8] y) "
        "{ a = local.Block (x, w) y = If (b) <then_branch = then () => (float16[1,3,8,8] t) { t = Conv (a, w) }, "
        "else_branch = other () => (float16[1,3,8,8] e) { e = Identity (a) }> }\n"
        '<domain: "local", opset_import: ["" : 22]> Block (u, v) => (r) { r = Conv (u, v) }'
    )
    model = model_of(tmp_path, text)
    ((_, cause, _),) = problems(model, DIRECTML)
    assert "2 Conv (version 22, float16): (makes a)/(makes r), (makes t)" in cause
    nodes = list(typed_nodes(onnx.load(model.path), lambda node: False))
    assert [node.operator for node in nodes] == ["Conv", "If", "Conv", "Identity"]
    assert nodes[0].types["T"] == {"float16"}


LOOP = (
    "agraph (float16[1,3,8,8] x, float16[3,3,1,1] w, int64 n, bool go) => (float16[1,3,8,8] y) "
    "{ y = Loop (n, go, x) <body = steps (i, c, a) => (d, b) { d = Identity (c) b = Conv (a, w) }> }"
)


def test_a_body_without_declared_types_has_those_of_what_it_is_given(tmp_path: Path) -> None:
    """A body may leave its inputs' types out; what is unknown would pass for anything."""
    graph = parser.parse_model(head(22) + LOOP.replace("(i, c, a)", "(int64 i, bool c, float16[1,3,8,8] a)"))
    for value in graph.graph.node[0].attribute[0].g.input:
        value.ClearField("type")
    onnx.save(graph, tmp_path / "model.onnx")
    (loop, _, conv) = typed_nodes(graph, lambda node: False)
    assert (loop.operator, conv.operator, conv.types["T"]) == ("Loop", "Conv", {"float16"})
    ((_, cause, _),) = problems(ModelHandle("onnx", tmp_path, "model.onnx"), DIRECTML)
    assert "1 Conv (version 22, float16): (makes b)" in cause


def test_functions_of_one_name_are_told_apart_and_bring_their_own_opset(tmp_path: Path) -> None:
    text = head(21, ', "local" : 1') + (
        "agraph (float16[1,3,8,8] x, float16[3,3,1,1] w) => (float16[1,3,8,8] y) "
        "{ a = local.Block (x, w) y = local.Block (a, w) }\n"
        '<domain: "local", opset_import: ["" : 21]> Block (u, v) => (r) { r = Conv (u, v) }\n'
        '<domain: "local", opset_import: ["" : 21]> Other (u, v) => (r) { r = Relu (u) }'
    )
    graph = parser.parse_model(text)
    graph.functions[1].name, graph.functions[1].overload = "Block", "second"
    graph.graph.node[1].overload = "second"
    assert [node.operator for node in typed_nodes(graph, lambda node: False)] == ["Conv", "Relu"]
    graph.functions[1].opset_import[0].version = loadable_by(DIRECTML.provider).opset + 1
    onnx.save(graph, tmp_path / "model.onnx")
    assert "opset-not-loaded" in [rule for rule, _, _ in problems(ModelHandle("onnx", tmp_path, "model.onnx"), DIRECTML)]


def test_a_type_that_the_provider_does_not_know_is_one_problem(tmp_path: Path) -> None:
    text = head(17) + (
        "agraph (float16[2,2] x, bfloat16[2,2] w) => (float16[2,2] y) "
        "{ a = Cast <to = 16> (x) b = MatMul (a, w) c = Relu (b) y = Cast <to = 10> (c) }"
    )
    model = model_of(tmp_path, text)
    ((rule, cause, remedy),) = problems(model, DIRECTML)
    assert rule == "type-not-for-provider"
    assert "does not know the type bfloat16 of 4 nodes: (makes a), (makes b), (makes c) …" in cause
    assert remedy == "choose a precision among fp16, int4"
    assert check_structure(model, CUDA) is not None


@pytest.mark.parametrize(("bits", "served"), [(2, False), (4, True), (8, True)])
def test_directml_takes_four_or_eight_bits(tmp_path: Path, bits: int, served: bool) -> None:
    text = head(21) + (
        f"agraph (float16[1,32] x, uint8[16,1,{4 * bits}] b, float16[16] s) => (float16[1,16] y) "
        f"{{ y = com.microsoft.MatMulNBits <K = 32, N = 16, bits = {bits}, block_size = 32> (x, b, s) }}"
    )
    model = model_of(tmp_path, text)
    if served:
        assert check_structure(model, DIRECTML) is not None
    else:
        assert f"4 or 8 bits, not {bits}" in problems(model, DIRECTML)[0][1]


@pytest.mark.parametrize(
    ("bits", "block", "ordered", "why"),
    [
        (2, 32, False, ""),
        (2, 256, False, ""),
        (4, 32, True, ""),
        (8, 512, False, ""),
        (3, 32, False, "2, 4 or 8 bits, not 3"),
        (4, 8, False, "blocks of 16, 32, 64 and so on, not of 8"),
        (4, 48, False, "blocks of 16, 32, 64 and so on, not of 48"),
        (2, 512, False, "at most 256 with 2 bits, not of 512"),
        (2, 32, True, "no g_idx with 2 bits"),
    ],
)
def test_bits_and_blocks_that_cuda_takes(tmp_path: Path, bits: int, block: int, ordered: bool, why: str) -> None:
    more = (", int32[1024] g", ", , g") if ordered else ("", "")
    text = head(21) + (
        f"agraph (float16[1,1024] x, uint8[16,n,m] b, float16[16,n] s{more[0]}) => (float16[1,16] y) "
        f"{{ y = com.microsoft.MatMulNBits <K = 1024, N = 16, bits = {bits}, block_size = {block}> (x, b, s{more[1]}) }}"
    )
    model = model_of(tmp_path, text)
    if why:
        ((rule, cause, _),) = problems(model, CUDA)
        assert rule == "no-kernel"
        assert why in cause
    else:
        assert check_structure(model, CUDA) is not None


def test_inputs_that_directml_does_not_read(tmp_path: Path) -> None:
    text = head(21) + (
        "agraph (float16[1,4,192] q, float16[1,2,s,32] p, int32[1] n, int32 t) => (float16[1,4,64] y) "
        "{{ y = com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 2{}> ({}, p, p, n, t) }}"
    )
    packed = model_of(tmp_path / "packed", text.format(", do_rotary = 1", "q, , "))
    assert "takes query, key and value apart" in problems(packed, DIRECTML)[0][1]
    assert check_structure(packed, CUDA) is not None
    rotated = model_of(tmp_path / "rotated", text.format(", do_rotary = 1", "q, q, q"))
    assert "does not read do_rotary" in problems(rotated, DIRECTML)[0][1]
    window = check_structure(model_of(tmp_path / "window", text.format(", local_window_size = 8", "q, q, q")), DIRECTML)
    assert window is not None
    assert "does not read local_window_size=8 of 1 GroupQueryAttention" in window["notes"][0]
    capped = check_structure(model_of(tmp_path / "capped", text.format(", softcap = 50.0", "q, q, q")), DIRECTML)
    assert capped is not None
    assert "does not read softcap=50 of 1 GroupQueryAttention" in capped["notes"][0]


def genai_folder(folder: Path, **providers: list[dict[str, Any]]) -> ModelHandle:
    """A folder of onnxruntime-genai with a graph a part."""
    sections = {}
    for part, options in providers.items():
        model_of(folder, head(21) + "agraph (float16[2] x) => (float16[2] y) { y = Tanh (x) }", f"{part}.onnx")
        sections[part] = {"filename": f"{part}.onnx", "session_options": {"provider_options": options}}
    (folder / "genai_config.json").write_text(json.dumps({"model": sections}), encoding="utf-8")
    return ModelHandle("genai", folder, "decoder.onnx")


def test_every_graph_of_a_genai_folder_names_the_provider(tmp_path: Path) -> None:
    whole = genai_folder(tmp_path / "whole", decoder=[{"cuda": {"enable_cuda_graph": "0"}}], encoder=[{"cuda": {}}])
    found = check_structure(whole, CUDA)
    assert found is not None
    assert found["nodes"] == 2
    assert summary(found, "cuda") == "2 nodes, all with CUDA kernels"
    partly = genai_folder(tmp_path / "partly", decoder=[{"cuda": {}}], encoder=[], vision=[{"CUDAExecutionProvider": {}}])
    told = problems(partly, CUDA)
    assert [rule for rule, _, _ in told] == ["provider-not-named"] * 2
    assert "model.encoder.session_options.provider_options names no provider" in told[0][1]
    assert "model.vision.session_options.provider_options names CUDAExecutionProvider" in told[1][1]
    assert "its first entry must be 'cuda'" in told[1][2]


def test_only_graphs_for_other_targets_than_the_cpu_are_looked_at(tmp_path: Path) -> None:
    model = model_of(tmp_path, head(21) + "agraph (float16[2] x) => (float16[2] y) { y = Tanh (x) }")
    assert check_structure(model, TARGETS["cpu"]) is None
    assert check_structure(ModelHandle("hf", tmp_path), CUDA) is None


def test_what_the_cpu_has_no_kernel_for_is_told_and_the_rest_is_run(tmp_path: Path) -> None:
    source = model_of(tmp_path / "source", head(21) + "agraph (float[2,4] x) => (float[2,4] y) { y = Tanh (x) }")
    half = head(21) + ("agraph (float[2,4] x) => (float[2,4] y) { a = Cast <to = 10> (x) b = Tanh (a) y = Cast <to = 1> (b) }")
    compared = Parity(source, 1, "cuda").compare(model_of(tmp_path / "half", half))
    assert compared["outputs"]["y"]["cosine"] > 0.999
    brain = model_of(tmp_path / "brain", half.replace("to = 10", "to = 16"))
    told = Parity(source, 1, "cuda").compare(brain)
    assert told == {"numeric": False, "reason": "not run on the CPU: no kernel for Tanh (bfloat16)", "outputs": {}}
    with pytest.raises(RunFailed, match="output-does-not-run"):
        Parity(source, 1, "cpu").compare(brain)


def test_a_failure_on_the_cpu_is_not_taken_for_a_missing_kernel(tmp_path: Path) -> None:
    source = model_of(tmp_path / "source", head(21) + "agraph (float[2,4] x) => (float[2,4] y) { y = Tanh (x) }")
    wrong = model_of(
        tmp_path / "wrong",
        head(21) + "agraph (float[2,4] x) => (float[a,b] y) <int64[2] s = {3, 3}> { y = Reshape (x, s) }",
    )
    with pytest.raises(RunFailed, match="output-does-not-run"):
        Parity(source, 1, "cuda").compare(wrong)


def script() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "scripts" / "refresh_operator_kernels.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGE = """
## Operators implemented by CUDAExecutionProvider

| Op Name | Parameters | OpSet Version | Types Supported |
|---------|------------|---------------|-----------------|
|**Operator Domain:** *ai.onnx*||||
|Add|*in* A:**T**<br> *out* C:**T**|14+|**T** = tensor(float16), tensor(float)|
|||[7, 12]|**T** = tensor(float)|
|Where|*in* condition:**B**|9|**B** = tensor(bool)<br/> **T** = tensor(int64)|
|SequenceEmpty|*out* output:**S**|11+|**S** = seq(tensor(float))|
| |
|**Operator Domain:** *com.ms.internal.nhwc*||||
|Conv|*in* X:**T**|11+|**T** = tensor(float)|
"""


def test_the_table_is_made_from_the_page_of_onnx_runtime(tmp_path: Path) -> None:
    refresh = script()
    assert refresh.read_page(PAGE) == {
        "CUDAExecutionProvider": {
            "ai.onnx": {
                "Add": [(14, None, {"T": "float float16"}), (7, 12, {"T": "float"})],
                "Where": [(9, 9, {"B": "bool", "T": "int64"})],
                "SequenceEmpty": [(11, None, {})],
            }
        }
    }
    again = tmp_path / "again.json"
    refresh.write_table(again, refresh.read_table(refresh.TABLE))
    assert again.read_bytes() == refresh.TABLE.read_bytes()


def test_a_table_knows_the_operators_that_models_are_made_of() -> None:
    half = {"T": frozenset({"float16"})}
    for target in (CUDA, DIRECTML):
        kernels = kernels_of(target.provider)
        assert kernels.serve("ai.onnx", "MatMul", 13, half)
        assert kernels.serve("com.microsoft", "SkipSimplifiedLayerNormalization", 1, half)
        assert not kernels.of("com.microsoft", "Nonsense")
