"""What a search varies in a recipe that does not say: for each pass the options that decide size, speed and quality."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from runner.errors import RecipeError
from runner.models.outline import row_widths
from runner.models.twin import architecture_of
from runner.recipe.load import LoadedConfig

# Pass -> option -> values. A recipe's own value comes first, whether it stands here or not.
_AXES: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "Gptq": {"group_size": (32, 64, 128), "sym": (False, True), "desc_act": (True, False)},
    "Awq": {"group_size": (32, 64, 128), "sym": (False, True)},
    "Rtn": {"bits": (8, 4), "group_size": (32, 64, 128), "sym": (False, True)},
    "ModelBuilder": {
        "block_size": (32, 64, 128),
        "algo_config": ("default", "rtn", "k_quant"),
        "is_symmetric": (True, False),
        "accuracy_level": (4, 0),
    },
    "OnnxBlockWiseRtnQuantization": {"block_size": (32, 64, 128), "is_symmetric": (True, False), "accuracy_level": (4, 0)},
    "OnnxHqqQuantization": {"block_size": (32, 64, 128), "accuracy_level": (4, 0)},
    "OnnxKQuantQuantization": {"block_size": (32, 64, 128), "is_symmetric": (True, False), "accuracy_level": (4, 0)},
    "OnnxDynamicQuantization": {
        "weight_type": ("QInt8", "QUInt8"),
        "per_channel": (True, False),
        "reduce_range": (True, False),
        "op_types_to_quantize": (["MatMul"], ["MatMul", "Gather"]),
    },
    "OnnxStaticQuantization": {
        "calibrate_method": ("MinMax", "Entropy", "Percentile"),
        "activation_type": ("QUInt8", "QInt8"),
        "per_channel": (True, False),
        "reduce_range": (True, False),
    },
    "OrtTransformersOptimization": {"opt_level": (0, 1, 2)},
}
_WEIGHTS = ("Gptq", "Awq", "Rtn")  # behind them, the builder keeps their scheme and block size


def builtin_space(loaded: LoadedConfig) -> list[str]:
    """Returns `--space` texts for the passes of a configuration; empty where none of them is known.

    An encoder's fusions are varied only where nothing is quantised. What `--set` says keeps its one value. Group sizes that do
    not divide the rows of the model's matrices are left out, where its config.json tells their widths.

    Args:
        loaded: the configuration, with one pass a step.
    """
    steps = list(loaded.config.passes.items())
    kinds = [step.type for _, step in steps]
    quantised = any(kind in _AXES and kind != "OrtTransformersOptimization" for kind in kinds)
    widths = _row_widths(loaded.config.input_model.model_path)
    texts = []
    for name, step in steps:
        if step.type == "OrtTransformersOptimization" and quantised:
            continue
        if step.type == "ModelBuilder" and (step.options.precision != "int4" or any(kind in _WEIGHTS for kind in kinds)):
            continue
        for option, values in _AXES.get(step.type, {}).items():
            own = getattr(step.options, option, None)
            nested = getattr(getattr(step.options, "extra_options", None), option, None)
            if nested is not None:
                continue  # the recipe says it where it wins over the option
            listed = [value for value in values if value != own]
            if option == "group_size":
                listed = [size for size in listed if all(width % size == 0 for width in widths)]
            listed = listed if own is None else [own, *listed]
            listed = [own] if _is_set(loaded, name, option) else listed
            texts.append(f"passes.{name}.{option}={json.dumps({'choices': listed})}")
    return texts


def _row_widths(model: str | None) -> tuple[int, ...]:
    """Returns how many weights the rows of a decoder's matrices have; nothing where that is not known."""
    try:
        known = architecture_of(model or "")
    except RecipeError:
        return ()
    if known.stands_in:
        return ()
    facts = known.facts.get("text_config") or known.facts
    return tuple(row_widths(facts).values())


def _is_set(loaded: LoadedConfig, step: str, option: str) -> bool:
    """Says whether the command line, and not a file, gave the value of an option."""
    options = loaded.tree.members["passes"].members[step].members.get("options")
    node = options.members.get(option) if options else None
    return node is not None and node.origin.text.startswith("--set ")
