"""An adapter in peft's format becomes what a graph of the GenAI builder takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from runner.cli import run_command
from runner.cli.convert_adapters import convert_adapters
from runner.errors import ModelUnavailable, RunFailed
from runner.models.adapter_conversion import genai_adapter
from runner.models.adapter_weights import read_weights
from runner.models.handle import ModelHandle
from runner.passes import table
from runner.passes.declaration import PassContext
from runner.targets.target import TARGETS


@pytest.fixture(scope="module")
def adapter(tiny_llama: ModelHandle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with random factors over a tiny Llama."""
    import peft
    import torch

    from runner.models.torch_source import load_torch

    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    torch.manual_seed(0)
    model = peft.get_peft_model(load_torch(tiny_llama), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


def _apply(name: str, model: ModelHandle, folder: Path, **options: object) -> ModelHandle:
    for part in ("output", "scratch"):
        (folder / part).mkdir(parents=True)
    context = PassContext(folder / "output", folder / "scratch", TARGETS["cpu"], 1, lambda _: iter(()), lambda _: None)
    pass_ = table.get(name)
    return pass_.apply(model, pass_.options.model_validate(options), context)


def test_it_is_what_the_built_graph_has_of_the_adapter(tiny_llama: ModelHandle, adapter: Path, tmp_path: Path) -> None:
    adapted = tiny_llama.with_attributes(adapter_path=str(adapter), adapter_type="lora")
    built = _apply("ModelBuilder", adapted, tmp_path / "built", precision="fp32")
    extracted = _apply("ExtractAdapters", built, tmp_path / "extracted")
    expected = read_weights(extracted.folder / "adapter_weights.onnx_adapter")
    target = tmp_path / "files" / "mine"
    result = CliRunner().invoke(convert_adapters, ["--adapter_path", str(adapter), "--output-path", str(target)])
    assert result.exit_code == 0, result.output
    found = read_weights(target.with_suffix(".onnx_adapter"))
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-6)


def test_what_cannot_be_converted_is_named(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="no adapter"):
        genai_adapter(tmp_path)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    (tmp_path / "adapter_model.safetensors").write_bytes((adapter / "adapter_model.safetensors").read_bytes())
    with pytest.raises(RunFailed, match="DORA"):
        genai_adapter(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"r": None}, "says no r and lora_alpha"),
        ({"peft_type": "LOHA"}, "this is LOHA"),
        ({"rank_pattern": {"q": 2}}, "ranks of"),
    ],
)
def test_a_strange_configuration_is_named(
    adapter: Path, tmp_path: Path, change: dict[str, object], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **change}))
    (tmp_path / "adapter_model.safetensors").write_bytes((adapter / "adapter_model.safetensors").read_bytes())
    assert run_command(["convert-adapters", "-a", str(tmp_path), "-o", str(tmp_path / "made")]) == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "made.onnx_adapter").exists()


@pytest.mark.parametrize("layer", ["self_attn.qkv_proj", "mlp.gate_up_proj", "feed_forward.w1"])
def test_layers_that_a_graph_calls_otherwise_are_named(adapter: Path, tmp_path: Path, layer: str) -> None:
    (tmp_path / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    names = [f"base_model.model.model.layers.0.{layer}.lora_{one}.weight" for one in "AB"]
    save_file({name: np.zeros((4, 4), np.float32) for name in names}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(RunFailed, match=layer):
        genai_adapter(tmp_path)


def test_an_adapter_must_fit_the_model_that_takes_it(
    tiny_llama: ModelHandle, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapted = tiny_llama.with_attributes(adapter_path=str(adapter), adapter_type="lora")
    built = _apply("ModelBuilder", adapted, tmp_path / "built", precision="fp32")
    base = _apply("ExtractAdapters", built, tmp_path / "extracted").folder

    def convert(folder: Path, onto: Path) -> int:
        return run_command(["convert-adapters", "-a", str(folder), "-o", str(tmp_path / "made"), "--base", str(onto)])

    assert convert(adapter, base) == 0
    assert convert(adapter, built.folder) == 1
    assert "takes no adapters" in capsys.readouterr().err
    other = tmp_path / "other"
    other.mkdir()
    (other / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    name = "base_model.model.model.layers.0.self_attn.{}_proj.lora_A.weight"
    for layer, told in (("k", "has no input"), ("q", "is [32, 4] in the adapter and [64, r] in the graph")):
        save_file({name.format(layer): np.zeros((4, 32), np.float32)}, other / "adapter_model.safetensors")
        assert convert(other, base) == 1
        assert told in capsys.readouterr().err


def test_genai_answers_with_it_as_the_merged_model_does(tiny_llama: ModelHandle, adapter: Path, tmp_path: Path) -> None:
    import onnxruntime_genai as og

    from runner.models.adapter_weights import save_weights

    adapted = tiny_llama.with_attributes(adapter_path=str(adapter), adapter_type="lora")
    built = _apply("ModelBuilder", adapted, tmp_path / "built", precision="fp32")
    base = og.Model(str(_apply("ExtractAdapters", built, tmp_path / "extracted").folder))
    merged = _apply(
        "ModelBuilder", _apply("MergeAdapterWeights", adapted, tmp_path / "merged"), tmp_path / "whole", precision="fp32"
    )
    adapters = og.Adapters(base)
    adapters.load(str(tmp_path / save_weights(genai_adapter(adapter), tmp_path, "mine", "onnx_adapter")), "mine")

    def logits(model: og.Model, active: bool) -> np.ndarray:
        generator = og.Generator(model, og.GeneratorParams(model))
        if active:
            generator.set_active_adapter(adapters, "mine")
        generator.append_tokens(np.array([[5, 6, 7, 8]], np.int32))
        return np.array(generator.get_output("logits"))[0, -1]

    expected = logits(og.Model(str(merged.folder)), active=False)
    np.testing.assert_allclose(logits(base, active=True), expected, atol=1e-4)
    assert np.abs(logits(base, active=False) - expected).max() > 1e-3
