"""Keeps the factors of an adapter whole in an exported graph, so that they can be exchanged there."""

from __future__ import annotations

import re
from typing import Any

# The parameters of peft's LoRA, DoRA and LoHa layers.
_FACTOR = re.compile(r"\.(lora_A|lora_B|lora_magnitude_vector|hada_w1_a|hada_w1_b|hada_w2_a|hada_w2_b)\.")


def is_factor(name: str) -> bool:
    """Says whether a parameter or initializer of this name is a factor of an adapter."""
    return _FACTOR.search(name) is not None


def has_factors(module: Any) -> bool:
    """Says whether a torch module has an adapter whose factors are apart."""
    return any(is_factor(name) for name, _ in module.named_parameters())


def optimize_around_factors(program: Any) -> None:
    """Optimises an exported program as torch does, except that nothing computed from the factors is folded into constants.

    Args:
        program: torch's ONNXProgram, changed in place.
    """
    graph = program.model.graph
    factors = {name: value for name, value in graph.initializers.items() if is_factor(name)}
    tensors = {name: value.const_value for name, value in factors.items()}
    for name, value in factors.items():
        del graph.initializers[name]
        value.const_value = None
        graph.inputs.append(value)
    program.optimize()
    for name, value in factors.items():
        graph.inputs.remove(value)
        value.const_value = tensors[name]
        graph.initializers[name] = value
