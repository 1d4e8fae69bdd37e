"""A model that scores pictures against texts, as three graphs: a tower for texts, one for pictures, and what compares them.

They make a chain, which is run as one model; each tower also runs alone, for texts or pictures that are embedded once and kept.
The attribute `towers` of the handle says of what size each tower is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runner.models.handle import ModelHandle

ATTRIBUTE = "towers"
COMPARISON = "similarity.onnx"


@dataclass(frozen=True)
class Tower:
    """One tower.

    Attributes:
        file: name of its graph.
        inputs: what it reads, as far as the model has it.
        output: its embeddings, float32 [inputs, width], each of length 1.
        config: the entry of config.json that says how large it is.
    """

    file: str
    inputs: tuple[str, ...]
    output: str
    config: str


TEXT = Tower("text_encoder.onnx", ("input_ids", "attention_mask", "token_type_ids"), "text_embeds", "text_config")
IMAGE = Tower("image_encoder.onnx", ("pixel_values",), "image_embeds", "vision_config")
TOWERS = (TEXT, IMAGE)


def facts_of_graph(model: ModelHandle, file: str) -> Mapping[str, Any]:
    """Returns what is known of one graph of a model: the model's attributes, and over them those of the tower of that name."""
    return {**model.attributes, **model.attributes.get(ATTRIBUTE, {}).get(file, {})}
