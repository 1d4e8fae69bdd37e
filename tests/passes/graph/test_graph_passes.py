"""Graph passes change the graph, not what it computes."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter

import numpy as np
import onnx
import pytest
from pydantic import ValidationError

from runner.errors import InvalidRecipe, RunFailed
from runner.models.handle import ModelHandle
from runner.models.session import TUNED_FILE, open_session, tuned_options
from runner.passes.graph.transformers_optimization import (
    _FUSION_SWITCHES,
    MODEL_TYPES,
    OrtTransformersOptimizationOptions,
)
from runner.targets.target import usable_cores


def text_inputs(side: str = "left") -> dict[str, np.ndarray]:
    ids = np.random.default_rng(0).integers(5, 30, (2, 12))
    mask = np.ones_like(ids)
    mask[1, slice(0, 5) if side == "left" else slice(7, None)] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def run(model: ModelHandle, inputs: dict[str, np.ndarray]) -> np.ndarray:
    session = open_session(model, 1)
    types = {"tensor(int32)": np.int32, "tensor(float16)": np.float16}
    given = {one.name: inputs[one.name].astype(types.get(one.type, inputs[one.name].dtype)) for one in session.get_inputs()}
    return session.run(None, given)[0].astype(np.float32)


def same(one: ModelHandle, other: ModelHandle, atol: float = 1e-5) -> None:
    for side in ("left", "right"):
        inputs = text_inputs(side)
        real = inputs["attention_mask"].astype(bool)
        np.testing.assert_allclose(run(one, inputs)[real], run(other, inputs)[real], atol=atol)


def operators(model: ModelHandle) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(model.path).graph.node)


class TestTransformersOptimization:
    def test_fuses_every_attention_of_a_traced_graph(self, traced_bert, apply_pass):
        made = apply_pass("OrtTransformersOptimization", traced_bert)
        found = operators(made)
        assert found["Attention"] == 2
        assert found["SkipLayerNormalization"] == 4
        assert found["Softmax"] == 0
        same(traced_bert, made)
        assert "2 Attention" in apply_pass.said[-1]

    def test_keeps_the_attention_of_a_newer_graph(self, exported_bert, apply_pass):
        made = apply_pass("OrtTransformersOptimization", exported_bert, model_type="BERT")
        assert operators(made)["Attention"] == 2
        assert operators(made)["BiasGelu"] == 2
        same(exported_bert, made)

    @pytest.mark.parametrize("level", [0, 1, 2, 99])
    def test_every_level(self, traced_bert, apply_pass, level):
        same(traced_bert, apply_pass("OrtTransformersOptimization", traced_bert, opt_level=level))

    def test_only_onnxruntime_needs_no_model_type(self, exported_resnet, apply_pass):
        made = apply_pass("OrtTransformersOptimization", exported_resnet, only_onnxruntime=True, model_type="", opt_level=1)
        open_session(made, 1)

    def test_unknown_architecture_gets_the_runtimes_own_optimisation(self, exported_resnet, apply_pass):
        open_session(apply_pass("OrtTransformersOptimization", exported_resnet), 1)
        assert any("no fusions are known for resnet" in text for text in apply_pass.said)

    def test_nothing_says_what_the_graph_is(self, exported_resnet, apply_pass):
        model = ModelHandle("onnx", exported_resnet.folder, "model.onnx")
        with pytest.raises(InvalidRecipe, match="model_type"):
            apply_pass("OrtTransformersOptimization", model)

    def test_half_precision_and_int32_inputs(self, traced_bert, apply_pass):
        made = apply_pass("OrtTransformersOptimization", traced_bert, float16=True, input_int32=True)
        types = {one.name: one.type for one in open_session(made, 1).get_inputs()}
        assert set(types.values()) == {"tensor(int32)"}
        same(traced_bert, made, atol=3e-2)

    def test_int32_inputs_of_a_newer_graph(self, exported_bert, apply_pass):
        same(exported_bert, apply_pass("OrtTransformersOptimization", exported_bert, input_int32=True))

    def test_external_data_stays_readable(self, traced_bert, apply_pass):
        made = apply_pass("OrtTransformersOptimization", traced_bert, save_as_external_data=True, size_threshold=0)
        again = apply_pass("OrtTransformersOptimization", made)
        assert not (again.folder / "model.onnx.data").exists()
        same(traced_bert, again)

    @pytest.mark.parametrize(("given", "level"), [("all", 99), ("Basic", 1), ("extended", 2), ("none", 0), (99, 99)])
    def test_levels_by_name(self, given, level):
        assert OrtTransformersOptimizationOptions.model_validate({"opt_level": given}).opt_level == level
        assert OrtTransformersOptimizationOptions.renamed["optimization_level"] == "opt_level"

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"model_type": "berd"}, "did you mean 'bert'"),
            ({"optimization_options": {"enable_gleu": True}}, "did you mean 'enable_gelu'"),
            ({"opt_level": 3}, "0, 1, 2 or 99"),
            ({"only_onnxruntime": True, "opt_level": 0}, "would do nothing"),
        ],
    )
    def test_options_that_cannot_be(self, options, told):
        with pytest.raises(ValidationError, match=told):
            OrtTransformersOptimizationOptions.model_validate(options)

    def test_lists_are_the_librarys(self):
        from onnxruntime.transformers import fusion_options, optimizer

        assert set(optimizer.MODEL_TYPES) <= set(MODEL_TYPES)
        for kind in ("bert", "unet"):
            assert set(vars(fusion_options.FusionOptions(kind))) <= set(_FUSION_SWITCHES)

    @pytest.mark.parametrize("exported", ["exported_bert", "traced_bert"])
    def test_half_precision_for_a_device_that_is_not_here(self, exported, request, apply_pass):
        model = request.getfixturevalue(exported)
        options = {"float16": True, "use_gpu": True, "opt_level": 99, "keep_io_types": False, "model_type": "bert"}
        made = apply_pass("OrtTransformersOptimization", model, target="directml", **options)
        assert any("opt_level 1 in place of 99" in text for text in apply_pass.said)
        assert open_session(made, 1).get_outputs()[0].type == "tensor(float16)"
        same(model, made, atol=3e-2)

    def test_a_graph_without_anything_to_fuse_is_told(self, exported_resnet, apply_pass):
        options = {"model_type": "bert", "opt_level": 0, "num_heads": 4, "hidden_size": 32}
        apply_pass("OrtTransformersOptimization", exported_resnet, **options)
        assert "nothing was fused" in apply_pass.said[-1]

    def test_every_part_of_a_split_model(self, traced_bert, apply_pass):
        parts = apply_pass("SplitModel", traced_bert, split_assignments={"encoder.layer.0": 0, "encoder.layer.1": 1})
        made = apply_pass("OrtTransformersOptimization", parts)
        assert sorted(path.name for path in made.folder.glob("*.onnx")) == ["split_0.onnx", "split_1.onnx"]
        same(traced_bert, made)
        with pytest.raises(InvalidRecipe, match="ComposeOnnxModels"):
            apply_pass("OrtSessionParamsTuning", made, seconds=0.05)

    def test_genai_folder_is_kept(self, tiny_llama, apply_pass, tmp_path):
        og = pytest.importorskip("onnxruntime_genai")
        built = apply_pass("ModelBuilder", tiny_llama, precision="int4")
        made = apply_pass("OrtTransformersOptimization", built, model_type="gpt2", opt_level="all")
        assert made.kind == "genai"
        assert sorted(path.name for path in made.folder.iterdir()) == sorted(path.name for path in built.folder.iterdir())
        og.Model(str(made.folder))
        with pytest.raises(InvalidRecipe, match="ModelBuilder"):
            apply_pass("OrtTransformersOptimization", built, float16=True)


class TestPeephole:
    def test_folds_a_traced_graph(self, traced_bert, apply_pass):
        made = apply_pass("OnnxPeepholeOptimizer", traced_bert)
        assert sum(operators(made).values()) < 0.7 * sum(operators(traced_bert).values())
        same(traced_bert, made)

    def test_splits_skip_layer_normalization(self, traced_bert, apply_pass):
        fused = apply_pass("OrtTransformersOptimization", traced_bert)
        made = apply_pass("OnnxPeepholeOptimizer", fused, split_skip_layer_normalization=True)
        assert operators(made)["SkipLayerNormalization"] == 0
        assert operators(made)["LayerNormalization"] >= 4
        same(traced_bert, made)

    def test_chains(self, tmp_path, apply_pass):
        made = apply_pass("OnnxPeepholeOptimizer", chained(tmp_path), onnxscript_optimize=False)
        found = operators(made)
        assert (found["Cast"], found["Reshape"]) == (3, 1)  # float -> int32 -> int64 keeps the cast that cuts
        assert found["Neg"] == 1
        x = np.arange(-3, 3, dtype=np.float32).reshape(2, 3) / 2
        ours, wanted = open_session(made, 1).run(None, {"x": x}), open_session(chained(tmp_path), 1).run(None, {"x": x})
        for one, other in zip(ours, wanted, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_missing_opset_of_onnxruntimes_operators(self, tmp_path, apply_pass):
        graph = onnx.parser.parse_graph("g (float[2] x) => (float[2] y) { y = com.microsoft.Gelu(x) }")
        onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), tmp_path / "model.onnx")
        made = apply_pass("OnnxPeepholeOptimizer", ModelHandle("onnx", tmp_path, "model.onnx"), onnxscript_optimize=False)
        assert {(one.domain, one.version) for one in onnx.load(made.path).opset_import} >= {("com.microsoft", 1)}

    def test_without_onnxoptimizer_onnx_ir_shares_what_is_equal(self, tmp_path, apply_pass):
        pytest.importorskip("onnx_ir")
        if importlib.util.find_spec("onnxoptimizer"):
            pytest.skip("onnxoptimizer is installed")
        text = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y) <float[2] a = {1, 2}, float[2] b = {1, 2}> {
            same = Identity (x)
            one = Add (same, a)
            other = Add (x, b)
            y = Mul (one, other)
        }
        """
        onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
        alone = {"onnxscript_optimize": False, "cast_chain_elimination": False, "fuse_reshape_operations": False}
        model = ModelHandle("onnx", tmp_path, "model.onnx")
        made = apply_pass("OnnxPeepholeOptimizer", model, **alone)
        assert operators(made) == {"Add": 1, "Mul": 1}
        assert any("not installed" in text for text in apply_pass.said)
        off = apply_pass("OnnxPeepholeOptimizer", model, **alone, onnxoptimizer_optimize=False)
        assert operators(off) == operators(model)

    def test_opset_of_onnxruntimes_operators_in_functions(self, tmp_path, apply_pass):
        function = onnx.parser.parse_function(
            '<opset_import: ["" : 17], domain: "local"> f (x) => (y) { y = com.microsoft.Gelu(x) }'
        )
        graph = onnx.parser.parse_graph("g (float[2] x) => (float[2] y) { y = local.f(x) }")
        opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("local", 1)]
        onnx.save(onnx.helper.make_model(graph, functions=[function], opset_imports=opsets), tmp_path / "model.onnx")
        made = apply_pass("OnnxPeepholeOptimizer", ModelHandle("onnx", tmp_path, "model.onnx"), onnxscript_optimize=False)
        for entries in (onnx.load(made.path).opset_import, onnx.load(made.path).functions[0].opset_import):
            assert ("com.microsoft", 1) in {(one.domain, one.version) for one in entries}
        open_session(made, 1)


def chained(folder) -> ModelHandle:
    """Casts of which the first loses nothing, casts of which the first cuts, and reshapes of which the second flattens."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[2,3] x) => (float[n] flat, float16[2,3] kept, int64[2,3] cut, float[2,3] back)
        <int64[2] six = {6, 1}, int64[1] all = {-1}> {
        wide = Cast <to = 11> (x)
        kept = Cast <to = 10> (wide)
        short = Cast <to = 6> (x)
        cut = Cast <to = 7> (short)
        half = Cast <to = 10> (x)
        full = Cast <to = 1> (half)
        back = Neg (full)
        tall = Reshape (x, six)
        flat = Reshape (tall, all)
    }
    """
    model = onnx.parser.parse_model(text)
    onnx.save(model, folder / "model.onnx")
    return ModelHandle("onnx", folder, "model.onnx")


class TestFloat16:
    def test_half_the_size_and_nearly_the_numbers(self, exported_bert, apply_pass):
        made = apply_pass("OnnxFloatToFloat16", exported_bert, keep_io_types=True)
        assert open_session(made, 1).get_outputs()[0].type == "tensor(float)"
        assert made.path.stat().st_size < 0.75 * exported_bert.path.stat().st_size
        same(exported_bert, made, atol=3e-2)

    def test_inputs_and_outputs_become_half(self, exported_resnet, apply_pass):
        made = apply_pass("OnnxFloatToFloat16", exported_resnet, op_block_list=["GlobalAveragePool"])
        assert open_session(made, 1).get_inputs()[0].type == "tensor(float16)"


class TestMetadata:
    def test_name_and_entries(self, exported_bert, apply_pass):
        made = apply_pass("AddOliveMetadata", exported_bert, graph_name="sentences", custom_metadata={"team": 7})
        graph = onnx.load(made.path)
        entries = {entry.key: entry.value for entry in graph.metadata_props}
        assert graph.graph.name == "sentences"
        assert entries["team"] == "7"
        assert entries["hf_task"] == "feature-extraction"
        assert len(entries["model_hash"]) == 64
        same(exported_bert, made)

    def test_external_weights_are_not_rewritten(self, exported_bert, apply_pass):
        outside = apply_pass("OnnxPeepholeOptimizer", exported_bert, save_as_external_data=True, size_threshold=0)
        made = apply_pass("AddOliveMetadata", outside, graph_name="g")
        assert (made.folder / "model.onnx.data").read_bytes() == (outside.folder / "model.onnx.data").read_bytes()
        same(exported_bert, made)


class TestSessionTuning:
    def test_records_the_machine_and_is_used_there_only(self, exported_bert, apply_pass, monkeypatch):
        made = apply_pass(
            "OrtSessionParamsTuning",
            exported_bert,
            seconds=0.05,
            intra_thread_num_list=[1, 2],
            execution_mode_list=[0, 1],
            opt_level_list=99,
        )
        written = json.loads((made.folder / TUNED_FILE).read_text())
        assert written["machine"]["cores"] == usable_cores()
        assert len(written["trials"]) >= 4
        assert tuned_options(made)["intra_op_num_threads"] in (1, 2)
        folder_alone = ModelHandle("onnx", made.folder, "model.onnx")
        assert tuned_options(folder_alone) == tuned_options(made)
        same(exported_bert, made)
        monkeypatch.setattr("runner.models.session.usable_cores", lambda: 64)
        assert tuned_options(made) == {}

    def test_trial_that_fails(self, exported_bert, apply_pass):
        broken = ModelHandle("onnx", exported_bert.folder, "model.onnx")
        data = iter([{"input_ids": np.zeros((1, 4), np.float32)}])
        with pytest.raises(RunFailed, match="a trial with"):
            apply_pass("OrtSessionParamsTuning", broken, data=data, data_config="bad", seconds=0.05)
