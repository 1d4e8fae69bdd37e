"""Training on a tiny Llama: the loss falls, what is saved is what was trained, and merging changes nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from runner.errors import DataUnavailable, InvalidRecipe, ModelUnavailable
from runner.models.handle import ModelHandle
from runner.models.torch_source import load_torch
from runner.passes import table
from tests.conftest import ApplyPass
from tests.passes.finetune.conftest import ADAPTERS, TRAINING, counting, train

Adapted = Callable[[str], tuple[ModelHandle, list[str]]]


def logits(model: ModelHandle) -> torch.Tensor:
    with torch.inference_mode():
        return load_torch(model)(input_ids=torch.from_numpy(counting(2, 1)[0]["input_ids"])).logits


def told_losses(said: list[str]) -> tuple[float, float]:
    found = re.search(r"held-out examples: ([\d.]+) -> ([\d.]+)", "\n".join(said))
    assert found
    return float(found[1]), float(found[2])


@pytest.mark.parametrize("kind", ADAPTERS)
def test_the_loss_falls_and_the_saved_adapter_has_it(adapted: Adapted, kind: str) -> None:
    model, said = adapted(kind)
    before, after = told_losses(said)
    assert after < before - 0.1
    assert any(re.fullmatch(r"20 of 20: loss [\d.]+", line) for line in said)
    (held_out,) = counting(1, 1)
    ids, mask = torch.from_numpy(held_out["input_ids"]), torch.from_numpy(held_out["attention_mask"])
    with torch.inference_mode():
        loss = load_torch(model)(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
    assert float(loss) == pytest.approx(after, abs=2e-3)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_merged_weights_give_the_same_outputs(adapted: Adapted, apply_pass: ApplyPass, kind: str) -> None:
    model, _ = adapted(kind)
    merged = apply_pass("MergeAdapterWeights", model)
    torch.testing.assert_close(logits(merged), logits(model), atol=1e-5, rtol=1e-4)
    assert "adapter_path" not in merged.attributes
    assert not (merged.folder / "adapter").exists()


def test_the_base_model_is_left_as_it_was(tiny_llama: ModelHandle, adapted: Adapted) -> None:
    model, _ = adapted("lora")
    assert model.attributes["adapter_path"] == "adapter"
    before, after = (load_file(one.folder / "model.safetensors") for one in (tiny_llama, model))
    assert all(torch.equal(before[name], after[name]) for name in before)
    config = json.loads((model.folder / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None
    base = replace(model, attributes={**model.attributes, "adapter_path": None})
    assert torch.equal(logits(base), logits(tiny_llama))
    assert not torch.allclose(logits(model), logits(tiny_llama), atol=1e-2)


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_four_bit_weights_are_spread_out_near_what_they_were(quant_type: Any) -> None:
    from runner.passes.finetune.four_bit import hold_in_four_bits

    torch.manual_seed(0)
    for double in (False, True):
        linear = torch.nn.Linear(100, 33, bias=False).requires_grad_(False)
        weight = linear.weight.clone()
        hold_in_four_bits(linear, quant_type, double)
        assert linear.parametrizations.weight.original0.numel() == -(-weight.numel() // 128) * 64
        assert (linear.weight - weight).norm() / weight.norm() < 0.16
        blocks = torch.nn.functional.pad(weight.flatten(), (0, -weight.numel() % 64)).view(-1, 64)
        values = torch.nn.functional.pad(linear.weight.flatten(), (0, -weight.numel() % 64)).view(-1, 64)
        if not double:
            assert torch.equal(values.abs().amax(1), blocks.abs().amax(1))


def test_qlora_writes_the_rounded_base_or_links_the_original(tiny_llama: ModelHandle, adapted: Adapted, tmp_path: Path) -> None:
    rounded, _ = adapted("qlora")
    before, after = (load_file(one.folder / "model.safetensors") for one in (tiny_llama, rounded))
    assert set(before) == set(after)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(before[name], after[name])
    assert len(after[name].flatten()[:64].unique()) <= 16
    assert torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    short = {**TRAINING, "max_steps": 1}
    linked, _ = train(tmp_path, tiny_llama, "QLoRA", r=4, training_args=short, save_quant_config=False)
    assert torch.equal(load_file(linked.folder / "model.safetensors")[name], before[name])


def test_a_seed_gives_the_same_adapter_again(tiny_llama: ModelHandle, tmp_path: Path) -> None:
    weights = []
    for at, seed in enumerate((1, 1, 2)):
        (tmp_path / str(at)).mkdir()
        arguments = {**TRAINING, "max_steps": 3, "seed": seed}
        model, _ = train(tmp_path / str(at), tiny_llama, "LoRA", r=2, training_args=arguments)
        weights.append(load_file(model.folder / "adapter" / "adapter_model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_a_twin_trains_two_steps(tiny_llama: ModelHandle, tmp_path: Path) -> None:
    twin = tiny_llama.with_attributes(twin_of="meta-llama/Llama-3.2-1B")
    _, said = train(tmp_path, twin, "LoRA", training_args={"max_steps": 1000})
    assert "trained 2 steps" in "\n".join(said)


def test_what_is_held_out_is_not_trained_on_where_that_is_asked_for(tiny_llama: ModelHandle, tmp_path: Path) -> None:
    held_out = counting(1, 1)
    data = {"train": [*counting(0, 1), *held_out], "eval": held_out}
    asked = {"drop_held_out": True, "training_args": {**TRAINING, "max_steps": 1}}
    _, said = train(tmp_path, tiny_llama, "LoRA", data, **asked)
    left_out = next(int(line.split()[0]) for line in said if "the same text is held out" in line)
    assert left_out >= 8
    assert any(line.endswith(f"on {16 - left_out} examples") for line in said)
    (tmp_path / "all").mkdir()
    with pytest.raises(DataUnavailable, match="every example to train on is held out"):
        train(tmp_path / "all", tiny_llama, "LoRA", {"train": held_out, "eval": held_out}, **asked)


def test_a_classifier_learns_its_labels(tiny_classifier: ModelHandle, tmp_path: Path) -> None:
    ids = np.repeat(np.arange(5, 29), 6).reshape(24, 6)
    batches = [{"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids[:, 0] % 3}]
    model, said = train(
        tmp_path, tiny_classifier, "LoRA", {"train": batches, "eval": batches}, modules_to_save=["classifier"], r=4
    )
    before, after = told_losses(said)
    assert after < before
    assert load_torch(model)(input_ids=torch.from_numpy(ids)).logits.shape == (24, 3)


def test_bad_input_is_named(tiny_llama: ModelHandle, tiny_bert: ModelHandle, adapted: Adapted, tmp_path: Path) -> None:
    def attempt(name: str, model: ModelHandle, data: Any = None, **options: Any) -> None:
        folder = tmp_path / name
        folder.mkdir()
        train(folder, model, "LoRA", data, **options)

    with pytest.raises(InvalidRecipe, match="not trained for 'feature-extraction'"):
        attempt("task", tiny_bert)
    with pytest.raises(InvalidRecipe, match="has an adapter already"):
        attempt("twice", adapted("lora")[0])
    with pytest.raises(InvalidRecipe, match="no_such_layer"):
        attempt("layers", tiny_llama, target_modules=["no_such_layer"])
    with pytest.raises(DataUnavailable, match="no examples"):
        attempt("empty", tiny_llama, {"train": [], "eval": []})
    with pytest.raises(DataUnavailable, match="no input_ids"):
        attempt("pixels", tiny_llama, {"train": [{"pixel_values": np.zeros((1, 3))}], "eval": []})


def test_a_missing_or_damaged_adapter_is_named(adapted: Adapted, apply_pass: ApplyPass, tiny_llama: ModelHandle) -> None:
    model, _ = adapted("lora")
    with pytest.raises(ModelUnavailable, match=r"adapter_config\.json is missing"):
        load_torch(model.with_attributes(adapter_path="elsewhere"))
    with pytest.raises(InvalidRecipe, match="has no adapter"):
        apply_pass("MergeAdapterWeights", tiny_llama)


def test_options_are_checked() -> None:
    lora, qlora, loha = (table.get(name).options for name in ("LoRA", "QLoRA", "LoHa"))
    given = {"train_data_config": "train"}
    accepted = lora.model_validate(
        {**given, "training_args": {"max_steps": -1, "report_to": "none", "extra_args": {"weight_decay": 0.1}}}
    )
    assert accepted.training_args.max_steps is None
    assert accepted.training_args.weight_decay == 0.1
    assert accepted.training_args.why_unused()[0].startswith("training_args.report_to does nothing here")
    assert lora.model_validate({**given, "training_args": None}).training_args.learning_rate == 2e-4
    assert lora.model_validate(accepted.model_dump(mode="json")) == accepted
    for options, wrong in (
        (lora, {}),
        (lora, {**given, "rank": 4}),
        (lora, {**given, "training_args": {"max_step": 4}}),
        (lora, {**given, "torch_dtype": "int8"}),
        (qlora, {**given, "quant_type": "int4"}),
        (qlora, {**given, "training_args": {"optim": "paged_adamw_32bit"}}),
        (loha, {**given, "layers_pattern": ["layers"]}),
    ):
        with pytest.raises(ValidationError):
            options.model_validate(wrong)


def test_a_whole_model_keeps_its_type_and_its_tied_weights(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from runner.passes.finetune.whole_model import write_whole

    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        tie_word_embeddings=True, dtype="bfloat16",
    )  # fmt: skip
    module = LlamaForCausalLM(config).to(torch.bfloat16)
    module.save_pretrained(tmp_path / "source")
    write_whole(module.float(), tmp_path / "source", tmp_path / "written")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("source", "written"))
    assert {name: (one.dtype, one.shape) for name, one in before.items()} == {
        name: (one.dtype, one.shape) for name, one in after.items()
    }
