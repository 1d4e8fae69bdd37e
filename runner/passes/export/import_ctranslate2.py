"""Turns a Whisper model of CTranslate2 (as faster-whisper reads it) into a Hugging Face folder with fp32 weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import ModelUnavailable, RunFailed
from runner.models.ctranslate2 import WEIGHTS, Variables, read_variables
from runner.models.handle import ModelHandle
from runner.passes.declaration import Pass, PassContext
from runner.recipe.options import PassOptions

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import WhisperConfig

_SPECIFICATION = "WhisperSpec"
_LAST_INITIAL_TIMESTAMP = 50  # Whisper's own: transcripts begin within the first second
_ENGLISH_ONLY_ROWS = (
    51864  # rows of the vocabulary of Whisper's models for English; their config.json lists languages all the same
)
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class ImportCtranslate2Options(PassOptions):
    """Options of ImportCtranslate2: it has none."""


def _apply(model: ModelHandle, options: ImportCtranslate2Options, context: PassContext) -> ModelHandle:
    import torch
    from transformers import WhisperForConditionalGeneration

    variables = read_variables(model.folder / WEIGHTS)
    if variables.specification != _SPECIFICATION:
        raise RunFailed(
            "unsupported-architecture", f"CTranslate2's {variables.specification} is not read", "Whisper models are"
        )
    told, tokenizer = (_read_json(model.folder / name) for name in ("config.json", "tokenizer.json"))
    context.say("reading CTranslate2's weights into a transformers model")
    state = {name: torch.from_numpy(array) for name, array in _state(variables)}
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    config = _config(variables, ids)
    with torch.device("meta"):
        module = WhisperForConditionalGeneration(config)
    lost = module.load_state_dict(state, strict=False, assign=True)
    if lost.unexpected_keys or set(lost.missing_keys) - {"proj_out.weight"}:
        names = ", ".join([*lost.unexpected_keys, *lost.missing_keys][:5])
        raise ModelUnavailable("model-damaged", f"its weights are not those of a Whisper model: {names}", "fetch it again")
    module.tie_weights()
    module.generation_config = _generation_config(config, told, ids)
    module.save_pretrained(context.output)
    _save_processor(config, tokenizer, context.output)
    facts = {"model_type": "whisper", "architecture": type(module).__name__, "imported_from": WEIGHTS}
    return ModelHandle("hf", context.output, None, model.task, {**model.attributes, **facts})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelUnavailable("model-damaged", f"{path} cannot be read: {error}", "fetch the model again") from None
    return read


def _state(variables: Variables) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yields (transformers' name, fp32 array) of every weight."""
    for side in ("encoder", "decoder"):
        ours = f"model.{side}"
        yield f"{ours}.embed_positions.weight", variables.floats(f"{side}/position_encodings/encodings")
        yield from _norm(variables, f"{side}/layer_norm", f"{ours}.layer_norm")
        for number in range(_layers(variables, side)):
            yield from _layer(variables, f"{side}/layer_{number}", f"{ours}.layers.{number}", decoder=side == "decoder")
    for name in ("conv1", "conv2"):
        yield from _linear(variables, f"encoder/{name}", f"model.encoder.{name}")
    yield "model.decoder.embed_tokens.weight", variables.floats("decoder/embeddings/weight")


def _layer(variables: Variables, theirs: str, ours: str, *, decoder: bool) -> Iterator[tuple[str, NDArray[Any]]]:
    yield from _norm(variables, f"{theirs}/self_attention/layer_norm", f"{ours}.self_attn_layer_norm")
    yield from _projections(variables, f"{theirs}/self_attention/linear_0", f"{ours}.self_attn", _PROJECTIONS)
    yield from _linear(variables, f"{theirs}/self_attention/linear_1", f"{ours}.self_attn.out_proj")
    if decoder:
        yield from _norm(variables, f"{theirs}/attention/layer_norm", f"{ours}.encoder_attn_layer_norm")
        yield from _projections(variables, f"{theirs}/attention/linear_0", f"{ours}.encoder_attn", _PROJECTIONS[:1])
        yield from _projections(variables, f"{theirs}/attention/linear_1", f"{ours}.encoder_attn", _PROJECTIONS[1:])
        yield from _linear(variables, f"{theirs}/attention/linear_2", f"{ours}.encoder_attn.out_proj")
    yield from _norm(variables, f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm")
    yield from _linear(variables, f"{theirs}/ffn/linear_0", f"{ours}.fc1")
    yield from _linear(variables, f"{theirs}/ffn/linear_1", f"{ours}.fc2")


def _norm(variables: Variables, theirs: str, ours: str) -> Iterator[tuple[str, NDArray[Any]]]:
    yield f"{ours}.weight", variables.floats(f"{theirs}/gamma")
    yield f"{ours}.bias", variables.floats(f"{theirs}/beta")


def _linear(variables: Variables, theirs: str, ours: str) -> Iterator[tuple[str, NDArray[Any]]]:
    yield f"{ours}.weight", variables.floats(f"{theirs}/weight")
    yield f"{ours}.bias", variables.floats(f"{theirs}/bias")


def _projections(variables: Variables, theirs: str, ours: str, names: tuple[str, ...]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Parts one matrix into projections; the key's has no bias in Whisper."""
    import numpy as np

    for part in ("weight", "bias"):
        pieces = np.split(variables.floats(f"{theirs}/{part}"), len(names))
        for projection, piece in zip(names, pieces, strict=True):
            if (projection, part) != ("k_proj", "bias"):
                yield f"{ours}.{projection}.{part}", np.ascontiguousarray(piece)


def _layers(variables: Variables, side: str) -> int:
    return len({name.split("/")[1] for name in variables.arrays if name.startswith(f"{side}/layer_") and name.count("/") > 2})


def _config(variables: Variables, ids: Mapping[str, int]) -> WhisperConfig:
    from transformers import WhisperConfig

    vocabulary, width = variables.floats("decoder/embeddings/weight").shape
    sides = ("encoder", "decoder")
    heads = int(variables.arrays["encoder/num_heads"])
    end = ids["<|endoftext|>"]
    return WhisperConfig(
        vocab_size=vocabulary,
        d_model=width,
        num_mel_bins=variables.arrays["encoder/conv1/weight"].shape[1],
        max_source_positions=len(variables.arrays["encoder/position_encodings/encodings"]),
        max_target_positions=len(variables.arrays["decoder/position_encodings/encodings"]),
        **{f"{side}_layers": _layers(variables, side) for side in sides},
        **{f"{side}_attention_heads": heads for side in sides},
        **{f"{side}_ffn_dim": len(variables.arrays[f"{side}/layer_0/ffn/linear_0/weight"]) for side in sides},
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=ids["<|startoftranscript|>"],
    )


def _generation_config(config: WhisperConfig, told: Mapping[str, Any], ids: Mapping[str, int]) -> Any:
    from transformers import GenerationConfig

    languages = set(told.get("lang_ids") or ())
    multilingual = len(languages) > 1 and config.vocab_size != _ENGLISH_ONLY_ROWS
    named = {
        "lang_to_id": {token: number for token, number in ids.items() if number in languages},
        "task_to_id": {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")},
    }
    return GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
        max_length=config.max_target_positions,
        is_multilingual=multilingual,
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        suppress_tokens=told.get("suppress_ids"),
        begin_suppress_tokens=told.get("suppress_ids_begin"),
        alignment_heads=told.get("alignment_heads"),
        max_initial_timestamp_index=_LAST_INITIAL_TIMESTAMP,
        return_timestamps=False,
        **(named if multilingual else {}),
    )


def _save_processor(config: WhisperConfig, told: Mapping[str, Any], folder: Path) -> None:
    from transformers import AddedToken, WhisperFeatureExtractor, WhisperProcessor, WhisperTokenizer

    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in told["model"]["merges"]]
    tokenizer = WhisperTokenizer(vocab=told["model"]["vocab"], merges=merges)
    added = sorted(told["added_tokens"], key=lambda token: int(token["id"]))
    tokens = [AddedToken(one["content"], special=one["special"], normalized=one["normalized"]) for one in added]
    tokenizer.add_tokens(tokens, special_tokens=True)
    moved = [one["content"] for one in added if tokenizer.convert_tokens_to_ids(one["content"]) != one["id"]]
    if moved:
        raise ModelUnavailable("model-damaged", f"the tokenizer gives other ids to {', '.join(moved[:3])}", "fetch it again")
    WhisperProcessor(WhisperFeatureExtractor(feature_size=config.num_mel_bins), tokenizer).save_pretrained(folder)


PASS = Pass(
    name="ImportCtranslate2",
    summary="Reads a Whisper model of CTranslate2 into a Hugging Face folder with fp32 weights, tokenizer and processor.",
    options=ImportCtranslate2Options,
    apply=_apply,
    takes=("ct2",),
    gives="hf",
    packages=("transformers", "torch", "tokenizers"),
)
