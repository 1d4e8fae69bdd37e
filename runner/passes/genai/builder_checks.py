"""What ModelBuilder refuses: options that exclude one another, and those that do not fit the target or the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.errors import InvalidRecipe, Problem
from runner.models.handle import ModelHandle
from runner.passes.declaration import PassContext
from runner.passes.genai.builder_options import HQQ, QUANTISED, ModelBuilderOptions, chosen_of
from runner.targets.target import Target

_SCHEME = ("block_size", "accuracy_level", "is_symmetric", "algo_config", "matmul_mixed_precision")
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


def keep_shared_loadable(source: Path, chosen: dict[str, Any], context: PassContext) -> None:
    """Chooses the method 'rtn' where the builder's 'default' would share an embedding under a name that no tensor has.

    Both round to nearest; 'rtn' is the implementation whose tensors the shared embedding finds with zero points and with an
    8-bit head.
    """
    tied = bool(json.loads((source / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings", False))
    mixed_head = (chosen.get("matmul_mixed_precision") or {}).get("last_matmul") == "int8"
    if not tied or chosen.get("shared_embeddings") is False or (chosen.get("is_symmetric", True) and not mixed_head):
        return
    if "algo_config" not in chosen:
        context.say("quantising with 'rtn', so that embedding and head can share their weights")
        chosen["algo_config"] = "rtn"
    elif chosen["algo_config"] == "default":
        raise InvalidRecipe(
            Problem(
                "bad-combination",
                "ModelBuilder: algo_config 'default' shares no embedding with an asymmetric or an int8 head",
                remedy="choose algo_config 'rtn' (the same rounding), or set shared_embeddings to false",
            )
        )


def keep_blocks_even(model: ModelHandle, chosen: dict[str, Any], context: PassContext) -> None:
    """Refuses an odd number of blocks a row where ONNX Runtime packs two 4-bit zero points into a byte across rows.

    Its rtn (with zero points) and k_quant (which always has them) then fail. The narrow layers of a tiny twin say nothing about
    the real model's, so a twin gets blocks of 32.
    """
    method = str(chosen.get("algo_config", "default"))
    if not method.startswith("k_quant") and not (method.startswith("rtn") and not chosen.get("is_symmetric", True)):
        return
    size = chosen.get("block_size", 32)
    config = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
    widths = _input_widths(config.get("text_config", config))
    odd = [width for width in widths if -(-width // size) % 2]
    if not odd:
        return
    if "twin_of" in model.attributes:
        context.say("quantising in blocks of 32, since the tiny model is too narrow for an even number of larger ones")
        chosen["block_size"] = 32
        return
    fit = [other for other in (16, 32, 64, 128, 256) if not any(-(-width // other) % 2 for width in widths)]
    raise InvalidRecipe(
        Problem(
            "odd-blocks",
            f"ModelBuilder: block_size {size} cuts rows of {odd[0]} weights into an odd number of blocks, "
            f"whose zero points {method} cannot pack",
            remedy=f"choose block_size {' or '.join(map(str, fit))}" if fit else "choose algo_config default",
        )
    )


def _input_widths(config: Mapping[str, Any]) -> list[int]:
    """Returns the row lengths of a decoder's matrices."""
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if not hidden or not heads:
        return []
    attention = heads * (config.get("head_dim") or hidden // heads)
    return [width for width in (hidden, attention, config.get("intermediate_size")) if width]
