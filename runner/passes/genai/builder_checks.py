"""What ModelBuilder refuses: options that exclude one another, and those that do not fit the target or the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from runner.errors import InvalidRecipe, Problem
from runner.models.handle import ModelHandle
from runner.models.outline import Outline, row_widths
from runner.passes.declaration import PassContext
from runner.passes.genai.builder_options import HQQ, QUANTISED, ModelBuilderOptions, chosen_of
from runner.targets.target import Target

_SCHEME = ("block_size", "accuracy_level", "is_symmetric", "algo_config", "matmul_mixed_precision")
_LONG = ("longrope", "su", "yarn")  # names of the rotation of Phi-3 over long texts
STANDS_FOR_HQQ: Mapping[str, Any] = {"algo_config": "default", "is_symmetric": False}  # with the same operators and tensors
_NOT_OF_HQQ = ("is_symmetric", "use_qdq", "matmulnbits_weights_prepacked")  # it always has zero points


def check_combination(options: ModelBuilderOptions, target: Target) -> None:
    """Refuses options that cannot give a model that runs on the target.

    Raises:
        InvalidRecipe: with every problem found.
    """
    chosen = chosen_of(options)
    problems = []

    def refuse(rule: str, cause: str, remedy: str) -> None:
        problems.append(Problem(rule, f"ModelBuilder: {cause}", remedy=remedy))

    if options.precision not in target.precisions:
        refuse(
            "precision-not-served",
            f"{target.provider} runs no {options.precision} model",
            f"choose one of {', '.join(target.precisions)}, or another target",
        )
    weights_only = [name for name in _SCHEME if name in chosen]
    if options.precision not in QUANTISED and weights_only and not options.metadata_only:
        refuse(
            "not-quantised",
            f"{', '.join(weights_only)} say how to quantise, but precision is {options.precision}",
            "choose precision int4 or int8, or take them out",
        )
    if options.embedding_bits and (options.precision not in QUANTISED or target.name == "directml" or options.metadata_only):
        refuse(
            "bad-combination",
            "embedding_bits makes codes, which only int4 and int8 graphs for CPU and CUDA read",
            "take it out",
        )
    if chosen.get("exclude_lm_head") and chosen.get("include_hidden_states"):
        refuse("bad-combination", "exclude_lm_head and include_hidden_states exclude one another", "keep one of them")
    if target.name == "directml" and options.precision in QUANTISED and chosen.get("shared_embeddings"):
        refuse(
            "bad-combination",
            "shared_embeddings reads codes by GatherBlockQuantized, for which DirectML has no kernel",
            "take it out: the embedding then stays in fp16",
        )
    if chosen.get("use_cuda_bf16") and options.precision == "int4" and chosen.get("algo_config", "default") != "default":
        refuse(
            "bad-combination",
            f"{chosen['algo_config']} quantises no bf16 weights, which use_cuda_bf16 asks for",
            "choose algo_config default, or take use_cuda_bf16 out",
        )
    if chosen.get("algo_config") == HQQ:
        for name in _NOT_OF_HQQ:
            if chosen.get(name):
                refuse("bad-combination", f"algo_config hqq does not serve {name}", "take it out, or choose another method")
        if chosen.get("op_types_to_quantize", ["MatMul"]) != ["MatMul"]:
            refuse("bad-combination", "algo_config hqq quantises the weights of MatMul", "take op_types_to_quantize out")
    if options.precision == "int8" and chosen.get("use_qdq"):
        refuse("bad-combination", "int8 weights have no QDQ form", "take use_qdq out, or choose precision int4")
    if chosen.get("exclude_lm_head") and chosen.get("prune_lm_head"):
        refuse("bad-combination", "there is no head to prune when exclude_lm_head is set", "keep one of them")
    if problems:
        raise InvalidRecipe(*problems)


def foresee(options: ModelBuilderOptions, outline: Outline | None, target: Target) -> Outline | None:
    """Refuses, before anything is done, what the builder would refuse of these options, target and model.

    Raises:
        InvalidRecipe: with every problem found.
    """
    problems: list[Problem] = []
    chosen = chosen_of(options)
    hqq = chosen.get("algo_config") == HQQ
    if hqq:
        chosen |= STANDS_FOR_HQQ

    def note(check: Callable[[], object]) -> None:
        try:
            check()
        except InvalidRecipe as error:
            problems.extend(error.problems)

    note(lambda: check_combination(options, target))
    if outline is not None and not options.metadata_only:
        if outline.quantised:
            note(lambda: check_quantised(options))
        note(lambda: _check_rotation(outline.config))
        if options.precision == "int4" and not (outline.quantised or hqq or target.name == "directml"):
            note(lambda: chosen.update(algo_config=shared_method(outline.config, chosen) or "default"))
        if outline.quantised or options.precision == "int4":
            note(lambda: _refuse_odd_blocks(outline.config, chosen))
    if problems:
        raise InvalidRecipe(*problems)
    return None


def check_quantised(options: ModelBuilderOptions) -> None:
    """Refuses what cannot be built of weights that are codes already.

    Raises:
        InvalidRecipe: the precision asked for is not of a quantised graph, or projections are to be joined.
    """
    if options.precision not in QUANTISED:
        raise InvalidRecipe(
            Problem(
                "bad-combination",
                f"ModelBuilder: the weights of this model are quantised already, and precision {options.precision} is not",
                remedy="set precision to int4 or int8: each weight keeps its own bits",
            )
        )
    if chosen_of(options).get("fuse_mlp_gate_up"):
        raise InvalidRecipe(
            Problem(
                "bad-combination",
                "ModelBuilder: fuse_mlp_gate_up joins weights in floating point, and those of this model are quantised already",
                remedy="leave fuse_mlp_gate_up out, or let ModelBuilder quantise in place of the passes before",
            )
        )


def keep_shared_loadable(source: Path, chosen: dict[str, Any], context: PassContext) -> None:
    """Chooses the method 'rtn' where the builder's 'default' would share an embedding under a name that no tensor has.

    Both round to nearest; 'rtn' is the implementation whose tensors the shared embedding finds with zero points and with an
    8-bit head.
    """
    method = shared_method(json.loads((source / "config.json").read_text(encoding="utf-8")), chosen)
    if method != chosen.get("algo_config"):
        context.say(f"quantising with '{method}', so that embedding and head can share their weights")
        chosen["algo_config"] = method


def shared_method(config: Mapping[str, Any], chosen: Mapping[str, Any]) -> str | None:
    """Returns the method to quantise with, so that an embedding that is shared finds its tensors; None for the builder's own.

    Args:
        config: the model's.
        chosen: the builder's options.

    Raises:
        InvalidRecipe: a method is chosen with which it does not.
    """
    method: str | None = chosen.get("algo_config")
    tied = bool(config.get("tie_word_embeddings", False))
    mixed_head = (chosen.get("matmul_mixed_precision") or {}).get("last_matmul") == "int8"
    if not tied or chosen.get("shared_embeddings") is False or (chosen.get("is_symmetric", True) and not mixed_head):
        return method
    if method == "default":
        raise InvalidRecipe(
            Problem(
                "bad-combination",
                "ModelBuilder: algo_config 'default' shares no embedding with an asymmetric or an int8 head",
                remedy="choose algo_config 'rtn' (the same rounding), or set shared_embeddings to false",
            )
        )
    return method or "rtn"


def keep_blocks_even(model: ModelHandle, chosen: dict[str, Any], context: PassContext) -> None:
    """Refuses an odd number of blocks a row where ONNX Runtime packs two 4-bit zero points into a byte across rows.

    Its rtn (with zero points) and k_quant (which always has them) then fail. The narrow layers of a tiny twin say nothing about
    the real model's, so a twin gets blocks of 32.
    """
    config = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    if "twin_of" in model.attributes and _odd_width(config, chosen):
        context.say("quantising in blocks of 32, since the tiny model is too narrow for an even number of larger ones")
        chosen["block_size"] = 32
        return
    _refuse_odd_blocks(config, chosen)


def _odd_width(config: Mapping[str, Any], chosen: Mapping[str, Any]) -> int | None:
    """Returns the length of rows that are cut into an odd number of blocks where that is not served; None for none."""
    method, size = str(chosen.get("algo_config", "default")), chosen.get("block_size", 32)
    if not method.startswith("k_quant") and not (method.startswith("rtn") and not chosen.get("is_symmetric", True)):
        return None
    return next((width for width in row_widths(config).values() if -(-width // size) % 2), None)


def _refuse_odd_blocks(config: Mapping[str, Any], chosen: Mapping[str, Any]) -> None:
    odd = _odd_width(config, chosen)
    if odd is None:
        return
    method, size, widths = chosen["algo_config"], chosen.get("block_size", 32), row_widths(config).values()
    fit = [other for other in (16, 32, 64, 128, 256) if not any(-(-width // other) % 2 for width in widths)]
    raise InvalidRecipe(
        Problem(
            "odd-blocks",
            f"ModelBuilder: block_size {size} cuts rows of {odd} weights into an odd number of blocks, "
            f"whose zero points {method} cannot pack",
            remedy=f"choose block_size {' or '.join(map(str, fit))}" if fit else "choose algo_config default",
        )
    )


def _check_rotation(config: Mapping[str, Any]) -> None:
    """Refuses a long rotation that lacks what the builder makes its tables of."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type")
    lost = [name for name in ("short_factor", "long_factor") if not rope.get(name)]
    if config.get("model_type") == "phi3" and kind in _LONG and lost:
        raise InvalidRecipe(
            Problem(
                "rotation-not-served",
                f"ModelBuilder: the rope_scaling of this model is of type {kind} and has no {' and no '.join(lost)}",
                remedy="take config.json from the model that this one was made of, or leave rope_scaling out",
            )
        )
