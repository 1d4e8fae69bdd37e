import json
import shutil
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from runner.errors import InvalidRecipe, RunFailed
from runner.evaluation.parity import Parity
from runner.models.generation import GenerationSession, import_genai
from runner.models.handle import ModelHandle
from runner.models.twin import architecture_of
from runner.passes.declaration import PassContext
from runner.passes.export.tiny_twin import make_twin
from runner.passes.genai import model_builder, streamed_weights
from runner.passes.genai.builder_checks import check_combination
from runner.passes.genai.builder_options import ModelBuilderOptions
from runner.passes.genai.model_builder import PASS
from runner.targets.target import TARGETS


@pytest.fixture
def context(tmp_path: Path) -> PassContext:
    output, scratch = tmp_path / "output", tmp_path / "scratch"
    output.mkdir()
    scratch.mkdir()
    return PassContext(output, scratch, TARGETS["cpu"], 2, lambda _: iter(()), lambda _: None)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    twin = architecture_of("HuggingFaceTB/SmolLM2-135M-Instruct")
    return make_twin(twin, twin.task, tmp_path_factory.mktemp("tied"))


def built(model: ModelHandle, context: PassContext, **options: object) -> ModelHandle:
    return PASS.apply(model, ModelBuilderOptions.model_validate(options), context)


def test_two_names_of_one_extra_option_must_say_the_same() -> None:
    def both(value: int) -> ModelBuilderOptions:
        return ModelBuilderOptions.model_validate({"extra_options": {"int4_block_size": 32, "block_size": value}})

    with pytest.raises(ValidationError, match="'int4_block_size' and 'block_size' are two names of one option"):
        both(64)
    extra = both(32).extra_options
    assert extra is not None
    assert extra.block_size == 32


@pytest.mark.parametrize(
    ("width", "kind", "rotations"),
    [(16, "GroupQueryAttention", 0), (24, "GroupQueryAttention", 4), (20, "MultiHeadAttention", 4)],
)
@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_heads_of_every_width_compute_what_torch_computes(
    width: int, kind: str, rotations: int, precision: str, tmp_path: Path, context: PassContext, tied: ModelHandle
) -> None:
    model = with_heads(tied, width, tmp_path / "model")
    made = built(model, context, precision=precision, prune_lm_head=precision == "int4")
    operators = [node.op_type for node in onnx.load(made.folder / "model.onnx", load_external_data=False).graph.node]
    assert {name for name in operators if name.endswith("Attention")} == {kind}
    assert operators.count("RotaryEmbedding") == rotations
    outputs = Parity(model, 2).compare(made)["outputs"]
    if precision == "fp32":
        assert outputs["logits"]["max_abs_diff"] < 0.01
        assert outputs["logits_while_decoding"]["max_abs_diff"] < 0.01
    else:
        assert outputs["logits"]["cosine"] > 0.9
    session = GenerationSession(made.folder, 2)
    assert 1 <= len(list(session.generate(session.prompt("Why is the sky blue?"), 6))) <= 6


def test_heads_of_a_width_without_an_attention_are_refused_before_the_build(
    tmp_path: Path, context: PassContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = architecture_of("mistralai/Mistral-7B-Instruct-v0.1")
    model = with_heads(make_twin(twin, twin.task, tmp_path / "source"), 20, tmp_path / "model")
    with pytest.raises(InvalidRecipe, match=r"heads of this model are 20 wide .* with a sliding window") as caught:
        built(model, context, precision="int4")
    assert caught.value.problems[0].rule == "head-size-not-served"
    assert "OnnxConversion" in str(caught.value.problems[0].remedy)
    assert not list(context.output.iterdir())
    monkeypatch.setattr(streamed_weights, "SERVED", ())  # nothing of the builder is changed in a release that is not known
    (context.scratch / "builder").rmdir()
    built(model, context, precision="fp32")


def with_heads(model: ModelHandle, width: int, folder: Path) -> ModelHandle:
    """Returns a model of the same configuration whose heads are so wide."""
    shutil.copytree(model.folder, folder)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, head_dim=width)).save_pretrained(folder)
    return replace(model, folder=folder)


@pytest.mark.parametrize(
    ("twin_of", "options", "remedy"),
    [
        ("microsoft/Phi-3-mini-4k-instruct", {"precision": "int4"}, "embedding_bits: 8"),
        ("microsoft/Phi-3-mini-4k-instruct", {"precision": "int4", "embedding_bits": 8}, None),
        ("microsoft/Phi-3-mini-4k-instruct", {"precision": "fp32"}, None),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", {"precision": "int8"}, "shared_embeddings"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", {"precision": "int4"}, None),
    ],
)
def test_a_wide_embedding_in_floating_point_beside_codes_is_told(
    twin_of: str,
    options: dict[str, object],
    remedy: str | None,
    tmp_path: Path,
    context: PassContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_builder, "_WIDE", 0)
    said: list[str] = []
    twin = architecture_of(twin_of)
    built(make_twin(twin, twin.task, tmp_path / "source"), replace(context, say=said.append), **options)
    told = [text for text in said if text.startswith("the embedding stays in fp32")]
    assert len(told) == (remedy is not None)
    assert not told or f"{remedy} makes it" in told[0]


# One of each kind of head, rotation, window, normalisation and embedding that the builder writes differently.
FAMILIES = [
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    "meta-llama/Llama-3.2-1B-Instruct",
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "Qwen/Qwen2.5-0.5B-Instruct",
    "Qwen/Qwen3-0.6B",
    "microsoft/Phi-3-mini-4k-instruct",
    "microsoft/Phi-3.5-mini-instruct",
    "microsoft/Phi-4-mini-instruct",
    "google/gemma-2-2b-it",
    "google/gemma-3-1b-it",
    "google/gemma-3-4b-it",
    "mistralai/Mistral-7B-Instruct-v0.1",
    "mistralai/Mistral-7B-Instruct-v0.3",
]


@pytest.mark.parametrize("model_id", FAMILIES)
def test_fp32_computes_what_torch_computes(model_id: str, tmp_path: Path, context: PassContext):
    twin = architecture_of(model_id)
    source = make_twin(twin, twin.task, tmp_path / "source")
    outputs = Parity(source, 2).compare(built(source, context, precision="fp32"))["outputs"]
    assert outputs["logits"]["max_abs_diff"] < 0.01
    assert outputs["logits_while_decoding"]["max_abs_diff"] < 0.01
    assert outputs["logits"]["top1_agreement"] == 1.0


@pytest.mark.parametrize("model_id", FAMILIES)
def test_int4_answers(model_id: str, tmp_path: Path, context: PassContext):
    twin = architecture_of(model_id)
    source = make_twin(twin, twin.task, tmp_path / "source")
    model = built(source, context, precision="int4", prune_lm_head=True)
    session = GenerationSession(model.folder, 2)
    tokens = list(session.generate(session.prompt("Why is the sky blue?"), 6))
    assert 1 <= len(tokens) <= 6
    assert Parity(source, 2).compare(model)["outputs"]["logits"]["cosine"] > 0.9


def test_output_folder(tied: ModelHandle, context: PassContext):
    (tied.folder / "special_tokens_map.json").write_text("{}")
    model = built(tied, context, precision="int4", search={"temperature": 0.5})
    names = {path.name for path in model.folder.iterdir()}
    assert {
        "model.onnx",
        "model.onnx.data",
        "genai_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
    } <= names
    config = json.loads((model.folder / "genai_config.json").read_text())
    assert "intra_op_num_threads" not in json.dumps(config), "a model folder carries no machine's core count"
    assert config["search"]["temperature"] == 0.5
    assert (model.kind, model.file) == ("genai", "model.onnx")
    assert model.attributes["num_attention_heads"] == 6


@pytest.mark.parametrize("named", ["TokenizersBackend", "Qwen2Tokenizer"])
def test_older_runtimes_know_the_class_of_the_tokenizer(tied: ModelHandle, context: PassContext, tmp_path: Path, named: str):
    """onnxruntime-genai 0.13 refuses TokenizersBackend; its list of classes has PreTrainedTokenizer, whose suffix it strips."""
    source = ModelHandle(tied.kind, tmp_path / "source", tied.file, tied.task, dict(tied.attributes))
    shutil.copytree(tied.folder, source.folder)
    told = source.folder / "tokenizer_config.json"
    told.write_text(json.dumps({**json.loads(told.read_text()), "tokenizer_class": named}))
    model = built(source, context, precision="int4")
    written = json.loads((model.folder / "tokenizer_config.json").read_text())["tokenizer_class"]
    assert written == ("PreTrainedTokenizerFast" if named == "TokenizersBackend" else named)
    text = "Grüße, 12345 times  two\n a_b"
    expected = AutoTokenizer.from_pretrained(source.folder)(text)["input_ids"]
    assert AutoTokenizer.from_pretrained(model.folder)(text)["input_ids"] == expected
    if named == "TokenizersBackend":  # the runtime's own tokenizer goes by the name as well
        before = encoded(model.folder, text)
        config = json.loads((model.folder / "tokenizer_config.json").read_text())
        (model.folder / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": named}))
        assert before == encoded(model.folder, text)


def encoded(folder: Path, text: str) -> list[int]:
    runtime = import_genai()
    return [int(token) for token in runtime.Tokenizer(runtime.Model(str(folder))).encode(text)]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("mixed", [None, {"last_matmul": "int8", "mixed_layers": "int8"}])
@pytest.mark.parametrize("algorithm", [None, "rtn", "k_quant"])
def test_int4_schemes_of_a_tied_model_load(
    tied: ModelHandle, context: PassContext, algorithm: str | None, mixed: dict | None, symmetric: bool
):
    model = built(
        tied,
        context,
        precision="int4",
        algo_config=algorithm,
        is_symmetric=symmetric,
        matmul_mixed_precision=mixed,
        block_size=64,
    )
    compared = Parity(tied, 2).compare(model)["outputs"]["logits"]
    assert compared["cosine"] > (0.95 if mixed else 0.9)


def test_odd_blocks_are_refused(tied: ModelHandle, context: PassContext):
    real = ModelHandle("hf", tied.folder, None, tied.task)
    with pytest.raises(InvalidRecipe) as caught:
        built(real, context, precision="int4", algo_config="k_quant", block_size=64)
    assert "odd number of blocks" in caught.value.problems[0].cause
    assert "32" in caught.value.problems[0].remedy


def test_a_scheme_that_would_not_load_is_refused(tied: ModelHandle, context: PassContext):
    with pytest.raises(InvalidRecipe, match="algo_config 'default' shares no embedding"):
        built(tied, context, precision="int4", algo_config="default", is_symmetric=False)
    loads = built(tied, context, precision="int4", algo_config="default", is_symmetric=False, shared_embeddings=False)
    assert Parity(tied, 2).compare(loads)["outputs"]["logits"]["cosine"] > 0.9


def test_names_of_olive_are_known():
    assert ModelBuilderOptions.renamed["int4_block_size"] == "block_size"
    options = ModelBuilderOptions.model_validate(
        {"precision": "int4", "extra_options": {"int4_accuracy_level": 0, "filename": "text.onnx"}}
    )
    assert options.extra_options.accuracy_level == 0
    assert ModelBuilderOptions.model_validate({"precision": "int", "metadata_only": True}).precision == "int4"
    assert ModelBuilderOptions.retired["use_ort_genai"]


def test_spellings_of_the_command_line_are_known():
    given = {
        "int4_block_size": "128",
        "accuracy_level": "4",
        "op_types_to_quantize": "MatMul/Gather",
        "nodes_to_exclude": "a,b",
    }
    extra = ModelBuilderOptions.model_validate({"precision": "int4", "extra_options": given}).extra_options
    assert (extra.block_size, extra.accuracy_level) == (128, 4)
    assert (extra.op_types_to_quantize, extra.nodes_to_exclude) == (["MatMul", "Gather"], ["a", "b"])


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "int5"},
        {"block_size": "48"},
        {"block_size": 48},
        {"accuracy_level": 7},
        {"algo_config": "gptq"},
        {"matmul_mixed_precision": {"first_matmul": "int8"}},
        {"extra_options": {"prune_lm_hed": True}},
        {"prune_lm_head": "perhaps"},
    ],
)
def test_bad_options_are_refused(options: dict):
    with pytest.raises(ValidationError):
        ModelBuilderOptions.model_validate(options)


@pytest.mark.parametrize(
    ("options", "target", "rule"),
    [
        ({"precision": "fp16"}, "cpu", "precision-not-served"),
        ({"precision": "bf16"}, "cpu", "precision-not-served"),
        ({"precision": "fp32"}, "directml", "precision-not-served"),
        ({"precision": "int8"}, "directml", "precision-not-served"),
        ({"precision": "fp32", "block_size": 32}, "cpu", "not-quantised"),
        ({"precision": "int4", "exclude_lm_head": True, "include_hidden_states": True}, "cpu", "bad-combination"),
        ({"precision": "int4", "exclude_lm_head": True, "extra_options": {"prune_lm_head": True}}, "cpu", "bad-combination"),
        ({"precision": "int8", "use_qdq": True}, "cpu", "bad-combination"),
        ({"precision": "int4", "shared_embeddings": True}, "directml", "bad-combination"),
        ({"precision": "int4", "algo_config": "k_quant", "use_cuda_bf16": True}, "cuda", "bad-combination"),
    ],
)
def test_illegal_combinations(options: dict, target: str, rule: str):
    with pytest.raises(InvalidRecipe) as caught:
        check_combination(ModelBuilderOptions.model_validate(options), TARGETS[target])
    assert [problem.rule for problem in caught.value.problems] == [rule]


def test_an_encoder_is_not_built(tmp_path: Path, context: PassContext):
    twin = architecture_of("google-bert/bert-base-uncased")
    with pytest.raises(RunFailed, match="unsupported-architecture"):
        built(make_twin(twin, twin.task, tmp_path / "bert"), context, precision="int4")


def test_parts_of_a_model_are_recorded_without_numbers(tied: ModelHandle, context: PassContext):
    model = built(tied, context, precision="int4", exclude_embeds=True, extra_options={"filename": "text.onnx"})
    assert model.file == "text.onnx"
    compared = Parity(tied, 2).compare(model)
    assert compared["numeric"] is False
    assert "part of a model" in compared["reason"]


def test_metadata_only_describes_a_finished_graph(tied: ModelHandle, tmp_path: Path, context: PassContext):
    graph = tmp_path / "graph"
    graph.mkdir()
    for path in tied.folder.iterdir():
        (graph / path.name).write_bytes(path.read_bytes())
    (graph / "decoder.onnx").write_bytes(b"graph")
    model = built(ModelHandle("onnx", graph, "decoder.onnx", tied.task), context, metadata_only=True)
    config = json.loads((model.folder / "genai_config.json").read_text())
    assert config["model"]["decoder"]["filename"] == "decoder.onnx"
    assert (model.folder / "decoder.onnx").read_bytes() == b"graph"
    with pytest.raises(InvalidRecipe, match="finished ONNX model"):
        built(tied, context, metadata_only=True)


def test_an_onnx_model_is_not_built_from(tmp_path: Path, context: PassContext):
    with pytest.raises(InvalidRecipe, match="builds from a Hugging Face model"):
        built(ModelHandle("onnx", tmp_path, "model.onnx"), context, precision="int4")
