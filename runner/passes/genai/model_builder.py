"""Language models for onnxruntime-genai, made by its own builder: graph, weights, search settings and tokenizer."""

from __future__ import annotations

import gc
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from runner.errors import InvalidRecipe, Problem, RunFailed
from runner.models.adapter import adapter_folder
from runner.models.files import carry
from runner.models.generation import import_genai
from runner.models.handle import ModelHandle
from runner.models.quantized_checkpoint import EMBEDDING, HEAD, Checkpoint, Scheme, quantization_of, read_checkpoint
from runner.passes.declaration import Pass, PassContext
from runner.passes.genai.architectures import mended
from runner.passes.genai.quantized_source import write_for_builder
from runner.passes.genai.shared_embedding import Share, share_codes, share_head, share_in, share_nearest
from runner.passes.genai.streamed_weights import streamed
from runner.recipe.config import Model
from runner.recipe.options import PassOptions
from runner.targets.target import Target

Algorithm = Literal["default", "rtn", "k_quant", "rtn_last", "k_quant_last", "k_quant_mixed", "k_quant_linear"]
Selector = Literal["last_matmul", "mixed_layers", "linear_attn"]
ALL_LAYERS_SLIDE = ("mistral", "phi3")  # architectures whose sliding_window holds for every layer
QUANTISED = ("int4", "int8")
SCHEME = ("block_size", "accuracy_level", "is_symmetric", "algo_config", "matmul_mixed_precision")

_HEAD_NODE = "/lm_head/MatMul"

# Olive's names of options that the builder calls otherwise today.
RENAMED = {
    "int4_accuracy_level": "accuracy_level",
    "int4_algo_config": "algo_config",
    "int4_block_size": "block_size",
    "int4_is_symmetric": "is_symmetric",
    "int4_nodes_to_exclude": "nodes_to_exclude",
    "int4_op_types_to_quantize": "op_types_to_quantize",
    "int4_tied_embeddings": "shared_embeddings",
}


class BuilderOptions(Model):
    """What the builder is told about the graph and its weights; None leaves the builder's default."""

    block_size: Literal[16, 32, 64, 128, 256] | None = Field(None, description="weights that share one scale")
    accuracy_level: Literal[0, 1, 2, 3, 4] | None = Field(
        None, description="activations of quantised MatMuls: 0 unset, 1 fp32, 2 fp16, 3 bf16, 4 int8"
    )
    is_symmetric: bool | None = Field(None, description="quantise without zero points")
    algo_config: Algorithm | None = Field(None, description="quantisation method")
    matmul_mixed_precision: dict[Selector, Literal["int4", "int8"]] | None = Field(
        None, description="precision of the most sensitive MatMuls, such as {last_matmul: int8}"
    )
    op_types_to_quantize: list[str] | None = Field(None, description="operators to quantise; MatMul by default")
    nodes_to_exclude: list[str] | None = Field(None, description="nodes kept in floating point, such as /lm_head/MatMul")
    shared_embeddings: bool | None = Field(
        None, description="one matrix for the embedding and the head of a model that ties them"
    )
    prune_lm_head: bool | None = Field(None, description="compute logits of the last token only")
    fuse_qkv: bool | None = Field(None, description="one MatMul for the query, key and value projections")
    fuse_mlp_gate_up: bool | None = Field(None, description="one MatMul for the gate and up projections")
    exclude_embeds: bool | None = Field(None, description="leave the embedding out; the input is inputs_embeds")
    exclude_lm_head: bool | None = Field(None, description="leave the head out; the output is hidden_states")
    include_hidden_states: bool | None = Field(None, description="put out hidden_states beside the logits")
    num_hidden_layers: int | None = Field(None, ge=1, description="build only the first layers")
    enable_cuda_graph: bool | None = Field(None, description="capture CUDA graphs")
    enable_dml_graph: bool | None = Field(None, description="capture DirectML graphs")
    use_qdq: bool | None = Field(None, description="QuantizeLinear and DequantizeLinear instead of MatMulNBits")
    use_cuda_bf16: bool | None = Field(None, description="bf16 inputs and outputs of an int4 model on CUDA")
    use_webgpu_fp32: bool | None = Field(None, description="fp32 inputs and outputs on WebGPU")
    use_8bits_moe: bool | None = Field(None, description="8-bit experts; moe_quant_type says it today")
    moe_quant_type: Literal["int2", "int4", "int8", "mxfp4", "nvfp4"] | None = Field(None, description="weights of experts")

    @field_validator("matmul_mixed_precision", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        """Takes the builder's own spelling as well: ``last_matmul:int8,mixed_layers:int8``."""
        return dict(part.split(":", 1) for part in value.split(",")) if isinstance(value, str) and ":" in value else value

    @field_validator("block_size", "accuracy_level", mode="before")
    @classmethod
    def _number_from_text(cls, value: Any) -> Any:
        """Takes a number as the builder's command line spells it: ``"128"``."""
        return int(value) if isinstance(value, str) and value.isdecimal() else value

    @field_validator("op_types_to_quantize", "nodes_to_exclude", mode="before")
    @classmethod
    def _list_from_text(cls, value: Any, field: ValidationInfo) -> Any:
        """Takes a list as the builder's command line spells it: ``MatMul/Gather``, ``/lm_head/MatMul,/layers.0/MatMul``."""
        if not isinstance(value, str):
            return value
        return value.split("/" if field.field_name == "op_types_to_quantize" else ",")


class ExtraOptions(BuilderOptions):
    """The builder's rarer options, under its own names; those of BuilderOptions may stand here too."""

    adapter_path: str | None = None
    aux_hidden_state_layers: str | None = None
    disable_qkv_fusion: bool | None = None
    enable_cuda_fpa_intb_gemm: bool | None = None
    enable_webgpu_graph: bool | None = None
    exclude_mtp: bool | None = None
    filename: str | None = None
    fuse_qk_norm_gqa: bool | None = None
    gpu_utilization_factor: float | None = None
    hf_remote: bool | None = None
    hf_token: bool | str | None = None
    kv_cache_quant_scheme: str | None = None
    kv_cache_rotation: Literal["none", "hadamard"] | None = None
    kv_cache_scale_file: str | None = None
    linear_attn_op: Literal["linear_attention", "gated_delta_net"] | None = None
    matmulnbits_weights_prepacked: Literal[0, 1, 2] | None = None
    max_batch_size: int | None = None
    max_draft_tokens: int | None = None
    max_scheduled_tokens: int | None = None
    num_blocks: int | None = None
    paged_block_size: int | None = None
    paged_chunk_size: int | None = None
    qmoe_block_size: int | None = None
    qmoe_weights_prepacked: Literal[-1, 0, 1] | None = None
    state_update_capacity: int | None = None
    state_window: int | None = None
    use_device_allocator_for_initializers: bool | None = None
    use_paged_attention: bool | None = None
    windowed_kv_cache: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _todays_names(cls, given: Any) -> Any:
        return {RENAMED.get(key, key): value for key, value in given.items()} if isinstance(given, dict) else given


class ModelBuilderOptions(BuilderOptions, PassOptions):
    """Options of ModelBuilder."""

    precision: Literal["fp32", "fp16", "bf16", "int8", "int4"] = Field("fp32", description="precision of the weights")
    embedding_bits: Literal[8] | None = Field(
        None, description="bits of an embedding that shares no matrix with the head; it stays in floating point when not given"
    )
    metadata_only: bool = Field(False, description="write genai_config.json and the tokenizer beside a finished ONNX model")
    search: dict[str, Any] | None = Field(None, description="entries of genai_config.json's search section")
    extra_options: ExtraOptions | None = Field(None, description="further options of the builder; they win over the others")

    @model_validator(mode="before")
    @classmethod
    def _bits_left_out(cls, given: Any) -> Any:
        """Takes precision ``int``, as some configurations write it, for the builder's usual four bits."""
        return {**given, "precision": "int4"} if isinstance(given, dict) and given.get("precision") == "int" else given

    renamed: ClassVar[Mapping[str, str]] = RENAMED
    retired: ClassVar[Mapping[str, str]] = {
        "use_ort_genai": "the builder always makes a model for onnxruntime-genai",
        "use_dynamo_exporter": "the builder writes the graph itself and exports nothing",
        "save_as_external_data": "weights always lie in one file beside the graph",
        "all_tensors_to_one_file": "weights always lie in one file beside the graph",
        "external_data_name": "weights always lie in one file beside the graph",
        "size_threshold": "weights always lie in one file beside the graph",
        "convert_attribute": "attributes stay in the graph",
    }


def check_combination(options: ModelBuilderOptions, target: Target) -> None:
    """Refuses options that cannot give a model that runs on the target.

    Raises:
        InvalidRecipe: with every problem found.
    """
    chosen = _chosen(options)
    problems = []

    def refuse(rule: str, cause: str, remedy: str) -> None:
        problems.append(Problem(rule, f"ModelBuilder: {cause}", remedy=remedy))

    if options.precision not in target.precisions:
        refuse(
            "precision-not-served",
            f"{target.provider} runs no {options.precision} model",
            f"choose one of {', '.join(target.precisions)}, or another target",
        )
    weights_only = [name for name in SCHEME if name in chosen]
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
    if options.precision == "int8" and chosen.get("use_qdq"):
        refuse("bad-combination", "int8 weights have no QDQ form", "take use_qdq out, or choose precision int4")
    if chosen.get("exclude_lm_head") and chosen.get("prune_lm_head"):
        refuse("bad-combination", "there is no head to prune when exclude_lm_head is set", "keep one of them")
    if problems:
        raise InvalidRecipe(*problems)


def _chosen(options: ModelBuilderOptions) -> dict[str, Any]:
    """The builder's options that somebody set, by its names."""
    own = {name: getattr(options, name) for name in BuilderOptions.model_fields}
    extra = options.extra_options.model_dump() if options.extra_options else {}
    return {name: value for name, value in {**own, **_set_only(extra)}.items() if value is not None}


def _set_only(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _apply(model: ModelHandle, options: ModelBuilderOptions, context: PassContext) -> ModelHandle:
    check_combination(options, context.target)
    chosen = _chosen(options)
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
    source, checkpoint = model.folder, None
    if model.kind == "hf" and quantization_of(model.folder):
        checkpoint = _quantised_weights(model, options, chosen)
    codes_unread = context.target.name == "directml" and options.precision in QUANTISED  # no kernel of GatherBlockQuantized
    head_read = not options.metadata_only and not codes_unread and _shares_rows_of_head(options, chosen, checkpoint)
    if checkpoint:
        source = context.scratch / "quantised-source"
        source.mkdir()
        write_for_builder(checkpoint, model.folder, source, not (head_read or EMBEDDING in checkpoint.matrices))
    if head_read or codes_unread or (checkpoint and EMBEDDING in checkpoint.matrices):
        chosen["shared_embeddings"] = False
    if checkpoint and HEAD not in checkpoint.matrices:
        context.say("the head stays in floating point; Rtn with lm_head would quantise it")
        chosen["nodes_to_exclude"] = [*chosen.get("nodes_to_exclude", ()), _HEAD_NODE]
    precision = "int4" if checkpoint else options.precision  # by which the builder packs codes of any bits
    if precision == "int4" and not options.metadata_only:
        _keep_shared_loadable(source, chosen, context)
        _keep_blocks_even(model, chosen, context)
    if head_read:
        context.say("the embedding reads the rows of the quantised head")
    share = _sharing(checkpoint, head_read)
    lookup = _lookup_scheme(options.embedding_bits, chosen) if options.embedding_bits and not share else None
    context.say(f"building an {options.precision} graph for {context.target.provider}")
    _build(source, precision, chosen, context, lookup, share)
    gc.collect()  # the builder's graph and weights refer to one another
    if afterwards := partial(share_nearest, lookup) if lookup else share:
        share_in(context.output / file, afterwards)  # does nothing where it was done while the graph was written
    if context.target.name == "directml" and not options.metadata_only:
        _lower_opset(context.output)
    _copy_beside(model.folder, context.output)
    _name_tokenizer(context.output / "tokenizer_config.json")
    config = _finish_config(context.output / "genai_config.json", options.search or {})
    return _handle(model, context.output, file, options.precision, config)


def _lookup_scheme(bits: int, chosen: Mapping[str, Any]) -> Scheme:
    return Scheme(bits, chosen.get("block_size", 32), True)


def _sharing(checkpoint: Checkpoint | None, head_read: bool) -> Share | None:
    """Returns what lets the embedding read codes that are there: those of the head, or its own."""
    if head_read:
        return share_head
    return partial(share_codes, checkpoint.matrices[EMBEDDING]) if checkpoint and EMBEDDING in checkpoint.matrices else None


def _quantised_weights(model: ModelHandle, options: ModelBuilderOptions, chosen: Mapping[str, Any]) -> Checkpoint:
    """Returns the weights of a model that is quantised already.

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
    if chosen.get("fuse_mlp_gate_up"):
        raise InvalidRecipe(
            Problem(
                "bad-combination",
                "ModelBuilder: fuse_mlp_gate_up joins weights in floating point, and those of this model are quantised already",
                remedy="leave fuse_mlp_gate_up out, or let ModelBuilder quantise in place of the passes before",
            )
        )
    return read_checkpoint(model.folder)


def _shares_rows_of_head(options: ModelBuilderOptions, chosen: Mapping[str, Any], checkpoint: Checkpoint | None) -> bool:
    """Says whether the embedding is to read the rows of the head in a way that the builder does not write itself."""
    if chosen.get("exclude_embeds") or chosen.get("exclude_lm_head"):
        return False
    if checkpoint:
        return checkpoint.shared and HEAD in checkpoint.matrices and chosen.get("shared_embeddings") is not False
    return options.precision == "int8" and chosen.get("shared_embeddings") is True


def _keep_shared_loadable(source: Path, chosen: dict[str, Any], context: PassContext) -> None:
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


def _keep_blocks_even(model: ModelHandle, chosen: dict[str, Any], context: PassContext) -> None:
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


@contextmanager
def _builder() -> Iterator[Any]:
    """The builder's module. It imports its parts as top-level modules, which must not find namesakes elsewhere first."""
    parts = str(Path(import_genai().__file__).parent / "models")
    sys.path.insert(0, parts)
    try:
        from onnxruntime_genai.models import builder

        yield builder
    finally:
        sys.path.remove(parts)


def _import_builder() -> None:
    with _builder():
        pass


def _build(
    source: Path,
    precision: str,
    chosen: Mapping[str, Any],
    context: PassContext,
    lookup: Scheme | None,
    share: Share | None,
) -> None:
    work = context.scratch / "builder"
    work.mkdir()
    arguments = (None, str(source), str(context.output), precision, context.target.genai_provider, str(work))
    with _builder() as builder:
        try:
            prepared = builder.parse_extra_options(
                *arguments, [f"{name}={_written(name, value)}" for name, value in chosen.items()]
            )
        except (ValueError, NotImplementedError) as error:
            raise InvalidRecipe(Problem("bad-combination", f"ModelBuilder: {error}")) from error
        config = prepared["hf_details"]["hf_config"]
        _prepare(config)
        try:
            with mended(builder, config), streamed(builder, context.threads, lookup, share):
                builder.create_model(*arguments, **prepared)
        except NotImplementedError as error:
            raise RunFailed(
                "unsupported-architecture",
                f"onnxruntime-genai's builder cannot build this model: {error}",
                "export it with OnnxConversion instead",
            ) from error
    text = getattr(config, "text_config", config)
    scaled = (getattr(text, "rope_parameters", None) or {}).get("rope_type") == "linear"
    if text.model_type == "gemma3_text" and scaled and not chosen.get("config_only"):
        _restore_local_rotation(context.output / chosen["filename"], text.rope_local_base_freq)


def _restore_local_rotation(graph: Path, theta: float) -> None:
    """Gemma 3: window layers rotate by their own base, unscaled; the builder applies the global layers' scaling to them too."""
    import numpy as np
    import onnx

    model = onnx.load(graph, load_external_data=False)
    for tensor in model.graph.initializer:
        turn = {"cos_cache_local": np.cos, "sin_cache_local": np.sin}.get(tensor.name)
        if turn is None:
            continue
        stored = {entry.key: entry.value for entry in tensor.external_data}
        positions, halves = tensor.dims
        angles = np.outer(np.arange(positions), theta ** -(np.arange(halves) / halves))
        values = turn(angles).astype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        with (graph.parent / stored["location"]).open("r+b") as data:
            data.seek(int(stored["offset"]))
            data.write(values.tobytes())


def _prepare(config: Any) -> None:
    """Says in a transformers configuration what the builder does not find in it by itself."""
    config = getattr(config, "text_config", config)
    nested = getattr(config, "rope_parameters", None) or {}
    if config.model_type == "gemma3_text" and "full_attention" in nested:
        # transformers 5 keeps one rotary setting for each kind of layer, the builder reads the older flat form
        config.rope_parameters = dict(nested["full_attention"])
        config.rope_local_base_freq = nested["sliding_attention"]["rope_theta"]
    window = getattr(config, "sliding_window", None)
    if config.model_type in ALL_LAYERS_SLIDE and window and window < config.max_position_embeddings:
        # without a list of kinds the builder takes every layer for a full one and drops the window
        config.layer_types = ["sliding_attention"] * config.num_hidden_layers


def _written(name: str, value: Any) -> str:
    """The value of an option as the builder's command line spells it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return ",".join(f"{key}:{item}" for key, item in value.items())
    if isinstance(value, list):
        return ("/" if name == "op_types_to_quantize" else ",").join(value)
    return str(value)


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


def _lower_opset(folder: Path) -> None:
    """Calls graphs of opset 22 graphs of 21: it only adds bf16 to what operators take, and DirectML lacks kernels of it."""
    import onnx

    for path in sorted(folder.glob("*.onnx")):
        model = onnx.load(path, load_external_data=False)
        versions = {one.domain: one for one in model.opset_import}
        if versions[""].version == 22:
            versions[""].version = 21
            onnx.save(model, path)


BESIDE = ("special_tokens_map.json", "generation_config.json", "tokenizer.model")


def _copy_beside(source: Path, output: Path) -> None:
    """Files that programs expect next to the tokenizer and that the builder does not write."""
    for name in BESIDE:
        if (source / name).is_file() and not (output / name).exists():
            shutil.copyfile(source / name, output / name)


# The name that transformers 5 writes for a tokenizer of no class of its own, and its older name.
_TOKENIZER_CLASS = ("TokenizersBackend", "PreTrainedTokenizerFast")


def _name_tokenizer(path: Path) -> None:
    """Calls the tokenizer by a name that older versions of the runtime take as well.

    The runtime chooses how to tokenize by the class's name. 0.13.1, which is pinned for DirectML, does not know
    TokenizersBackend; 0.18 gives the same tokens under both names, and so does transformers. LlamaTokenizer would be taken as
    well, but parts a digit from the space before it.
    """
    if not path.is_file():
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    written, known = _TOKENIZER_CLASS
    if config.get("tokenizer_class") == written:
        path.write_text(json.dumps({**config, "tokenizer_class": known}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _finish_config(path: Path, search: Mapping[str, Any]) -> dict[str, Any]:
    """Lays the search settings over the builder's, and mends what it says of windows.

    To the runtime an empty list of window layers means every layer. The builder writes one for models whose window is as long
    as their context (Phi-3.5, Phi-4-mini), while all layers of its graph expect full caches.
    """
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    decoder = config["model"]["decoder"]
    if decoder.get("sliding_window", {}).get("layers") == []:
        del decoder["sliding_window"]
    config["search"] = {**config["search"], **search}
    path.write_text(json.dumps(config, indent=4), encoding="utf-8")
    return config


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
    version=4,
    imports=_import_builder,
)
