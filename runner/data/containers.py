"""Olive's data containers: which component serves each stage where a configuration does not say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.data.registry import Stage
from runner.errors import InvalidRecipe, Problem, did_you_mean
from runner.recipe.config import DataComponent, DataConfig

HUB = "huggingface_dataset"
TEXT_GENERATION = "text_generation_huggingface_pre_process"
CONTAINERS: Mapping[str, Mapping[Stage, str]] = {
    "DataContainer": {"dataset": "local_dataset", "pre_process": "pre_process"},
    "HuggingfaceContainer": {"dataset": HUB, "pre_process": "huggingface_pre_process"},
    "DummyDataContainer": {"dataset": "dummy_dataset"},
    "RawDataContainer": {"dataset": "raw_dataset", "dataloader": "no_auto_batch_dataloader"},
    "TransformersDummyDataContainer": {"dataset": "transformers_dummy_dataset"},
    "TransformersPromptDummyDataContainer": {"dataset": "transformers_prompt_dummy_dataset"},
    "TransformersTokenDummyDataContainer": {"dataset": "transformers_token_dummy_dataset"},
}
# What a Hugging Face container does for a task.
_TASKS: Mapping[str, Mapping[Stage, str]] = {
    "feature-extraction": {"pre_process": "tokenizer_pre_process"},
    "text-classification": {"post_process": "text_classification_post_process"},
    "ner": {"pre_process": "ner_huggingface_preprocess", "post_process": "ner_post_process"},
    "token-classification": {"pre_process": "ner_huggingface_preprocess", "post_process": "ner_post_process"},
    "text-generation": {"pre_process": TEXT_GENERATION},
}
_DEFAULTS: Mapping[Stage, str] = {
    "dataset": "local_dataset",
    "pre_process": "skip_pre_process",
    "post_process": "skip_post_process",
    "dataloader": "default_dataloader",
}
SECTIONS: Mapping[Stage, str] = {
    "dataset": "load_dataset_config",
    "pre_process": "pre_process_data_config",
    "post_process": "post_process_data_config",
    "dataloader": "dataloader_config",
}


def stage_parameters(config: DataConfig, stage: Stage) -> dict[str, Any]:
    """Returns the parameters that a configuration gives a stage."""
    section: DataComponent | None = getattr(config, SECTIONS[stage])
    return section.parameters() if section else {}


def component_of(config: DataConfig, stage: Stage, task: str | None = None) -> str:
    """Returns the name of the component that serves a stage: the configuration's own, the task's, or the container's.

    Args:
        config: the data configuration; a `task` among its pre-processing's parameters counts before the model's.
        stage: the stage.
        task: the model's task.

    Raises:
        InvalidRecipe: there is no such container.
    """
    section: DataComponent | None = getattr(config, SECTIONS[stage])
    container = _container(config.type)
    if section is not None and section.type:
        return section.type
    if container is CONTAINERS["HuggingfaceContainer"]:
        parameters = stage_parameters(config, "pre_process")
        named = str(parameters.get("task") or task or "").removesuffix("-with-past")
        by_task = _TASKS.get(named, {})
        columns = "input_cols" in parameters and by_task.get("pre_process") == TEXT_GENERATION
        if stage in by_task and not (stage == "pre_process" and columns):  # columns to classify make no running text
            return by_task[stage]
    return container.get(stage) or _DEFAULTS[stage]


def _container(name: str) -> Mapping[Stage, str]:
    found = next((stages for known, stages in CONTAINERS.items() if known.lower() == name.lower()), None)
    if found is None:
        raise InvalidRecipe(
            Problem("unknown-container", f"there is no data container '{name}'", remedy=did_you_mean(name, CONTAINERS))
        )
    return found
