"""What torch's exporter is given for a transformers model without a cache: the inputs of its task in, its main outputs out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from runner.data.scripted_model import IoConfig
from runner.models.handle import ModelHandle
from runner.models.inputs import IMAGE_TASKS, GraphInput, made_up, sequence_length, source_inputs
from runner.models.tasks import WITH_PAST, task_named, task_of
from runner.passes.export.torch_export import Export

if TYPE_CHECKING:
    import torch

_SIZES = {"batch": 2, "text_batch": 3, "image_batch": 2, "sequence": 16, "decoder_sequence": 5, "samples": 8000}

# Outputs whose axes are none of a batch alone: the tracing exporter would name them after the node that they come from.
_OUTPUT_AXES: Mapping[str, Mapping[int, str]] = {
    "logits_per_image": {0: "image_batch", 1: "text_batch"},
    "logits_per_text": {0: "text_batch", 1: "image_batch"},
    "text_embeds": {0: "text_batch"},
    "image_embeds": {0: "image_batch"},
}


def export_of(model: ModelHandle, module: torch.nn.Module, io: IoConfig, *, dynamic: bool, fused: bool) -> Export:
    """Returns the export of a model for its task.

    Args:
        model: where the model lies.
        module: the loaded model.
        io: names and fixed shapes that the configuration asks for instead of the task's own.
        dynamic: leave batch, sequence and sample sizes free.
        fused: export attention as one operator.

    Raises:
        InvalidRecipe: the inputs of the task are not known.
    """
    task = task_of(model).removesuffix(WITH_PAST)
    if task not in IMAGE_TASKS and hasattr(module, "set_attn_implementation"):
        module.set_attn_implementation("sdpa" if fused else "eager")
    given = _as_asked(source_inputs(model), io)
    longest = sequence_length(model.folder, 128)
    sizes = _SIZES if dynamic else {"sequence": longest, "decoder_sequence": min(longest, 16)}
    example = tensors(made_up(given, model.folder, sizes))
    if dynamic and "attention_mask" in example:
        example["attention_mask"][1, 9:] = 0
    outputs = task_named(task).outputs
    axes = {one.name: {axis: name for axis, name in enumerate(one.shape) if isinstance(name, str)} for one in given}
    forward = _decode if task == "text-generation" else _encode
    names = io.output_names if len(io.output_names) == len(outputs) else outputs
    return Export(
        plain(module, forward, list(example), outputs),
        tuple(example.values()),
        {},
        list(example),
        names,
        {**axes, **(_output_axes(outputs, names) if dynamic else {}), **io.dynamic_axes},
    )


def _output_axes(outputs: Sequence[str], names: Sequence[str]) -> dict[str, Mapping[int, str]]:
    """Returns the free axes of outputs that have other ones than their inputs, by the names that the graph gives them."""
    return {name: _OUTPUT_AXES[output] for output, name in zip(outputs, names, strict=True) if output in _OUTPUT_AXES}


def _as_asked(given: Sequence[GraphInput], io: IoConfig) -> list[GraphInput]:
    """Returns the inputs with the shapes that an io_config fixes; an axis that it names as free stays so."""
    shapes = dict(zip(io.input_names, io.input_shapes, strict=False))
    return [
        replace(
            one,
            shape=tuple(io.dynamic_axes.get(one.name, {}).get(axis, size) for axis, size in enumerate(shapes[one.name])),
        )
        if one.name in shapes
        else one
        for one in given
    ]


def _encode(module: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> Any:
    return module(**inputs, return_dict=True)


def _decode(module: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> Any:
    """Runs a language model without its cache.

    Positions are given for every sequence: those that the model makes up have a batch of one, which the exporter's rotary
    embedding keeps, and ONNX Runtime refuses for larger batches.
    """
    import torch

    ids = inputs["input_ids"]
    positions = {}
    if takes_positions(module):
        positions["position_ids"] = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0).expand(ids.shape[0], -1)
    return module(**inputs, **positions, use_cache=False, return_dict=True)


def takes_positions(module: torch.nn.Module) -> bool:
    """Says whether a module's forward takes position_ids."""
    return "position_ids" in inspect.signature(module.forward).parameters


def tensors(arrays: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Returns arrays as tensors."""
    import torch

    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def plain(
    module: torch.nn.Module,
    run: Callable[[torch.nn.Module, Mapping[str, torch.Tensor]], Any],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> torch.nn.Module:
    """Wraps a transformers module so that its forward takes `inputs` in this order and gives the tensors `outputs`."""
    import torch

    class Plain(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, *args: torch.Tensor) -> tuple[Any, ...]:
            result = run(self.model, dict(zip(inputs, args, strict=True)))
            return tuple(result[name] for name in outputs)

    return Plain().eval()
