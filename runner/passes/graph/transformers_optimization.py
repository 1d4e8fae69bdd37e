"""Fuses attention, normalisation and activation of transformers into single operators, with onnxruntime.transformers."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from runner.errors import InvalidRecipe, Problem, did_you_mean
from runner.models.files import carry, external_files, graphs_of, read_graph, unlinked, write_graph
from runner.models.handle import ModelHandle
from runner.models.towers import COMPARISON, facts_of_graph
from runner.passes.declaration import Pass, PassContext
from runner.passes.external_data import ExternalDataOptions
from runner.passes.graph.large_graphs import halve, optimiser_of_structure
from runner.passes.graph.multi_head_attention import take_attention_apart

if TYPE_CHECKING:
    import onnx
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.onnx_model import OnnxModel

# Architectures whose graphs onnxruntime.transformers knows, and what transformers calls the others that look like them.
MODEL_TYPES = (
    "bart", "bert", "bert_keras", "bert_tf", "clip", "conformer", "gpt2", "gpt2_tf", "gpt_neox", "mmdit", "phi", "qwen3",
    "sam2", "swin", "t5", "tnlr", "unet", "vae", "vit",
)  # fmt: skip
LOOKS_LIKE: Mapping[str, str] = {
    **dict.fromkeys(
        ("albert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "nomic_bert",
         "roberta", "xlm-roberta"), "bert"),
    **dict.fromkeys(
        ("codegen", "gemma", "gemma2", "gemma3", "gpt_bigcode", "gpt_neo", "granite", "llama", "mistral", "olmo", "opt", "phi3",
         "qwen2", "smollm3"), "gpt2"),
    **dict.fromkeys(("beit", "deit", "dinov2", "dinov2_with_registers", "data2vec-vision", "siglip"), "vit"),
    **dict.fromkeys(("clip_text_model", "clip_vision_model"), "clip"),
    **dict.fromkeys(("marian", "mbart", "whisper"), "bart"),
}  # fmt: skip
_LEVEL_NAMES = {"none": 0, "disable": 0, "basic": 1, "extended": 2, "all": 99}
_MASK_FORMATS = {"MaskIndexEnd": 0, "MaskIndexEndAndStart": 1, "AttentionMask": 2, "NoMask": 3}
_FUSION_SWITCHES = (
    "attention_mask_format", "attention_op_type", "disable_multi_head_attention_bias", "enable_attention", "enable_bias_add",
    "enable_bias_gelu", "enable_bias_skip_layer_norm", "enable_bias_splitgelu", "enable_embed_layer_norm", "enable_gelu",
    "enable_gelu_approximation", "enable_gemm_fast_gelu", "enable_group_norm", "enable_layer_norm", "enable_nhwc_conv",
    "enable_packed_kv", "enable_packed_qkv", "enable_qordered_matmul", "enable_rotary_embeddings", "enable_shape_inference",
    "enable_skip_group_norm", "enable_skip_layer_norm", "group_norm_channels_last", "use_multi_head_attention",
)  # fmt: skip
# Fusions into operators that the CPU provider has no kernels for.
_GPU_ONLY = (
    "enable_bias_add", "enable_bias_splitgelu", "enable_group_norm", "enable_nhwc_conv", "enable_packed_kv",
    "enable_packed_qkv", "enable_skip_group_norm",
)  # fmt: skip
_UNET = "unet"
_SPLIT_GELU_WIDTHS = (2560, 5120, 6144, 10240, 12288)  # of BiasSplitGelu's CUDA kernel, which refuses others when it runs
_HEADS_APART = 4  # sizes of [batch, tokens, heads, width of a head]


class OrtTransformersOptimizationOptions(ExternalDataOptions):
    """Options of OrtTransformersOptimization."""

    model_type: str | None = Field(
        None, description=f"kind of graph: {', '.join(MODEL_TYPES)}, or transformers' model type; the model's own by default"
    )
    num_heads: int = Field(0, ge=0, description="attention heads; 0 takes the model's own, or finds them in the graph")
    num_key_value_heads: int = Field(0, ge=0, description="key and value heads; 0 takes the model's own")
    hidden_size: int = Field(0, ge=0, description="width of the model; 0 takes the model's own, or finds it in the graph")
    optimization_options: dict[str, Any] | None = Field(
        None, description="switches of single fusions, such as {enable_gelu_approximation: true}"
    )
    opt_level: Literal[0, 1, 2, 99] | None = Field(
        None, description="ONNX Runtime's own optimisation first: 0 none, 1 basic, 2 extended, 99 all; by model type when unset"
    )
    use_gpu: bool | None = Field(None, description="optimise for a GPU; what the target says by default")
    only_onnxruntime: bool = Field(False, description="ONNX Runtime's own optimisation only, no further fusions")
    float16: bool = Field(False, description="convert to half precision afterwards")
    keep_io_types: bool = Field(True, description="with float16: inputs and outputs keep their types")
    force_fp32_ops: list[str] | None = Field(None, description="with float16: operator types that stay in fp32")
    force_fp32_nodes: list[str] | None = Field(None, description="with float16: nodes that stay in fp32")
    force_fp16_inputs: dict[str, list[int]] | None = Field(
        None, description="with float16: inputs of operator types that become half precision in any case, by index"
    )
    use_gqa: bool = Field(False, description="GroupQueryAttention; models with it come from ModelBuilder")
    input_int32: bool = Field(False, description="take int32 inputs in place of int64")

    renamed: ClassVar[Mapping[str, str]] = {
        "optimization_level": "opt_level",
        "op_block_list": "force_fp32_ops",
        "node_block_list": "force_fp32_nodes",
    }
    retired: ClassVar[Mapping[str, str]] = {
        "optimize_for_gpu": "use_gpu says it",
        "provider": "the target says it",
    }

    @field_validator("opt_level", mode="before")
    @classmethod
    def _level_by_name(cls, given: Any) -> Any:
        return _LEVEL_NAMES.get(given.lower(), given) if isinstance(given, str) else given

    @field_validator("model_type")
    @classmethod
    def _known_model_type(cls, given: str | None) -> str | None:
        if given and given.lower() not in (*MODEL_TYPES, *LOOKS_LIKE):
            raise ValueError(f"'{given}' is no model type; {did_you_mean(given, (*MODEL_TYPES, *LOOKS_LIKE))}")
        return given.lower() if given else None

    @field_validator("optimization_options")
    @classmethod
    def _known_switches(cls, given: dict[str, Any] | None) -> dict[str, Any] | None:
        unknown = [name for name in given or {} if name not in _FUSION_SWITCHES]
        if unknown:
            raise ValueError(f"there is no fusion switch '{unknown[0]}'; {did_you_mean(unknown[0], _FUSION_SWITCHES)}")
        return given

    @model_validator(mode="after")
    def _goes_together(self) -> OrtTransformersOptimizationOptions:
        if self.only_onnxruntime and self.opt_level == 0:
            raise ValueError("only_onnxruntime with opt_level 0 would do nothing; raise opt_level or drop only_onnxruntime")
        if self.use_gqa:
            raise ValueError("use_gqa is not served; ModelBuilder makes graphs with GroupQueryAttention")
        return self


def optimize(model: ModelHandle, options: OrtTransformersOptimizationOptions, context: PassContext) -> ModelHandle:
    """Writes the fused graph (or graphs, where the model was split); everything else of the folder goes along.

    Raises:
        InvalidRecipe: the model's architecture is none that fusions are known for, and none was named.
    """
    if model.kind == "genai":
        return _finish_fused(model, options, context)
    names = graphs_of(model)
    weights = {file for name in names for file in external_files(model.folder / name)}
    for name in names:
        write_graph(_optimized(model, name, options, context), context.output / name, options.external_data())
    carry(model, context.output, exclude={*names, *weights}, graph=True)
    return ModelHandle(model.kind, context.output, names[0], model.task, model.attributes)


def _optimized(
    model: ModelHandle, name: str, options: OrtTransformersOptimizationOptions, context: PassContext
) -> onnx.ModelProto:
    before = _fused_operators(read_graph(model.folder / name, weights=False))
    fused = _fuse(model, name, options, context)
    if (options.optimization_options or {}).get("use_multi_head_attention"):
        take_attention_apart(fused)
        if left := _not_in_multi_head(_fused_operators(fused.model)):
            context.say(f"use_multi_head_attention: {left}")
    context.say(_told(before, _fused_operators(fused.model)))
    if options.float16 and model.attributes.get("force_upcast"):
        context.say("kept in fp32, since its configuration says that half precision overflows (force_upcast)")
    elif options.float16 and name == COMPARISON:
        context.say(f"{name} is kept in fp32: scores reach 100, where half precision has steps of 0.06")
    elif options.float16:
        _hold_constants_as_weights(fused.model)
        halve(
            fused,
            keep_io_types=options.keep_io_types,
            op_block_list=options.force_fp32_ops,
            node_block_list=options.force_fp32_nodes,
            force_fp16_inputs=options.force_fp16_inputs,
        )
    if options.input_int32:
        _take_int32(fused.model)
    fused.topological_sort()
    return fused.model


def _hold_constants_as_weights(graph: onnx.ModelProto) -> None:
    """Makes Constant nodes initializers.

    Of those ONNX Runtime's converter knows which stay in fp32 (Resize's scales); of other values only where it inferred shapes,
    which it cannot beyond 2 GB.
    """
    kept = []
    for node in graph.graph.node:
        tensors = [one.t for one in node.attribute if one.name == "value"] if node.op_type == "Constant" else []
        if tensors:
            graph.graph.initializer.add().CopyFrom(tensors[0])
            graph.graph.initializer[-1].name = node.output[0]
        else:
            kept.append(node)
    if len(kept) < len(graph.graph.node):
        del graph.graph.node[:]
        graph.graph.node.extend(kept)


def _take_int32(graph: onnx.ModelProto) -> None:
    """Makes int64 inputs int32, each with a Cast behind it for the nodes that read it."""
    import onnx

    for value in graph.graph.input:
        if value.type.tensor_type.elem_type != onnx.TensorProto.INT64:
            continue
        value.type.tensor_type.elem_type = onnx.TensorProto.INT32
        wide = f"{value.name}_int64"
        for node in graph.graph.node:
            for at, name in enumerate(node.input):
                if name == value.name:
                    node.input[at] = wide
        cast = onnx.helper.make_node("Cast", [value.name], [wide], name=f"/{wide}/Cast", to=onnx.TensorProto.INT64)
        graph.graph.node.insert(0, cast)


def _finish_fused(model: ModelHandle, options: OrtTransformersOptimizationOptions, context: PassContext) -> ModelHandle:
    """A graph for onnxruntime-genai is built from fused operators, and its runtime optimises it on loading: it stays as it is.

    Raises:
        InvalidRecipe: an option asks for another graph, which onnxruntime-genai would not load.
    """
    asked = [name for name in ("float16", "input_int32") if getattr(options, name)]
    if asked:
        raise InvalidRecipe(
            Problem(
                "bad-option",
                f"OrtTransformersOptimization: {asked[0]} changes the inputs that onnxruntime-genai expects",
                remedy="set the precision of ModelBuilder",
            )
        )
    context.say("the graph is built from fused operators already; kept as it is")
    carry(model, context.output, graph=True)
    return ModelHandle(model.kind, context.output, model.file, model.task, model.attributes)


def _fuse(model: ModelHandle, name: str, options: OrtTransformersOptimizationOptions, context: PassContext) -> OnnxModel:
    from onnxruntime.transformers.optimizer import optimize_model

    kind, facts = _kind(model, name, options), facts_of_graph(model, name)
    only_runtime = options.only_onnxruntime or kind is None
    asked = [switch for switch in _GPU_ONLY if (options.optimization_options or {}).get(switch)]
    if asked and context.target.device == "cpu" and not only_runtime:
        context.say(f"{', '.join(asked)}: left out, since the CPU has no kernels for them")
    if kind is None and not options.only_onnxruntime:
        context.say(f"no fusions are known for {_own_type(model)}; ONNX Runtime's own optimisation is used")
    level = 1 if only_runtime and options.opt_level is None else options.opt_level
    use_gpu = context.target.device == "gpu" if options.use_gpu is None else options.use_gpu
    here = _provider_here(context)
    if not here and (level is None or level > 1):
        if level is not None:
            context.say(f"{context.target.provider} is not here: opt_level 1 in place of {level}, whose operators it may lack")
        level = 1
    with _fusions_of_unets() if kind == _UNET else nullcontext(), optimiser_of_structure(kind or "bert"):
        return optimize_model(
            str(unlinked(model.folder / name, context.scratch)),
            model_type=kind or "bert",
            num_heads=options.num_heads or int(facts.get("num_attention_heads") or 0),
            hidden_size=options.hidden_size or int(facts.get("hidden_size") or 0),
            optimization_options=_fusion_options(kind or "bert", options.optimization_options, context.target.device),
            opt_level=level,
            use_gpu=use_gpu and here and context.target.device == "gpu",
            only_onnxruntime=only_runtime,
            provider=context.target.provider.removesuffix("ExecutionProvider").lower() if use_gpu and here and level else None,
        )


@contextmanager
def _fusions_of_unets() -> Iterator[None]:
    """Mends two fusions of onnxruntime.transformers 1.32 within the block.

    The number of heads is read from an array of one element, which numpy converts no more since 2.4. And BiasSplitGelu is made
    of any width, of which its kernel takes a few.
    """
    from onnxruntime.transformers import optimizer

    # The optimiser imports its modules by their bare names, so the classes are reached through the one that uses them.
    module = sys.modules[optimizer.MODEL_TYPES[_UNET][0].__module__]
    heads, split = module.FusionAttentionUnet.get_num_heads, module.FusionBiasSplitGelu.fuse

    def number_of_heads(self: Any, reshape_q: onnx.NodeProto, is_torch2: bool = False) -> int:
        shape = self.model.get_parent(reshape_q, 1) if is_torch2 else None
        if shape is None or shape.op_type != "Concat" or len(shape.input) != _HEADS_APART:
            return int(heads(self, reshape_q, is_torch2))
        number = self.model.get_constant_value(shape.input[2])
        return int(number.item()) if number is not None and number.size == 1 else 0

    def fuse_where_it_runs(self: Any, gelu: onnx.NodeProto, *maps: Any) -> None:
        added = self.model.match_parent_path(gelu, ["Slice", "Add"], [0, 0])
        _, bias = self.model.get_constant_input(added[-1]) if added else (None, None)
        if bias is not None and bias.size in _SPLIT_GELU_WIDTHS:
            split(self, gelu, *maps)

    module.FusionAttentionUnet.get_num_heads, module.FusionBiasSplitGelu.fuse = number_of_heads, fuse_where_it_runs
    try:
        yield
    finally:
        module.FusionAttentionUnet.get_num_heads, module.FusionBiasSplitGelu.fuse = heads, split


def _provider_here(context: PassContext) -> bool:
    """Says whether this installation can run the target's provider; a graph can be fused for another machine's as well."""
    import onnxruntime

    return context.target.provider in onnxruntime.get_available_providers()


def _own_type(model: ModelHandle) -> str:
    return str(model.attributes.get("model_type") or "").lower()


def _kind(model: ModelHandle, name: str, options: OrtTransformersOptimizationOptions) -> str | None:
    """Returns the graph's kind in onnxruntime.transformers' words; None where none is known.

    Raises:
        InvalidRecipe: fusions are asked for and nothing says what the model is.
    """
    named = options.model_type or _own_type(model)
    if not named and not options.only_onnxruntime:
        raise InvalidRecipe(
            Problem(
                "missing-option",
                "OrtTransformersOptimization: nothing says what kind of transformer the graph is",
                remedy=f"set model_type to one of {', '.join(MODEL_TYPES)}, or only_onnxruntime to true",
            )
        )
    named = LOOKS_LIKE.get(named, named)
    if named == "phi" and not read_graph(model.folder / name, weights=False).functions:
        named = "gpt2"  # the fusions of phi look for functions, which torch's exporter writes no more
    return named if named in MODEL_TYPES else None


def _fusion_options(kind: str, switches: Mapping[str, Any] | None, device: str) -> FusionOptions:
    from onnxruntime.transformers.fusion_options import AttentionOpType, FusionOptions

    made = FusionOptions(kind)
    if kind == "bert":  # its default reads the mask as a length, which is right for padding on the right only
        made.use_raw_attention_mask(True)
    for name in _GPU_ONLY if device == "cpu" else ():
        setattr(made, name, False)
    for name, value in (switches or {}).items():
        if device == "cpu" and name in _GPU_ONLY:
            continue
        if name == "attention_op_type":
            made.set_attention_op_type(AttentionOpType(value))
        elif name == "attention_mask_format":
            made.attention_mask_format = _MASK_FORMATS.get(value, value)
        else:
            setattr(made, name, value)
    return made


def _fused_operators(graph: onnx.ModelProto) -> Counter[str]:
    return Counter(
        node.op_type for node in graph.graph.node if node.domain == "com.microsoft" or node.op_type in ("Attention", "Gelu")
    )


def _not_in_multi_head(operators: Counter[str]) -> str | None:
    """Returns what keeps attention from being MultiHeadAttention; None where nothing does."""
    if left := operators["Attention"]:
        return f"{left} Attention stay as they are, since their masks or weights have no place in MultiHeadAttention"
    if not operators["MultiHeadAttention"]:
        return "nothing was done, since no fusion recognises the attention of this graph"
    return None


def _told(before: Counter[str], after: Counter[str]) -> str:
    listed = ", ".join(f"{count} {name}" for name, count in sorted(after.items())) or "none"
    if after == before:
        return f"nothing was fused that was not before; fused operators: {listed}"
    return f"fused operators: {listed}"


PASS = Pass(
    name="OrtTransformersOptimization",
    summary="Fuses attention, normalisation and activation of transformer graphs into single operators.",
    options=OrtTransformersOptimizationOptions,
    apply=optimize,
    takes=("onnx", "genai"),
    gives=None,
    packages=("onnxruntime", "onnx"),
    version=3,
)
