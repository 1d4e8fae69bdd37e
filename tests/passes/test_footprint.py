"""The sizes that rules foretell are those of the files that passes write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runner.models.handle import ModelHandle
from runner.models.stored_weights import count_files
from runner.models.twin import architecture_of
from runner.models.twin_tokenizer import train_tokenizer
from runner.passes import table
from runner.passes.declaration import PassContext
from runner.passes.footprint import RULES, Stored
from runner.targets.target import TARGETS

CLOSE = 0.03


def llama(folder: Path, tied: bool) -> ModelHandle:
    """A Llama of 20M random weights, in bfloat16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=16384, hidden_size=512, intermediate_size=1536, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=tied,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    vocabulary = architecture_of("meta-llama/Llama-3.2-1B").vocabulary
    assert vocabulary is not None
    train_tokenizer(vocabulary).save_pretrained(folder)
    return ModelHandle("hf", folder, task="text-generation", attributes={"model_type": "llama"})


def made(model: ModelHandle, name: str, folder: Path, target: str = "cpu", **options: Any) -> ModelHandle:
    output, scratch = folder / "output", folder / "scratch"
    output.mkdir(parents=True)
    scratch.mkdir()
    context = PassContext(output, scratch, TARGETS[target], 2, lambda _: iter(()), lambda _: None)
    pass_ = table.get(name)
    return pass_.apply(model, pass_.options.model_validate(options), context)


def bytes_of(model: ModelHandle, *endings: str) -> int:
    return sum(path.stat().st_size for path in model.folder.iterdir() if path.name.endswith(endings))


def source(model: ModelHandle) -> Stored:
    return Stored.plain(*count_files(model.folder))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_language_models(tied: bool, tmp_path: Path) -> None:
    model = llama(tmp_path / "source", tied)
    before = source(model)
    assert before.size == pytest.approx(bytes_of(model, ".safetensors"), rel=CLOSE)
    for target, options in (
        ("cpu", {"precision": "fp32"}),
        ("cpu", {"precision": "int4"}),
        ("cpu", {"precision": "int4", "block_size": 64}),
        ("cpu", {"precision": "int4", "block_size": 32, "algo_config": "hqq"}),
        ("cpu", {"precision": "int8"}),
        ("cuda", {"precision": "int4"}),
        ("directml", {"precision": "int4"}),
    ):
        built = made(model, "ModelBuilder", tmp_path / f"{target}-{'-'.join(map(str, options.values()))}", target, **options)
        told = RULES["ModelBuilder"](before, options, target).stored.size
        assert told == pytest.approx(bytes_of(built, ".onnx.data"), rel=CLOSE), (target, options)


def test_quantised_checkpoints(tmp_path: Path) -> None:
    model = llama(tmp_path / "source", tied=True)
    options: dict[str, Any] = {"bits": 8, "group_size": 32, "lm_head": True, "embeds": True}
    quantised = made(model, "Rtn", tmp_path / "rtn", **options)
    stored = RULES["Rtn"](source(model), options, "cpu").stored
    assert stored.size == pytest.approx(bytes_of(quantised, ".safetensors"), rel=CLOSE)
    built = made(quantised, "ModelBuilder", tmp_path / "built", precision="int8")
    after = RULES["ModelBuilder"](stored, {"precision": "int8"}, "cpu").stored
    assert after.size == pytest.approx(bytes_of(built, ".onnx.data"), rel=CLOSE)


def test_graphs_of_an_encoder(tmp_path: Path) -> None:
    import torch
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=8192, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024,
        max_position_embeddings=128,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(tmp_path / "source")
    model = ModelHandle("hf", tmp_path / "source", task="fill-mask", attributes={"model_type": "bert"})
    stored = source(model)
    for name, options in (
        ("OnnxConversion", {"use_dynamo_exporter": False, "target_opset": 17}),
        ("OnnxDynamicQuantization", {"op_types_to_quantize": ["MatMul"], "per_channel": True}),
        ("OnnxFloatToFloat16", {}),
    ):
        model = made(model, name, tmp_path / name, **options)
        stored = RULES[name](stored, options, "cpu").stored
        assert stored.size == pytest.approx(bytes_of(model, ".onnx", ".data"), rel=CLOSE), name
