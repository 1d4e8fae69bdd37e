"""An adapter that a configuration lays over its input model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from runner.errors import ModelUnavailable
from runner.models.digest import DigestMemo
from runner.models.handle import ModelHandle
from runner.models.source import Access, Source, locate
from runner.models.torch_source import load_torch
from runner.recipe.config import InputModel


def write_adapter(model: ModelHandle, folder: Path, seed: int) -> None:
    import peft

    torch.manual_seed(seed)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(load_torch(model), config).save_pretrained(folder)


def source(model: ModelHandle, adapter: str | None, folder: Path) -> Source:
    asked = InputModel(type="HfModel", model_path=str(model.folder), task=model.task, adapter_path=adapter)
    with DigestMemo(folder / "digests") as memo:
        return locate(asked, [], folder, Access(folder, memo))


def test_it_is_laid_over_and_part_of_the_digest(tiny_llama: ModelHandle, tmp_path: Path) -> None:
    for seed in (0, 1):
        write_adapter(tiny_llama, tmp_path / f"adapter-{seed}", seed)
    plain, first, second = (source(tiny_llama, name, tmp_path) for name in (None, "adapter-0", "adapter-1"))
    assert len({plain.digest, first.digest, second.digest}) == 3
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        outputs = [load_torch(one.handle)(input_ids=ids).logits for one in (plain, first, second) if one.handle]
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-3)
    assert not torch.allclose(outputs[1], outputs[2], atol=1e-3)


def test_a_missing_one_is_named(tiny_llama: ModelHandle, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="'nowhere' is no folder with adapter_config"):
        source(tiny_llama, "nowhere", tmp_path)
