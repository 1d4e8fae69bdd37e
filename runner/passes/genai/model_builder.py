"""Language models for onnxruntime-genai, made by its own builder: graph, weights, search settings and tokenizer."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from runner.errors import InvalidRecipe, Problem
from runner.models.adapter import adapter_folder
from runner.models.files import carry
from runner.models.handle import ModelHandle
from runner.models.quantized_checkpoint import EMBEDDING, HEAD, Checkpoint, Scheme, quantization_of, read_checkpoint
from runner.passes.declaration import Pass, PassContext
from runner.passes.genai.builder_call import build, import_builder
from runner.passes.genai.builder_checks import (
    STANDS_FOR_HQQ,
    check_combination,
    check_quantised,
    foresee,
    keep_blocks_even,
    keep_shared_loadable,
)
from runner.passes.genai.builder_options import HQQ, QUANTISED, ModelBuilderOptions, chosen_of
from runner.passes.genai.genai_folder import copy_beside, finish_config, lower_opset, name_tokenizer
from runner.passes.genai.last_rows import keep_last_rows
from runner.passes.genai.quantized_source import write_for_builder
from runner.passes.genai.shared_embedding import Share, share_codes, share_head, share_in, share_nearest

_HEAD_NODE = "/lm_head/MatMul"
_WIDE = 50_000_000  # weights of an embedding that are worth a word


def _apply(model: ModelHandle, options: ModelBuilderOptions, context: PassContext) -> ModelHandle:
    check_combination(options, context.target)
    chosen = chosen_of(options)
    file = chosen.setdefault("filename", model.file if options.metadata_only and model.file else "model.onnx")
    if options.metadata_only:
        _copy_graph(model, context.output)
        chosen["config_only"] = True
    elif model.kind != "hf":
        raise InvalidRecipe(
            Problem(
                "wrong-kind",
                f"ModelBuilder builds from a Hugging Face model, not from one of kind '{model.kind}'",
                remedy="put it first, or set metadata_only to describe a finished ONNX model",
            )
        )
    chosen.setdefault("hf_token", False)
    if model.attributes.get("trust_remote_code"):
        chosen.setdefault("hf_remote", True)
    if adapter := adapter_folder(model):
        chosen.setdefault("adapter_path", str(adapter))
    hqq = _names_other_method(chosen)
    source, checkpoint = model.folder, None
    if model.kind == "hf" and quantization_of(model.folder):
        checkpoint = _quantised_weights(model, options)
    codes_unread = context.target.name == "directml" and options.precision in QUANTISED  # no kernel of GatherBlockQuantized
    asked = not options.metadata_only and not codes_unread and _shares_rows_of_head(model, options, chosen, checkpoint, hqq)
    head_read = asked and _rows_filled(model, chosen, checkpoint, context)
    if checkpoint:
        source = context.scratch / "quantised-source"
        source.mkdir()
        write_for_builder(checkpoint, model.folder, source, not (head_read or EMBEDDING in checkpoint.matrices))
    if asked or hqq or codes_unread or (checkpoint and EMBEDDING in checkpoint.matrices):
        chosen["shared_embeddings"] = False
    if checkpoint and HEAD not in checkpoint.matrices:
        _keep_in_float(chosen, context)
    precision = "int4" if checkpoint else options.precision  # by which the builder packs codes of any bits
    if precision == "int4" and not options.metadata_only:
        keep_shared_loadable(source, chosen, context)
        keep_blocks_even(model, chosen, context)
    if head_read:
        context.say("the embedding reads the rows of the quantised head")
    share = _sharing(checkpoint, head_read)
    lookup = _lookup_scheme(options.embedding_bits, chosen) if options.embedding_bits and not share else None
    _tell_of_wide_embedding(model, options, chosen, checkpoint, bool(share or lookup), context)
    context.say(f"building an {options.precision} graph for {context.target.provider}")
    build(source, precision, chosen, context, lookup, share, hqq)
    gc.collect()  # the builder's graph and weights refer to one another
    if afterwards := partial(share_nearest, lookup) if lookup else share:
        share_in(context.output / file, afterwards)  # does nothing where it was done while the graph was written
    if context.target.name == "directml" and not options.metadata_only:
        lower_opset(context.output)
    if chosen.get("prune_lm_head") and not options.metadata_only:
        keep_last_rows(context.output / file)
    copy_beside(model.folder, context.output)
    name_tokenizer(context.output / "tokenizer_config.json")
    config = finish_config(context.output / "genai_config.json", options.search or {})
    return _handle(model, context.output, file, options.precision, config)


def _keep_in_float(chosen: dict[str, Any], context: PassContext) -> None:
    """Has the builder leave the head, as the checkpoint has it, and the embedding, which it would round for a tied model."""
    context.say("the head stays in floating point; Rtn with lm_head would quantise it")
    chosen["nodes_to_exclude"] = [*chosen.get("nodes_to_exclude", ()), _HEAD_NODE]
    chosen["shared_embeddings"] = False


def _tell_of_wide_embedding(
    model: ModelHandle,
    options: ModelBuilderOptions,
    chosen: Mapping[str, Any],
    checkpoint: Checkpoint | None,
    reads_codes: bool,
    context: PassContext,
) -> None:
    """Says what an embedding takes that stays in floating point beside quantised weights, and what would make it smaller."""
    in_codes = options.precision in QUANTISED and not options.metadata_only
    if reads_codes or not in_codes or context.target.name != "cpu" or chosen.get("exclude_embeds"):
        return
    config = _config_of(model)
    weights = int(config.get("vocab_size") or 0) * int(config.get("hidden_size") or 0)
    tied = bool(checkpoint.shared if checkpoint else config.get("tie_word_embeddings"))
    may_share = tied and not checkpoint and chosen.get("shared_embeddings") is not False
    if weights < _WIDE or (may_share and options.precision == "int4"):
        return
    remedy = "Rtn with embeds" if checkpoint else "shared_embeddings" if may_share else "embedding_bits: 8"
    context.say(
        f"the embedding stays in fp32, {4 * weights / 1e6:.0f} MB, which may be more than the source has for it; "
        f"{remedy} makes it {weights * 1.125 / 1e6:.0f} MB"
    )


def _lookup_scheme(bits: int, chosen: Mapping[str, Any]) -> Scheme:
    return Scheme(bits, chosen.get("block_size", 32), True)


def _sharing(checkpoint: Checkpoint | None, head_read: bool) -> Share | None:
    """Returns what lets the embedding read codes that are there: those of the head, or its own."""
    if head_read:
        return share_head
    return partial(share_codes, checkpoint.matrices[EMBEDDING]) if checkpoint and EMBEDDING in checkpoint.matrices else None


def _quantised_weights(model: ModelHandle, options: ModelBuilderOptions) -> Checkpoint:
    check_quantised(options)
    return read_checkpoint(model.folder)


def _names_other_method(chosen: dict[str, Any]) -> bool:
    """Puts a method of the builder in the place of HQQ, with the same operators and tensors; says whether it did."""
    if chosen.get("algo_config") != HQQ:
        return False
    chosen |= STANDS_FOR_HQQ
    return True


def _shares_rows_of_head(
    model: ModelHandle, options: ModelBuilderOptions, chosen: Mapping[str, Any], checkpoint: Checkpoint | None, hqq: bool
) -> bool:
    """Says whether the embedding is to read the rows of the head in a way that the builder does not write itself."""
    if chosen.get("exclude_embeds") or chosen.get("exclude_lm_head"):
        return False
    if checkpoint:
        return checkpoint.shared and HEAD in checkpoint.matrices and chosen.get("shared_embeddings") is not False
    if options.precision == "int8":
        return chosen.get("shared_embeddings") is True
    return hqq and chosen.get("shared_embeddings") is not False and bool(_config_of(model).get("tie_word_embeddings"))


def _rows_filled(model: ModelHandle, chosen: Mapping[str, Any], checkpoint: Checkpoint | None, context: PassContext) -> bool:
    """Says whether whole blocks fill the rows of the head; where they do not, an embedding would be read with their padding."""
    size, width = chosen.get("block_size", 32), _config_of(model).get("hidden_size")
    if checkpoint or not width or width % size == 0:
        return True
    context.say(f"the embedding has a matrix of its own, since blocks of {size} do not fill rows of {width}")
    return False


def _config_of(model: ModelHandle) -> dict[str, Any]:
    """Returns the configuration of the language model in a transformers folder."""
    config = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
    return {**config, **config.get("text_config", {})}


def _copy_graph(model: ModelHandle, output: Path) -> None:
    if model.kind != "onnx":
        raise InvalidRecipe(
            Problem(
                "wrong-kind",
                f"metadata_only describes a finished ONNX model, and this one is of kind '{model.kind}'",
                remedy="take metadata_only out, or start from an ONNXModel",
            )
        )
    carry(model, output, graph=True)


def _handle(model: ModelHandle, folder: Path, file: str, precision: str, config: Mapping[str, Any]) -> ModelHandle:
    decoder = config["model"]["decoder"]
    facts = {key: decoder[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads") if key in decoder}
    kept = {key: value for key, value in model.attributes.items() if key != "load_kwargs"}
    file = decoder.get("filename") or file  # Whisper: encoder.onnx and decoder.onnx
    return ModelHandle("genai", folder, file, model.task or "text-generation", {**kept, **facts, "precision": precision})


PASS = Pass(
    name="ModelBuilder",
    summary="Builds a language model for onnxruntime-genai with the builder that comes with it.",
    options=ModelBuilderOptions,
    apply=_apply,
    takes=("hf", "onnx"),
    gives="genai",
    packages=("onnxruntime-genai", "onnxruntime", "onnx-ir", "torch", "transformers"),
    version=5,
    foresee=foresee,
    imports=import_builder,
)
