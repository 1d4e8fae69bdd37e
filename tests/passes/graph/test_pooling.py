"""Sentence embeddings inside the graph, against the pooling that is done outside it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import parser

from runner.errors import InvalidRecipe, RunFailed
from runner.evaluation.parity import Parity
from runner.evaluation.retention import pooled
from runner.models.handle import ModelHandle
from runner.models.twin import architecture_of
from runner.passes.export.tiny_twin import make_twin

HIDDEN = np.random.default_rng(3).standard_normal((3, 5, 4)).astype(np.float32)
MASK = np.int64([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]])
ENCODER = """<ir_version: 10, opset_import: ["": 17]>
g (TYPE[b,t,4] x, int64[b,t] attention_mask) => (TYPE[made_up,t,4] last_hidden_state, TYPE[b,4] pooler_output) {
    last_hidden_state = Identity(x)
    pooler_output = ReduceMean<axes = [1], keepdims = 0>(last_hidden_state)
}"""

Pool = Callable[..., onnx.ModelProto]


@pytest.fixture
def pool(apply_pass, tmp_path: Path) -> Pool:
    def apply(text: str = ENCODER.replace("TYPE", "float"), **options: object) -> onnx.ModelProto:
        onnx.save(parser.parse_model(text), tmp_path / "model.onnx")
        surgeries = [{"surgeon": "PoolSentences", **options}]
        return onnx.load(apply_pass("GraphSurgeries", ModelHandle("onnx", tmp_path, "model.onnx"), surgeries=surgeries).path)

    return apply


def embed(model: onnx.ModelProto, hidden: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    known = {one.name for one in session.get_inputs()}
    (vectors,) = session.run(None, {k: v for k, v in {"x": hidden, "attention_mask": MASK}.items() if k in known})
    return vectors


@pytest.mark.parametrize("first", [False, True])
def test_the_graph_pools_as_it_is_done_outside(pool: Pool, first: bool) -> None:
    graph = pool(pooling="first_token" if first else "mean")
    (output,) = graph.graph.output
    assert output.name == "sentence_embedding"
    assert [dim.dim_param or dim.dim_value for dim in output.type.tensor_type.shape.dim] == ["made_up" if first else "b", 4]
    onnx.checker.check_model(graph, full_check=True)
    assert not any(node.op_type == "ReduceMean" for node in graph.graph.node)
    np.testing.assert_allclose(embed(graph, HIDDEN), pooled(HIDDEN, MASK, first), atol=1e-6)


def test_the_length_stays_where_nobody_asks_for_one(pool: Pool) -> None:
    vectors = embed(pool(normalize=False), HIDDEN)
    np.testing.assert_allclose(vectors[1], HIDDEN[1, :2].mean(axis=0), atol=1e-6)
    assert not vectors[2].any()


def test_half_precision_states_are_summed_in_single_precision(pool: Pool) -> None:
    hidden = np.full((3, 5, 4), 30000, np.float16)
    vectors = embed(pool(ENCODER.replace("TYPE", "float16")), hidden)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors[0], 0.5, atol=1e-6)


def test_graphs_that_cannot_be_pooled(pool: Pool) -> None:
    text = ENCODER.replace("TYPE", "float")
    with pytest.raises(RunFailed, match="hidden states are"):
        pool(hidden_states="pooler_output")
    with pytest.raises(RunFailed, match="the graph is of opset 12, and pooling needs 13"):
        pool(text.replace("17]", "12]"))
    with pytest.raises(InvalidRecipe, match="there is no output 'hidden'") as told:
        pool(hidden_states="hidden")
    assert "known: last_hidden_state, pooler_output" in str(told.value)
    with pytest.raises(InvalidRecipe, match="there is no input 'mask'"):
        pool(attention_mask="mask")


@pytest.mark.parametrize("normalize", [True, False])
def test_a_pooled_encoder_is_compared_with_its_sources_embeddings(apply_pass, tmp_path: Path, normalize: bool) -> None:
    twin = architecture_of("sentence-transformers/all-MiniLM-L6-v2")
    source = make_twin(twin, "feature-extraction", tmp_path)
    graph = apply_pass("OnnxConversion", source, use_dynamo_exporter=False, target_opset=17)
    model = apply_pass("GraphSurgeries", graph, surgeries=[{"surgeon": "PoolSentences", "normalize": normalize}])
    told = Parity(source, threads=1).compare(model)
    assert told["numeric"]
    assert list(told["outputs"]) == ["sentence_embedding"]
    assert told["outputs"]["sentence_embedding"]["cosine"] == pytest.approx(1, abs=1e-6)
    wrong = apply_pass(
        "GraphSurgeries", graph, surgeries=[{"surgeon": "PoolSentences", "pooling": "first_token", "normalize": normalize}]
    )
    assert Parity(source, threads=1).compare(wrong)["outputs"]["sentence_embedding"]["cosine"] < 0.999
