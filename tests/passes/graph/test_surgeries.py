"""Every surgeon on a small graph: run before and after, in ONNX Runtime."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, parser

from runner.errors import InvalidRecipe, RunFailed
from runner.models.handle import ModelHandle

Arrays = dict[str, np.ndarray]
Operate = Callable[..., onnx.ModelProto]
RNG = np.random.default_rng(7)
HEADER = '<ir_version: 10, opset_import: ["": 20, "com.microsoft": 1, "custom": 1]>'


def graph(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    model = parser.parse_model(f"{HEADER}\n{text}")
    model.graph.initializer.extend(numpy_helper.from_array(content, name) for name, content in weights.items())
    return model


def run(model: onnx.ModelProto, feeds: Arrays, *, plainly: bool = False) -> Arrays:
    options = onnxruntime.SessionOptions()
    if plainly:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feeds), strict=True))


def types(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def floats(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype)


@pytest.fixture
def folder_of(tmp_path: Path) -> Callable[[onnx.ModelProto], ModelHandle]:
    def write(model: onnx.ModelProto) -> ModelHandle:
        folder = tmp_path / f"model-{sum(1 for _ in tmp_path.glob('model-*'))}"
        folder.mkdir()
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        return ModelHandle("onnx", folder, "model.onnx")

    return write


@pytest.fixture
def operate(apply_pass, folder_of) -> Operate:
    """Applies one surgery, given as the surgeon's name and its options."""

    def apply(model: onnx.ModelProto, surgeon: str, **options: Any) -> onnx.ModelProto:
        surgeries = [{"surgeon": surgeon, **options}]
        return onnx.load(apply_pass("GraphSurgeries", folder_of(model), surgeries=surgeries).path)

    return apply


def assert_same(before: Arrays, after: Arrays, tolerance: float = 1e-5) -> None:
    assert list(before) == list(after)
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, rtol=tolerance, atol=tolerance, err_msg=name)


ADD = "g (float[b,4] x, float[b,4] y) => (float[b,4] z) { s = Add(x, y)  z = Relu(s) }"


def test_names_of_inputs_and_outputs(operate: Operate):
    x, y = floats(2, 4), floats(2, 4)
    before = run(graph(ADD), {"x": x, "y": y})["z"]
    renamed = operate(graph(ADD), "renameinputs", old_names=["x", "y"], new_names=["y", "left"])
    np.testing.assert_array_equal(run(renamed, {"y": x, "left": y})["z"], before)
    renamed = operate(graph(ADD), "RenameOutputs", old_names=["z"], new_names=["sum"])
    np.testing.assert_array_equal(run(renamed, {"x": x, "y": y})["sum"], before)
    with pytest.raises(InvalidRecipe, match="there is no input 'z'") as told:
        operate(graph(ADD), "RenameInputs", old_names=["z"], new_names=["a"])
    assert "known: x, y" in str(told.value)
    with pytest.raises(RunFailed, match="another tensor of the graph is called 's'"):
        operate(graph(ADD), "RenameInputs", old_names=["x"], new_names=["s"])


def test_names_of_dimensions(operate: Operate):
    fixed = graph("g (float[1,4] x) => (float[1,4] z) { z = Relu(x) }")
    freed = operate(fixed, "RenameInputDims", input_name="x", dim_idx=0, dim_name="images")
    freed = operate(freed, "RenameOutputDims", output_idx=0, dim_idx=0, dim_name="images")
    assert freed.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "images"
    assert run(freed, {"x": floats(3, 4)})["z"].shape == (3, 4)
    by_number = operate(fixed, "RenameInputDims", input_idx=0, dim_idx=1, dim_name="n")
    assert by_number.graph.input[0].type.tensor_type.shape.dim[1].dim_param == "n"
    for surgeon, options, cause in [
        ("RenameInputDims", {"input_name": "X", "dim_idx": 0}, "no input 'X'"),
        ("RenameInputDims", {"input_idx": 3, "dim_idx": 0}, "no input '3'"),
        ("RenameOutputDims", {"output_idx": 0, "dim_idx": 7}, "no dimension of 'z' '7'"),
    ]:
        with pytest.raises(InvalidRecipe, match=cause):
            operate(fixed, surgeon, dim_name="n", **options)


def test_what_no_weights_could_excuse_is_refused_for_a_tiny_twin_too(apply_pass, folder_of):
    twin = folder_of(graph(ADD)).with_attributes(twin_of="somebody/model")
    with pytest.raises(RunFailed, match="is no order of them"):
        apply_pass("GraphSurgeries", twin, surgeries=[{"surgeon": "ReorderInputs", "permutation": [0, 0]}])


def test_order_and_removal_of_inputs(operate: Operate):
    swapped = operate(graph(ADD), "ReorderInputs", permutation=[1, 0])
    assert [value.name for value in swapped.graph.input] == ["y", "x"]
    with pytest.raises(RunFailed, match="the graph has 2 inputs"):
        operate(graph(ADD), "ReorderInputs", permutation=[0, 0])
    clip = graph("g (float[4] x, float low, float high) => (float[4] z) { z = Clip(x, low, high) }")
    removed = operate(clip, "RemoveInputs", names=["low"])
    np.testing.assert_array_equal(
        run(removed, {"x": np.float32([-9, 1, 5, 9]), "high": np.array(4, np.float32)})["z"], np.float32([-9, 1, 4, 4])
    )
    with pytest.raises(RunFailed, match="Add '' cannot do without 'x'"):
        operate(graph(ADD), "RemoveInputs", names=["x"])


@pytest.mark.parametrize("shape", ["2,4", "b,4"])
def test_zeros_for_an_input(operate: Operate, shape: str):
    model = graph(f"g (float[{shape}] x, float[{shape}] y) => (float[{shape}] z) {{ s = Neg(y) [add] z = Add(x, s) }}")
    model.graph.node[1].name = "add"
    x = floats(2, 4)
    after = operate(model, "ZeroOutInput", node_name="add", input_idx=1)
    np.testing.assert_array_equal(run(after, {"x": x, "y": floats(2, 4)})["z"], x)
    with pytest.raises(InvalidRecipe, match="there is no node 'ad'"):
        operate(model, "ZeroOutInput", node_name="ad", input_idx=1)


def test_inner_tensors_as_outputs(operate: Operate):
    model = graph(ADD)
    model.graph.node[0].name = "add"
    feeds = {"x": floats(2, 4), "y": floats(2, 4)}
    assert list(run(operate(model, "ExposeOutputs", names=["add"]), feeds)) == ["z", "s"]
    every = run(operate(model, "AddIntermediateTensorsToOutputs"), feeds)
    np.testing.assert_array_equal(every["s"], feeds["x"] + feeds["y"])
    one = run(operate(model, "AddIntermediateTensorsToOutputs", intermediate_tensor_to_add=["s"]), feeds)
    assert list(one) == ["z", "s"]


def test_weights_among_inputs(operate: Operate):
    model = graph("g (float[4] x, float[4] w) => (float[4] z) { z = Add(x, w) }", w=floats(4))
    after = operate(model, "RemoveInitializerFromInputs")
    assert [value.name for value in after.graph.input] == ["x"]
    assert_same(run(model, {"x": np.ones(4, np.float32)}), run(after, {"x": np.ones(4, np.float32)}))


def test_stated_shapes(operate: Operate):
    inferred = operate(graph(ADD), "InferShapes")
    assert [value.name for value in inferred.graph.value_info] == ["s"]
    no_shapes = operate(inferred, "RemoveAllTensorValueShapes")
    assert no_shapes.graph.value_info[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert not no_shapes.graph.value_info[0].type.tensor_type.HasField("shape")
    assert not operate(inferred, "RemoveShapes").graph.value_info


def test_copies_between_devices(operate: Operate):
    model = graph(
        """g (float[b,4] x, bool p) => (float[b,4] z, float[b,4] w) {
            a = Neg(x)  h = MemcpyToHost(a)  c = MemcpyFromHost(h)
            z = If(p) <then_branch = t () => (float[b,4] o) { o = Relu(c) },
                       else_branch = e () => (float[b,4] o2) { m = MemcpyToHost(c)  o2 = Neg(m) }>
            w = MemcpyFromHost(a)
        }"""
    )
    after = operate(model, "RemoveMemcpy")
    assert types(after) == ["Neg", "If"] or types(after) == ["Neg", "If", "Identity"]
    x = floats(2, 4)
    results = run(after, {"x": x, "p": np.array(False)})
    np.testing.assert_array_equal(results["z"], x)
    np.testing.assert_array_equal(results["w"], -x)


def test_repeated_nodes(operate: Operate):
    cast = helper.make_node("Cast", ["x"], ["y"], "one", to=TensorProto.FLOAT16)
    again = helper.make_node("Cast", ["x"], ["y"], "two", to=TensorProto.FLOAT16)
    model = graph("g (float[4] x) => (float16[4] z) { z = Relu(y) }")
    model.graph.node.insert(0, again)
    model.graph.node.insert(0, cast)
    after = operate(model, "DeduplicateNodes")
    assert types(after) == ["Cast", "Relu"]
    np.testing.assert_array_equal(run(after, {"x": np.float32([-1, 0, 1, 2])})["z"], np.float16([0, 0, 1, 2]))
    model.graph.node[1].op_type = "Neg"
    with pytest.raises(RunFailed, match="Cast 'one' and Neg 'two' differ, and both make 'y'"):
        operate(model, "DeduplicateNodes")
    with pytest.raises(RunFailed, match="DeduplicateNodes first"):
        operate(model, "GemmToMatMulAdd")


def branching(*weights: tuple[str, np.ndarray]) -> onnx.ModelProto:
    model = graph(
        """g (float[4] x, bool p) => (float[4] z) {
            z = If(p) <then_branch = t () => (float[4] o) { o = Add(x, c) }, else_branch = e () => (float[4] n) { n = Neg(x) }>
        }"""
    )
    body = next(one.g for one in model.graph.node[0].attribute if one.name == "then_branch")
    body.initializer.extend(numpy_helper.from_array(content, name) for name, content in weights)
    return model


def test_repeated_weights_of_subgraphs(operate: Operate):
    twice = branching(("c", np.ones(4, np.float32)), ("c", np.ones(4, np.float32)))
    after = operate(twice, "DeduplicateSubgraphInitializers")
    np.testing.assert_array_equal(run(after, {"x": np.zeros(4, np.float32), "p": np.array(True)})["z"], np.ones(4))
    with pytest.raises(RunFailed, match="two different weights of subgraph 't' are called 'c'"):
        operate(branching(("c", np.ones(4, np.float32)), ("c", np.zeros(4, np.float32))), "DeduplicateSubgraphInitializers")


@st.composite
def chains(draw: st.DrawFn) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A random graph, and the same with nodes repeated somewhere behind the first of them."""
    nodes, values = [], ["x"]
    for number in range(draw(st.integers(1, 8))):
        op = draw(st.sampled_from(["Neg", "Relu", "Add", "Mul"]))
        inputs = [draw(st.sampled_from(values)) for _ in range(2 if op in ("Add", "Mul") else 1)]
        nodes.append(helper.make_node(op, inputs, [f"v{number}"], f"n{number}"))
        values.append(f"v{number}")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in ("x", values[-1])]
    repeated = list(nodes)
    for number in draw(st.lists(st.integers(0, len(nodes) - 1), max_size=6)):
        copy = onnx.NodeProto()
        copy.CopyFrom(nodes[number])
        copy.name = f"again{len(repeated)}"
        repeated.insert(draw(st.integers(repeated.index(nodes[number]) + 1, len(repeated))), copy)
    made = [
        helper.make_model(
            helper.make_graph(each, "g", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
        )
        for each in (nodes, repeated)
    ]
    return made[0], made[1]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chains())
def test_repetition_makes_no_difference(pair: tuple[onnx.ModelProto, onnx.ModelProto]):
    from runner.passes.graph.surgeons.cleanup import DeduplicateNodes

    plain, repeated = pair
    outcome = DeduplicateNodes(surgeon="DeduplicateNodes").operate(repeated)
    assert [node.SerializeToString() for node in repeated.graph.node] == [node.SerializeToString() for node in plain.graph.node]
    assert DeduplicateNodes(surgeon="DeduplicateNodes").operate(repeated).changes == 0
    assert outcome.changes >= 0
    onnx.checker.check_model(repeated)


def test_gemm_apart_and_together(operate: Operate):
    model = graph(
        """g (float[b,4] x, float[4,3] v) => (float[b,5] z, float[b,3] u, float[b,3] w) {
            z = Gemm<transB = 1>(x, m, c)  u = Gemm(x, v)  w = Gemm<alpha = 2.0>(x, v)
        }""",
        m=floats(5, 4), c=floats(5),
    )  # fmt: skip
    feeds = {"x": floats(2, 4), "v": floats(4, 3)}
    after = operate(model, "GemmToMatMulAdd")
    assert types(after) == ["MatMul", "Add", "MatMul", "Gemm"]
    assert [list(one.dims) for one in after.graph.initializer if len(one.dims) == 2] == [[4, 5]]
    assert_same(run(model, feeds), run(after, feeds))
    together = operate(after, "MatMulAddToGemm")
    assert types(together) == ["Gemm", "MatMul", "Gemm"]
    assert_same(run(model, feeds), run(together, feeds))


@pytest.mark.parametrize("batch", ["2", "b"])
@pytest.mark.parametrize("end", ["z = Relu(t)", "z = Neg(t)"])
def test_gemm_of_more_dimensions(operate: Operate, batch: str, end: str):
    text = f"g (float[{batch},3,4] x) => (float[{batch},3,5] z) {{ s = MatMul(x, m)  t = Add(c, s)  {end} }}"
    model = graph(text, m=floats(4, 5), c=floats(5))
    after = operate(model, "MatMulAddToGemm")
    assert "Gemm" in types(after)
    assert "MatMul" not in types(after)
    feeds = {"x": floats(2, 3, 4)}
    assert_same(run(model, feeds), run(after, feeds))


def test_division(operate: Operate):
    model = graph("g (float[4] a, float[4] x) => (float[4] z, float[4] w) { r = Reciprocal(x)  z = Mul(r, a)  w = Mul(r, r) }")
    feeds = {"a": floats(4), "x": np.float32([1, 2, 3, 4])}
    after = operate(model, "ReciprocalMulToDiv")
    assert types(after) == ["Reciprocal", "Div", "Div"]
    assert_same(run(model, feeds), run(after, feeds))


def test_activations(operate: Operate):
    erf = graph("g (float[9] x) => (float[9] z) { z = Erf(x) }")
    x = {"x": np.linspace(-3, 3, 9, dtype=np.float32)}
    assert_same(run(erf, x), run(operate(erf, "ReplaceErfWithTanh"), x), 0.03)
    quick = graph("g (float[9] x) => (float[9] z) { z = com.microsoft.QuickGelu<alpha = 1.5>(x) }")
    after = operate(quick, "DecomposeQuickGelu")
    assert types(after) == ["Mul", "Sigmoid", "Mul"]
    assert_same(run(quick, x), run(after, x))


RMS = {
    "Div": "d = Div(x, q)",
    "inverse": "i = Div(one, q)  d = Mul(i, x)",
    "Reciprocal": "i = Reciprocal(q)  d = Mul(x, i)",
}


@pytest.mark.parametrize("form", RMS)
@pytest.mark.parametrize("weight", [floats(8), np.ones(8, np.float32)], ids=["weights", "ones"])
def test_rms_norm_as_l2_norm(operate: Operate, form: str, weight: np.ndarray):
    text = f"""g (float[b,8] x) => (float[b,8] z) {{
        p = Pow(x, two)  m = ReduceMean<keepdims = 1>(p, axes)  a = Add(m, eps)  q = Sqrt(a)  {RMS[form]}  z = Mul(w, d)
    }}"""
    constants = {"two": np.float32(2), "axes": np.int64([-1]), "eps": np.float32(1e-6), "one": np.float32(1), "w": weight}
    model = graph(text, **constants)
    after = operate(model, "RMSNormToL2Norm")
    assert types(after) == ["LpNormalization", "Mul"]
    feeds = {"x": floats(3, 8)}
    assert_same(run(model, feeds), run(after, feeds))


def test_lp_norm(operate: Operate):
    text = "g (float[b,8] x) => (float[b,8] z) { p = Pow(x, two)  s = ReduceSum(p, axes)  r = Pow(s, half)  z = Div(x, r) }"
    model = graph(text, two=np.float32(2), half=np.float32(0.5), axes=np.int64([-1]))
    after = operate(model, "PowReduceSumPowDiv2LpNorm")
    assert types(after) == ["LpNormalization"]
    feeds = {"x": floats(3, 8)}
    assert_same(run(model, feeds), run(after, feeds))


@pytest.mark.parametrize("surgeon", ["SimplifiedLayerNormToL2Norm", "SimplifiedLayerNormToRMSNorm"])
def test_fused_rms_norm(operate: Operate, surgeon: str):
    text = """g (float[b,3,8] x, float[b,3,8] y) => (float[b,3,8] z, float[b,3,8] t) {
        n = SimplifiedLayerNormalization<epsilon = 1e-6, axis = -1>(x, w)
        o, , , t = com.microsoft.SkipSimplifiedLayerNormalization<epsilon = 1e-6>(n, y, v)
        z = Mul(o, t)
    }"""
    model = graph(text, w=floats(8), v=np.ones(8, np.float32))
    after = operate(model, surgeon)
    assert not any("Simplified" in one for one in types(after))
    feeds = {"x": floats(2, 3, 8), "y": floats(2, 3, 8)}
    assert_same(run(model, feeds), run(after, feeds))


def attended(q: np.ndarray, k: np.ndarray, v: np.ndarray, lengths: list[int], scale: float) -> np.ndarray:
    """Attention within each sequence, in numpy."""
    parts = []
    for start, end in pairwise(lengths):
        scores = np.exp(scale * q[:, :, start:end] @ k[:, :, start:end].swapaxes(-1, -2))
        parts.append(scores / scores.sum(-1, keepdims=True) @ v[:, :, start:end])
    return np.concatenate(parts, 2).transpose(0, 2, 1, 3)


def packed(kind: str) -> onnx.ModelProto:
    return graph(
        f"""g (float[1,2,n,8] q, float[1,2,n,8] k, float[1,2,n,8] v, {kind}[s] lengths) => (float[1,n,2,8] z) {{
            z = custom.PackedAttention<scale = 0.25, num_heads = 2>(q, k, v, lengths)
        }}"""
    )


@pytest.mark.parametrize("kind", ["int32", "int64"])
def test_packed_attention_in_a_loop(operate: Operate, kind: str):
    after = operate(packed(kind), "PackedAttentionToLoopMHA")
    assert "custom" not in {one.domain for one in after.opset_import}
    assert "Loop" in types(after)
    q, k, v = (floats(1, 2, 9, 8) for _ in range(3))
    feeds = {"q": q, "k": k, "v": v, "lengths": np.array([0, 2, 7, 9], kind)}
    np.testing.assert_allclose(run(after, feeds)["z"], attended(q, k, v, [0, 2, 7, 9], 0.25), atol=1e-5)


def test_packed_attention_in_one_operator(operate: Operate):
    after = operate(packed("int32"), "PackedAttentionToPackedMHA")
    node = next(node for node in after.graph.node if node.op_type == "PackedMultiHeadAttention")
    offsets = onnx.ModelProto()
    offsets.CopyFrom(after)
    kept = list(after.graph.node)[: list(after.graph.node).index(node)]
    del offsets.graph.node[:]
    offsets.graph.node.extend(kept)
    del offsets.graph.output[:]
    offsets.graph.output.append(helper.make_tensor_value_info(node.input[4], TensorProto.INT32, None))
    feeds = {name: floats(1, 2, 6, 8) for name in "qkv"} | {"lengths": np.int32([0, 1, 4, 6])}
    np.testing.assert_array_equal(run(offsets, feeds)[node.input[4]], [[0, 3, 4], [5, 6, 7], [1, 2, 8]])


def test_mask_values(operate: Operate):
    text = """g (float[4] x, bool[4] keep) => (float[4] z, float[4] w) {
        low = Constant<value_float = -3.4e38>()  m = Where(keep, zero, low)  s = Add(x, m)  z = Add(s, bias)  w = Div(x, far)
    }"""
    model = graph(text, zero=np.float32(0), bias=np.float32([0, -3.3e38, 0, 0]), far=np.float32(-3.2e38))
    after = operate(model, "ReplaceAttentionMaskValue", replacement=-200.0)
    feeds = {"x": np.ones(4, np.float32), "keep": np.array([True, True, False, True])}
    results = run(after, feeds)
    np.testing.assert_array_equal(results["z"], np.float32([1, -199, -199, 1]))
    np.testing.assert_array_equal(results["w"], run(model, feeds)["w"])


def rotary(shape: str, **attributes: Any) -> str:
    written = ", ".join(f"{name} = {value}" for name, value in attributes.items())
    return f"""g (float[{shape}] x, int64[p,q] positions) => (float[{shape}] z) {{
        z = com.microsoft.RotaryEmbedding<{written}>(x, positions, cosines, sines)
    }}"""


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize(
    ("text", "shape", "half"),
    [
        (rotary("b,2,n,8", interleaved="INTERLEAVED"), (2, 2, 3, 8), 4),
        (rotary("b,n,16", interleaved="INTERLEAVED"), (2, 3, 16), 4),
        (rotary("b,n,16", interleaved="INTERLEAVED", num_heads=2, rotary_embedding_dim=4), (2, 3, 16), 2),
    ],
)
def test_rotary_embedding(operate: Operate, text: str, shape: tuple[int, ...], half: int, interleaved: int):
    angles = floats(12, half)
    model = graph(text.replace("INTERLEAVED", str(interleaved)), cosines=np.cos(angles), sines=np.sin(angles))
    after = operate(model, "DecomposeRotaryEmbedding")
    assert "RotaryEmbedding" not in types(after)
    feeds = {"x": floats(*shape), "positions": np.int64([[4, 5, 6], [0, 9, 2]])}
    assert_same(run(model, feeds), run(after, feeds))


def test_rotary_embedding_from_an_offset(operate: Operate):
    angles = floats(12, 4)
    text = rotary("b,2,n,8", interleaved=0).replace("int64[p,q]", "int64[1]")
    model = graph(text, cosines=np.cos(angles), sines=np.sin(angles))
    feeds = {"x": floats(2, 2, 3, 8), "positions": np.int64([5])}
    assert_same(run(model, feeds), run(operate(model, "DecomposeRotaryEmbedding"), feeds))


@pytest.mark.parametrize("large", [False, True])
def test_rotary_caches(operate: Operate, large: bool):
    text = """g (float[b,2,n,8] x, int64[b,n] positions, bool long) => (float[b,2,n,8] z) {
        c, s = If(long) <
            then_branch = l () => (float[m,4] lc, float[m,4] ls) { lc = Identity(long_cos)  ls = Identity(long_sin) },
            else_branch = k () => (float[m,4] kc, float[m,4] ks) { kc = Identity(short_cos)  ks = Identity(short_sin) }>
        z = com.microsoft.RotaryEmbedding(x, positions, c, s)
    }"""
    angles = {"long": floats(12, 4), "short": floats(6, 4)}
    caches = {f"{name}_{label}": f(one) for name, one in angles.items() for label, f in (("cos", np.cos), ("sin", np.sin))}
    model = graph(text, **caches)
    after = operate(model, "RemoveRopeMultiCache", use_large_cache=large)
    assert types(after) == ["RotaryEmbedding"]
    assert len(after.graph.initializer) == 2
    feeds = {"x": floats(1, 2, 3, 8), "positions": np.int64([[0, 1, 2]]), "long": np.array(large)}
    after_feeds = feeds if any(value.name == "long" for value in after.graph.input) else {**feeds, "long": None}
    assert_same(run(model, feeds), run(after, {name: one for name, one in after_feeds.items() if one is not None}))


def test_sequence_lengths_in_place_of_a_mask(operate: Operate):
    text = """g (int64[b,n] input_ids, float[b,n,16] q, float[b,n,16] k, float[b,n,16] v, int64[b,t] attention_mask,
               float[b,2,p,8] past_k, float[b,2,p,8] past_v) => (float[b,n,16] z, float[b,2,t,8] k2, float[b,2,t,8] v2) {
        sum = ReduceSum<keepdims = 0>(attention_mask, one)  less = Sub(sum, one)  lengths = Cast<to = 6>(less)
        shape = Shape(attention_mask)  total64 = Gather(shape, index)  total = Cast<to = 6>(total64)
        z, k2, v2 = com.microsoft.GroupQueryAttention<num_heads = 2, kv_num_heads = 2>(q, k, v, past_k, past_v, lengths, total)
    }"""
    model = graph(text, one=np.int64([1]), index=np.int64(1))
    after = operate(model, "AttentionMaskToSequenceLengths")
    assert types(after) == ["GroupQueryAttention"]
    names = [value.name for value in after.graph.input]
    assert names[-2:] == ["past_seq_len", "total_seq_len"]
    assert "attention_mask" not in names
    feeds = {name: floats(1, 3, 16) for name in "qkv"} | {"input_ids": np.int64([[1, 2, 3]])}
    feeds |= {"past_k": floats(1, 2, 0, 8), "past_v": floats(1, 2, 0, 8)}
    lengths = {"past_seq_len": np.int32([[2]]), "total_seq_len": np.array(3, np.int32)}
    assert_same(run(model, {**feeds, "attention_mask": np.ones((1, 3), np.int64)}), run(after, {**feeds, **lengths}))


PAIR = """g (float[b,4] x) => (float[b,4] z) {
    q = QuantizeLinear(x, s, o)  d = DequantizeLinear(q, s, o)  m = MatMul(d, w)
    p = QuantizeLinear(m, s, o)  z = DequantizeLinear(p, s, o)
}"""


def quantised() -> onnx.ModelProto:
    return graph(PAIR, s=np.float32(0.1), o=np.uint8(128), w=np.eye(4, dtype=np.float32))


def test_pairs_of_quantisation(operate: Operate):
    x = {"x": np.float32([[-100, -0.55, 0.123, 100]])}
    np.testing.assert_array_equal(run(operate(quantised(), "RemoveQDQ"), x)["z"], x["x"])
    clipped = np.float32([[-12.8, -0.55, 0.123, 12.7]])
    for surgeon, options in (("RemoveQDQ", {"keep_clip_after_inputs": True}), ("QDQToClip", {})):
        after = operate(quantised(), surgeon, **options)
        assert "Clip" in types(after)
        assert not any("Quantize" in one for one in types(after))
        np.testing.assert_allclose(run(after, x)["z"], clipped, rtol=1e-6)


def test_integers_of_an_output(operate: Operate):
    after = operate(quantised(), "ExposeQuantizedOutput", output_name="z")
    results = run(after, {"x": np.float32([[-1, 0, 1, 2]])})
    assert list(results) == ["p", "z_exposed_scale_output", "z_exposed_zero_point_output"]
    scale, zero = results["z_exposed_scale_output"], results["z_exposed_zero_point_output"]
    np.testing.assert_allclose((results["p"].astype(int) - zero) * scale, [[-1, 0, 1, 2]], atol=0.05)
    with pytest.raises(RunFailed, match="not made by QuantizeLinear"):
        operate(graph(ADD), "ExposeQuantizedOutput", output_name="z")


@pytest.mark.parametrize(
    ("attributes", "scale"), [("", floats(1)[0]), ("<axis = 0>", floats(6)), ("<axis = 1, block_size = 4>", floats(6, 2))]
)
def test_dequantised_weights(operate: Operate, attributes: str, scale: np.ndarray):
    text = f"g (float[b,6] x) => (float[b,8] z) {{ w = DequantizeLinear{attributes}(c, s, o)  z = MatMul(x, w) }}"
    codes = RNG.integers(-128, 128, (6, 8)).astype(np.int8)
    model = graph(text, c=codes, s=np.asarray(scale, np.float32), o=RNG.integers(-9, 9, np.shape(scale)).astype(np.int8))
    model.opset_import[0].version = 21
    after = operate(model, "RemoveDeqLin")
    assert types(after) == ["MatMul"]
    feeds = {"x": floats(2, 6)}
    assert_same(run(model, feeds, plainly=True), run(after, feeds), 1e-4)


def test_group_index_in_order(operate: Operate):
    text = """g (float[b,64] x) => (float[b,8] z) {
        z = com.microsoft.MatMulNBits<K = 64, N = 8, bits = 4, block_size = 32>(x, c, s, , IDX)
    }"""
    codes, scales = RNG.integers(0, 256, (8, 2, 16)).astype(np.uint8), floats(8, 2)
    in_order, other = (np.arange(64) // 32).astype(np.int32), (np.arange(64) % 2).astype(np.int32)
    model = graph(text.replace("IDX", "i"), c=codes, s=scales, i=in_order)
    after = operate(model, "RemoveGidxFromMatMulNBits")
    assert "i" not in after.graph.node[0].input
    kept = operate(graph(text.replace("IDX", "i"), c=codes, s=scales, i=other), "RemoveGidxFromMatMulNBits")
    assert "i" in kept.graph.node[0].input
    plain = graph(text.replace(", , IDX", ""), c=codes, s=scales)
    feeds = {"x": floats(2, 64)}
    assert_same(run(plain, feeds), run(after, feeds))


def test_nothing_to_do_is_said(apply_pass, folder_of):
    surgeries = [{"surgeon": "RemoveMemcpy"}, {"surgeon": "TieWordEmbeddings"}, {"surgeon": "DeduplicateNodes"}]
    apply_pass("GraphSurgeries", folder_of(graph(ADD)), surgeries=surgeries)
    assert apply_pass.said == [
        "RemoveMemcpy: nothing to do",
        "TieWordEmbeddings: nothing to do, the graph has no head",
        "DeduplicateNodes: nothing to do",
    ]


def test_weight_files_stay_where_weights_do(apply_pass, folder_of):
    big = np.ones((600, 600), np.float32)
    model = folder_of(graph("g (float[1,600] x) => (float[1,600] z) { s = MatMul(x, w)  z = MatMul(s, v) }", w=big, v=2 * big))
    onnx.save(onnx.load(model.path), model.path, save_as_external_data=True, location="w.bin")
    renamed = apply_pass(
        "GraphSurgeries", model, surgeries=[{"surgeon": "RenameInputDims", "input_name": "x", "dim_idx": 0, "dim_name": "b"}]
    )
    assert sorted(path.name for path in renamed.folder.iterdir()) == ["model.onnx", "w.bin"]
    assert (renamed.folder / "w.bin").samefile(model.folder / "w.bin")
    moved = apply_pass(
        "GraphSurgeries",
        renamed,
        external_data_name="new.data",
        save_as_external_data=True,
        surgeries=[{"surgeon": "RemoveShapes"}],
    )
    assert sorted(path.name for path in moved.folder.iterdir()) == ["model.onnx", "new.data"]
    session = onnxruntime.InferenceSession(moved.path, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.ones((3, 600), np.float32)})[0][0, 0] == 600 * 600 * 2


def test_numbers_of_attributes_outside_the_graph(apply_pass, folder_of):
    text = "g (float[b,600] x) => (float[b,600] z) { c = Constant<value = float[1] {0}>()  z = Add(x, c) }"
    model = graph(text)
    del model.graph.node[0].attribute[:]
    model.graph.node[0].attribute.append(helper.make_attribute("value", numpy_helper.from_array(floats(600))))
    handle = folder_of(model)
    outside = onnx.ModelProto()
    outside.CopyFrom(model)
    onnx.save(outside, handle.path, save_as_external_data=True, location="w.bin", size_threshold=0, convert_attribute=True)
    after = onnx.load(apply_pass("GraphSurgeries", handle, surgeries=[{"surgeon": "RemoveShapes"}]).path)
    feeds = {"x": floats(2, 600)}
    assert_same(run(model, feeds), run(after, feeds))


@pytest.mark.parametrize("half", [False, True])
def test_matrix_behind_capped_logits(operate: Operate, half: bool):
    element = np.float16 if half else np.float32
    text = """g (int64[b,n] input_ids) => (float[b,n,24] logits) {
        ids = Cast<to = 6>(input_ids)  x = Gather(embedding, ids)  h = Tanh(x)  s = MatMul(h, head)
        d = Div(s, cap)  t = Tanh(d)  c = Mul(cap, t)  logits = Cast<to = 1>(c)
    }"""
    matrix = floats(24, 16, dtype=element)
    model = graph(text, embedding=matrix, head=np.ascontiguousarray(matrix.T), cap=np.array(30, element))
    after = operate(model, "TieWordEmbeddings")
    assert sum(list(tensor.dims) in ([24, 16], [16, 24]) for tensor in after.graph.initializer) == 1
    feeds = {"input_ids": np.int64([[1, 2, 3], [23, 0, 4]])}
    assert_same(run(model, feeds), run(after, feeds), 1e-2 if half else 1e-5)
    other = graph(text, embedding=matrix, head=floats(16, 24, dtype=element), cap=np.array(30, element))
    with pytest.raises(RunFailed, match="take this surgery out"):
        operate(other, "TieWordEmbeddings")


def quantised_pair(**head: np.ndarray) -> onnx.ModelProto:
    """An embedding and a head with codes of their own, those of the head the same unless given."""
    codes, scales = np.arange(24 * 32, dtype=np.uint8).reshape(24, 32), np.abs(floats(24, 2))
    read = ", ".join(["h", "hc", "hs", *([""] * bool(head.keys() & {"hg", "hb"})), *head.keys() & {"hz", "hg"}])
    model = graph(
        f"""g (int64[b,n] input_ids) => (float[b,n,24] logits) {{
            x = com.microsoft.GatherBlockQuantized<bits = 4, block_size = 32, quantize_axis = 1>(ec, input_ids, es)
            h = Tanh(x)
            logits = com.microsoft.MatMulNBits<bits = 4, block_size = 32, K = 64, N = 24>({read})
        }}""",
        **{"ec": codes, "es": scales, "hc": codes.reshape(24, 2, 16).copy(), "hs": scales.copy(), **head},
    )
    return model


def test_codes_of_embedding_and_head(operate: Operate):
    feeds = {"input_ids": np.int64([[1, 2, 3], [23, 0, 4]])}
    model = quantised_pair()
    after = operate(model, "TieWordEmbeddings")
    assert {tensor.name for tensor in after.graph.initializer} == {"hc", "hs"}
    assert_same(run(model, feeds), run(after, feeds))
    for head, cause in [
        ({"hs": np.ones((24, 2), np.float32)}, "different matrices"),
        ({"hz": floats(24, 2)}, "it is of type float, uint8"),
        ({"hg": (np.arange(64) // 32).astype(np.int32)}, "it has a group index or a bias"),
    ]:
        with pytest.raises(RunFailed, match=cause):
            operate(quantised_pair(**head), "TieWordEmbeddings")


def test_embedding_alone_in_eight_bits(operate: Operate):
    model = graph(
        "g (int64[b,n] input_ids) => (float[b,n,64] inputs_embeds) { inputs_embeds = Gather(m, input_ids) }", m=floats(40, 64)
    )
    model.opset_import.pop()
    model.opset_import.pop()
    after = operate(model, "QuantizeEmbeddingInt8")
    feeds = {"input_ids": np.int64([[1, 2, 39]])}
    assert_same(run(model, feeds), run(after, feeds), 0.02)
    uneven = graph("g (int64[n] input_ids) => (float[n,40] e) { e = Gather(m, input_ids) }", m=floats(9, 40))
    with pytest.raises(RunFailed, match="rows of 40 weights cannot be cut into blocks of 32"):
        operate(uneven, "QuantizeEmbeddingInt8")
