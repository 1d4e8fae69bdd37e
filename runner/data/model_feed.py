"""Fits data to a graph: its inputs in its types, with the caches and positions that data sets never have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runner.errors import DataUnavailable, InvalidRecipe
from runner.models.files import read_graph
from runner.models.handle import ModelHandle
from runner.models.inputs import GraphInput, model_inputs

_GROUPED_ATTENTION = "GroupQueryAttention"


@dataclass(frozen=True)
class Feed:
    """What a model takes.

    Attributes:
        names: the model's inputs, in its order; empty where they are not known.
        expected: the inputs of an ONNX graph; None for another model, which data is handed to as it is.
        past_length: positions of an empty cache. Attention that was exported as plain operators gets one, which the mask hides,
            so that calibration sees values to take the range of; GroupQueryAttention is not calibrated and gets none.
    """

    names: tuple[str, ...]
    expected: tuple[GraphInput, ...] | None
    past_length: int = 0

    @classmethod
    def of(cls, model: ModelHandle) -> Feed:
        """Returns the feed of a model; reads its graph without the weights."""
        try:
            inputs = model_inputs(model)
        except InvalidRecipe:  # a task whose inputs nobody listed: data must name its own
            return cls((), None)
        names = tuple(one.name for one in inputs)
        if model.kind != "onnx":
            return cls(names, None)
        if not any(name.startswith("past") for name in names):
            return cls(names, inputs)
        nodes = read_graph(model.path, weights=False).graph.node
        return cls(names, inputs, 0 if any(node.op_type == _GROUPED_ATTENTION for node in nodes) else 1)

    def fitted(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the inputs that the graph has, in its types.

        Raises:
            DataUnavailable: an input of the graph is not among the data, and cannot be told from it.
        """
        if self.expected is None:
            return dict(inputs)
        known = self._with_cache(inputs)
        missing = [one.name for one in self.expected if one.name not in known]
        if missing:
            raise DataUnavailable(
                f"the model's input '{missing[0]}' is not among the data, which has {', '.join(inputs)}",
                "name the inputs as the model does, in the data's pre-processing",
            )
        return {one.name: known[one.name].astype(one.dtype, copy=False) for one in self.expected}

    def _with_cache(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        import numpy as np

        known = dict(inputs)
        ids = known.get("input_ids")
        if ids is None or self.expected is None:
            return known
        caches = [one for one in self.expected if one.name.startswith("past") and one.name not in known and len(one.shape) > 2]
        if caches:
            length = next((axis for axis in caches[0].shape[2:3] if isinstance(axis, int) and axis > 0), self.past_length)
            mask = known.get("attention_mask", np.ones_like(ids))
            known["attention_mask"] = np.concatenate([np.zeros((len(ids), length), mask.dtype), mask], axis=1)
            for one in caches:
                shape = [
                    axis if isinstance(axis, int) and axis > 0 else len(ids) if not at else length
                    for at, axis in enumerate(one.shape)
                ]
                known[one.name] = np.zeros(shape, one.dtype)
        wanted = {one.name for one in self.expected} - set(known)
        if "attention_mask" in wanted and set(inputs) <= set(self.names):  # not called otherwise: every token counts
            known["attention_mask"] = np.ones_like(ids)
        if "position_ids" in wanted:
            seen = known["attention_mask"] if "attention_mask" in known else np.ones_like(ids)
            known["position_ids"] = np.maximum(seen.cumsum(axis=-1) - 1, 0)[:, -ids.shape[1] :]
        if "token_type_ids" in wanted:
            known["token_type_ids"] = np.zeros_like(ids)
        return known
