"""What ModelBuilder takes: the builder's options under their own names, Olive's older names, and what no longer acts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from runner.recipe.config import Model
from runner.recipe.options import PassOptions

Algorithm = Literal["default", "rtn", "k_quant", "rtn_last", "k_quant_last", "k_quant_mixed", "k_quant_linear", "hqq"]
Selector = Literal["last_matmul", "mixed_layers", "linear_attn"]
HQQ = "hqq"  # a method that the builder does not have
QUANTISED = ("int4", "int8")

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
    algo_config: Algorithm | None = Field(
        None,
        description="quantisation method; hqq always has zero points: with precision int4 it gives what OnnxHqqQuantization"
        " makes of a finished graph, with int8 the same fit to codes of 8 bits. In int4 a tied embedding reads the head's codes"
        " as well, which OnnxHqqQuantization does not make it do, unless shared_embeddings is false",
    )
    matmul_mixed_precision: dict[Selector, Literal["int4", "int8"]] | None = Field(
        None, description="precision of the most sensitive MatMuls, such as {last_matmul: int8}"
    )
    op_types_to_quantize: list[str] | None = Field(None, description="operators to quantise; MatMul by default")
    nodes_to_exclude: list[str] | None = Field(None, description="nodes kept in floating point, such as /lm_head/MatMul")
    shared_embeddings: bool | None = Field(
        None, description="one matrix for the embedding and the head of a model that ties them"
    )
    prune_lm_head: bool | None = Field(
        None, description="compute logits of the last token only, and only that token behind the last attention"
    )
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
        if not isinstance(given, dict):
            return given
        for old, new in RENAMED.items():
            if old in given and new in given and given[old] != given[new]:
                raise ValueError(f"'{old}' and '{new}' are two names of one option, and their values differ; keep one of them")
        return {RENAMED.get(key, key): value for key, value in given.items()}


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


def chosen_of(options: ModelBuilderOptions) -> dict[str, Any]:
    """The builder's options that somebody set, by its names."""
    own = {name: getattr(options, name) for name in BuilderOptions.model_fields}
    extra = options.extra_options.model_dump() if options.extra_options else {}
    return {name: value for name, value in {**own, **_set_only(extra)}.items() if value is not None}


def _set_only(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
