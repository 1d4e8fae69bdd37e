"""Adapters over a tiny Llama, trained once a session on sequences that count upwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.models.handle import ModelHandle
from runner.passes import table
from runner.passes.declaration import PassContext
from runner.targets.target import TARGETS

TRAINING = {"max_steps": 20, "learning_rate": 5e-3, "logging_steps": 10, "gradient_checkpointing": False}
# Pass and options of each kind of adapter.
ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LoRA", {"r": 8}),
    "dora": ("DoRA", {"r": 8}),
    "loha": ("LoHa", {"r": 8}),
    "lokr": ("LoKr", {"r": 8}),
    "qlora": ("QLoRA", {"r": 8, "double_quant": True}),
}

Batches = list[dict[str, Any]]
Train = Callable[..., tuple[ModelHandle, list[str]]]


def counting(seed: int, batches: int = 3) -> Batches:
    """Returns batches of sequences of which every token is the one before plus one, padded on the right."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(batches):
        starts = random.integers(5, 18, 8)
        ids = np.stack([np.arange(start, start + 12) for start in starts])
        mask = np.ones_like(ids)
        mask[0, 9:] = 0
        ids[0, 9:] = 0
        made.append({"input_ids": ids, "attention_mask": mask})
    return made


def train(
    folder: Path, model: ModelHandle, pass_name: str, data: dict[str, Any] | None = None, **options: Any
) -> tuple[ModelHandle, list[str]]:
    """Returns the adapted model and what the pass said."""
    said: list[str] = []
    data = data or {"train": counting(0), "eval": counting(1, 1)}
    (folder / "output").mkdir()
    (folder / "scratch").mkdir()
    context = PassContext(folder / "output", folder / "scratch", TARGETS["cpu"], 1, data.__getitem__, said.append)
    pass_ = table.get(pass_name)
    asked = {"train_data_config": "train", "eval_data_config": "eval", "training_args": TRAINING, **options}
    return pass_.apply(model, pass_.options.model_validate(asked), context), said


@pytest.fixture(scope="session")
def adapted(
    tiny_llama: ModelHandle, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[ModelHandle, list[str]]]:
    """Trains an adapter of a kind when it is first asked for."""
    made: dict[str, tuple[ModelHandle, list[str]]] = {}

    def get(kind: str) -> tuple[ModelHandle, list[str]]:
        if kind not in made:
            name, options = ADAPTERS[kind]
            made[kind] = train(tmp_path_factory.mktemp(kind), tiny_llama, name, **options)
        return made[kind]

    return get
