"""PyTorch to ONNX, through torch.onnx: a graph whose batch, sequence and image sizes stay free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from runner.data.scripted_model import io_config, load_module
from runner.errors import RunFailed
from runner.models import components, towers
from runner.models.adapter import ADAPTER_ATTRIBUTES, merged
from runner.models.files import carry_companions, write_graph
from runner.models.handle import ModelHandle
from runner.models.inputs import read_facts
from runner.models.tasks import WITH_PAST, task_named, task_of
from runner.passes.declaration import Pass, PassContext
from runner.passes.export.from_diffusers import convert_component
from runner.passes.export.from_script import export_of_script, with_axes
from runner.passes.export.from_transformers import export_of
from runner.passes.export.into_towers import write_towers
from runner.passes.export.torch_export import (
    FIRST_DYNAMO_OPSET,
    FUSED_OPSET,
    LAST_TRACED_OPSET,
    TORCHSCRIPT_OPSET,
    Export,
    export_graph,
)
from runner.passes.export.with_cache import export_with_cache
from runner.passes.external_data import ExternalDataOptions

if TYPE_CHECKING:
    import onnx

GRAPH = "model.onnx"
_OF_THE_SOURCE = ("load_kwargs", "model_script", "model_loader", "script_dir", "dummy_inputs_func", "io_config", "model_path")


class OnnxConversionOptions(ExternalDataOptions):
    """Options of OnnxConversion."""

    target_opset: int | None = Field(
        None,
        ge=11,
        le=25,
        description=f"ONNX opset; {FUSED_OPSET} by default, whose Attention and Gelu ONNX Runtime runs in one kernel each "
        f"({TORCHSCRIPT_OPSET} with the older exporter, which is the default for DirectML)",
    )
    use_dynamo_exporter: bool | None = Field(
        None,
        description="export with torch.export, or (false) with the older tracing exporter, which knows opsets up to "
        f"{LAST_TRACED_OPSET} and is the default for those that are asked for: OrtTransformersOptimization fuses its attention",
    )
    torch_dtype: str | None = Field(None, description="cast the model before export: float32, float16 or bfloat16")
    device: str | None = Field(None, description="device to export on: cpu (default) or cuda")
    dynamic: bool = Field(True, description="leave batch, sequence and image sizes free; false fixes the example's")
    optimize: bool = Field(True, description="fold constants and drop unused nodes after the export")
    save_metadata_for_token_generation: bool = Field(
        False, description="export a language model with its key-value cache, so that onnxruntime-genai can run it"
    )
    past_key_value_name: str = Field("past_key_values", description="name of the inputs that hold a language model's cache")
    merge_adapter_weights: bool = Field(False, description="merge an adapter into the weights that it lies over")
    split_towers: bool = Field(
        False,
        description="a model that scores pictures against texts becomes three graphs, which run one after the other: "
        "text_encoder.onnx, image_encoder.onnx and similarity.onnx; each encoder also runs alone",
    )
    dynamic_axes: dict[str, dict[int, str]] | None = Field(
        None, description="free axes of a scripted model, over those of its io_config: name to axis to axis name"
    )

    retired: ClassVar[Mapping[str, str]] = {
        "use_device": "device names it",
        "parallel_jobs": "one model is exported at a time",
        "merge_components": "one graph is exported",
        "script_dir": "input_model.model_script says where code is",
        "user_script": "input_model.model_script says where code is",
        "input_names": "input_model.io_config names the inputs",
        "output_names": "input_model.io_config names the outputs",
        "input_shapes": "input_model.io_config gives the shapes",
        "input_types": "input_model.io_config gives the types",
        "input_tensor_func": "input_model.dummy_inputs_func gives the example",
    }

    @model_validator(mode="after")
    def _exporter_knows_opset(self) -> OnnxConversionOptions:
        if self.target_opset is None or self.use_dynamo_exporter is None:
            return self
        if self.use_dynamo_exporter and self.target_opset < FIRST_DYNAMO_OPSET:
            raise ValueError(
                f"torch.export writes opset {FIRST_DYNAMO_OPSET} or later, not {self.target_opset}; raise target_opset, or "
                "leave use_dynamo_exporter out"
            )
        if not self.use_dynamo_exporter and self.target_opset > LAST_TRACED_OPSET:
            raise ValueError(
                f"the tracing exporter writes opset {LAST_TRACED_OPSET} at most, not {self.target_opset}; leave "
                "use_dynamo_exporter out"
            )
        return self


def convert(model: ModelHandle, options: OnnxConversionOptions, context: PassContext) -> ModelHandle:
    """Exports the model to `model.onnx`; configuration, tokenizer and processor files go along. Of a pipeline it
    gets one component at a time; `split_towers` gives one for each tower, beside what compares them.

    A language model is exported with its key-value cache where its task ends in ``-with-past``, where nobody named a task, and
    where `save_metadata_for_token_generation` asks for it.

    Raises:
        InvalidRecipe: the task, or a scripted model's inputs, are not known; or `split_towers` is asked of another model.
        TargetUnavailable: `device` is not on this machine.
        RunFailed: torch cannot export the model, or the recipe's script failed.
    """
    dynamo = _by_dynamo(model, options, context.target.name)
    opset = options.target_opset or (FUSED_OPSET if dynamo else TORCHSCRIPT_OPSET)
    fused = dynamo and opset >= FUSED_OPSET
    context.say(f"exporting at opset {opset} with {'torch.export' if dynamo else 'the tracing exporter'}")
    if model.kind == "diffusers":
        return convert_component(
            model,
            lambda one: _exported(one.placed(options.device, options.torch_dtype), opset, dynamo, options, context),
            options.external_data(),
            context,
            dynamic=options.dynamic,
            fused=fused,
            opset=opset,
        )
    export = _export_of(model, options, fused=fused).placed(options.device, options.torch_dtype)
    export = export if options.dynamic else export.fixed()
    proto = _exported(export, opset, dynamo, options, context)
    attributes = {**model.attributes, **_facts(model), "opset": opset}
    names: tuple[str, ...] = (GRAPH,)
    if options.split_towers:
        names = write_towers(proto, context.output, options.external_data())
        attributes[components.ATTRIBUTE] = list(names)
    else:
        write_graph(proto, context.output / GRAPH, options.external_data())
    if model.kind == "hf":
        carry_companions(model.folder, context.output)
    for key in (*_OF_THE_SOURCE, *(ADAPTER_ATTRIBUTES if options.merge_adapter_weights else ())):
        attributes.pop(key, None)
    return ModelHandle("onnx", context.output, names[0], model.task, attributes)


def _by_dynamo(model: ModelHandle, options: OnnxConversionOptions, target: str) -> bool:
    """Returns which exporter is used.

    The fusions for pipelines that draw know what the older one writes. DirectML has kernels up to opset 21.
    """
    if options.use_dynamo_exporter is not None:
        return options.use_dynamo_exporter
    if options.target_opset is None:
        return model.kind != "diffusers" and target != "directml"
    return options.target_opset > LAST_TRACED_OPSET


def _exported(
    export: Export, opset: int, dynamo: bool, options: OnnxConversionOptions, context: PassContext
) -> onnx.ModelProto:
    """Returns the graph; by torch.export where the tracing exporter fails that nobody asked for."""
    try:
        return export_graph(export, opset, dynamo=dynamo, optimize=options.optimize)
    except RunFailed as error:
        if dynamo or options.use_dynamo_exporter is not None or opset < FIRST_DYNAMO_OPSET:
            raise
        context.say(f"the tracing exporter fails, torch.export is tried: {error.problems[0].cause}")
    return export_graph(export, opset, dynamo=True, optimize=options.optimize)


def _export_of(model: ModelHandle, options: OnnxConversionOptions, *, fused: bool) -> Export:
    if model.kind == "pytorch":
        return with_axes(export_of_script(model), options.dynamic_axes)
    module = load_module(model)
    if options.merge_adapter_weights:
        module = merged(module)
    if _keeps_cache(model, options):
        return export_with_cache(module, options.past_key_value_name, fused=fused)
    return export_of(model, module, io_config(model), dynamic=options.dynamic, fused=fused)


def _keeps_cache(model: ModelHandle, options: OnnxConversionOptions) -> bool:
    task = task_of(model)
    if task.removesuffix(WITH_PAST) != "text-generation":
        return False
    uses_cache = read_facts(model.folder).get("use_cache", True)
    return options.save_metadata_for_token_generation or (task.endswith(WITH_PAST) and uses_cache)


def _facts(model: ModelHandle) -> dict[str, Any]:
    facts = read_facts(model.folder) if model.kind == "hf" else {}
    known = _size(facts, "text_config")
    if all(isinstance(facts.get(tower.config), dict) for tower in towers.TOWERS) and _scores_pictures(model):
        # Sizes of a tower are not the model's: attention that is fused with the other tower's heads computes something else.
        known = {"model_type": facts["model_type"]}
        known[towers.ATTRIBUTE] = {tower.file: _size(facts, tower.config) for tower in towers.TOWERS}
    if facts.get("architectures"):
        known["architecture"] = facts["architectures"][0]
    return known


def _scores_pictures(model: ModelHandle) -> bool:
    outputs = task_named(task_of(model)).outputs
    return all(tower.output in outputs for tower in towers.TOWERS)


def _size(facts: Mapping[str, Any], part: str) -> dict[str, Any]:
    inner = facts.get(part) or facts
    names = ("model_type", "hidden_size", "num_attention_heads", "num_key_value_heads")
    return {name: inner[name] for name in names if inner.get(name) is not None}


PASS = Pass(
    name="OnnxConversion",
    summary="Converts a PyTorch model to ONNX with torch.onnx, batch and sequence sizes left free.",
    options=OnnxConversionOptions,
    apply=convert,
    takes=("hf", "pytorch", "diffusers"),
    gives="onnx",
    packages=("torch", "transformers", "onnx", "onnxscript"),
    version=4,
)
