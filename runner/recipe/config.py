"""What `olive_config.json` says, as frozen typed models: Olive's current form, into which older forms are migrated.

Pass options are not typed here: every pass declares its own (see `runner.passes.declaration`), and `runner.recipe.load`
lays them over the raw mapping.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Model(BaseModel):
    """Base of everything read from a file: frozen, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), defer_build=True)


class InputModel(Model):
    """The model that the run starts from."""

    type: Literal["HfModel", "PyTorchModel", "ONNXModel", "DiffusersModel"] = Field(description="where the model comes from")
    model_path: str | None = Field(None, description="Hugging Face id, folder or file")
    task: str | None = Field(None, description="Hugging Face task, such as text-generation")
    load_kwargs: dict[str, Any] = Field({}, description="passed to from_pretrained of transformers or diffusers")
    model_variant: Literal["auto", "sd", "sdxl"] | None = Field(None, description="kind of a DiffusersModel's pipeline")
    io_config: dict[str, Any] | str | None = Field(None, description="input and output names, shapes, dynamic axes")
    model_attributes: dict[str, Any] = Field({}, description="extra facts that passes may read")
    model_script: str | None = Field(None, description="Python file that holds the functions named here")
    script_dir: str | None = Field(None, description="folder of further modules that model_script imports")
    model_loader: str | None = Field(None, description="function in model_script that returns the torch module")
    dummy_inputs_func: str | None = Field(None, description="function in model_script that returns example inputs")
    model_file_format: str | None = Field(None, description="how a PyTorch file was saved")
    onnx_file_name: str | None = Field(None, description="the ONNX file inside the folder model_path")
    adapter_path: str | None = Field(None, description="LoRA adapter laid over the model")
    generative: bool | None = Field(None, description="whether an ONNX model generates text")


class Accelerator(Model):
    """A device and the execution providers to use on it, best first."""

    device: Literal["cpu", "gpu", "npu"] = "cpu"
    execution_providers: list[str] = Field(default_factory=list)
    memory: int | str | None = None


class System(Model):
    """A machine that runs passes or the optimised model."""

    type: Literal["LocalSystem", "PythonEnvironment", "Docker", "AzureML", "IsolatedORT"] = "LocalSystem"
    accelerators: list[Accelerator] = Field(default_factory=list)
    python_environment_path: str | None = None
    environment_variables: dict[str, str] = Field(default_factory=dict)
    prepend_to_path: list[str] = Field(default_factory=list)
    hf_token: bool | None = None


class DataComponent(Model):
    """One stage of a data configuration: the registered component's name and its parameters."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    type: str | None = None
    params: dict[str, Any] = Field(default_factory=dict)

    def parameters(self) -> dict[str, Any]:
        """Returns the parameters, whether they stand flat beside `type` or under `params`."""
        return {**self.params, **(self.model_extra or {})}


class DataConfig(Model):
    """Where inputs (and labels) come from."""

    name: str
    type: str = Field("DataContainer", description="DataContainer, HuggingfaceContainer, DummyDataContainer …")
    user_script: str | None = None
    script_dir: str | None = None
    load_dataset_config: DataComponent | None = None
    pre_process_data_config: DataComponent | None = None
    post_process_data_config: DataComponent | None = None
    dataloader_config: DataComponent | None = None


class Goal(Model):
    """What a metric must reach, absolutely or against the input model."""

    type: Literal[
        "threshold",
        "min-improvement",
        "percent-min-improvement",
        "max-degradation",
        "percent-max-degradation",
    ]
    value: float


class SubMetric(Model):
    """One figure of a metric."""

    name: str
    priority: int = -1
    higher_is_better: bool | None = None
    goal: Goal | None = None
    metric_config: dict[str, Any] | None = None


class MetricConfig(Model):
    """A metric to measure on the model, in Olive's words."""

    name: str
    type: Literal["accuracy", "latency", "throughput", "size_on_disk", "custom"]
    backend: str | None = None
    sub_types: list[SubMetric] = Field(default_factory=list)
    user_config: dict[str, Any] | None = None
    data_config: str | DataConfig | None = None


class Evaluator(Model):
    """The metrics measured on the output model (and on the input model when asked)."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    type: str | None = Field(None, description="None for the metric list below; LMEvaluator and others have their own keys")
    name: str | None = None
    metrics: list[MetricConfig] = Field(default_factory=list)


class SearchStrategy(Model):
    """How what has several values is searched."""

    execution_order: Literal["joint", "pass-by-pass"] = Field(
        "joint", description="vary everything at once, or one pass after the other, each on the best of those before"
    )
    sampler: Literal["random", "sequential", "tpe"] = Field("tpe", description="how the next point is chosen")
    seed: int = Field(0, ge=0, description="the same seed tries the same points")
    max_samples: int | None = Field(None, ge=1, description="points to try; 16, or all of a smaller space, by default")
    max_iter: int | None = Field(None, ge=1, description="points to try; the smaller of this and max_samples counts")
    max_time: float | None = Field(None, gt=0, description="seconds after which no further point is begun")
    include_pass_params: bool = Field(True, description="vary options, too; else only which pass a step takes")
    output_model_num: int = Field(1, ge=1, description="models to keep, the best first")
    stop_when_goals_met: bool = Field(False, description="stop at the first point that meets all goals")
    group: bool = Field(True, description="tpe: options that are only there with one pass are a space of their own")
    multivariate: bool = Field(True, description="tpe: look at options together, not one by one")


def _only_these(given: Any) -> Any:
    """Returns a list of components as a mapping: all others are left as they are."""
    if isinstance(given, dict):
        for name, own in given.items():
            if own is not False and not isinstance(own, dict):
                raise ValueError(f"'{name}' needs the options that differ for it, or false, which leaves it as it is")
        return given
    if not isinstance(given, list):
        raise ValueError("give a list of names, or a mapping from names to options")
    if unnamed := [one for one in given if not isinstance(one, str)]:
        raise ValueError(f"a list holds names of components, and {unnamed[0]!r} is none; options stand in a mapping")
    return {"*": False, **{name: {} for name in given}}


class PassConfig(Model):
    """One step: the pass and its options.

    `options` holds a raw mapping while the file is read, and the pass's own frozen option model once
    `runner.recipe.load` has checked it. So does each of `components`: options that differ for a component of a pipeline, by its
    name or a pattern of names, as plain data with only those that were named; False leaves the component as it is.
    """

    type: str
    options: Any = None
    components: Annotated[dict[str, dict[str, Any] | Literal[False]], BeforeValidator(_only_these)] = Field(
        default_factory=dict,
        description="components of a pipeline: names of those that the step works on, or a mapping from a name (or a pattern "
        "such as vae_*) to the options that differ for it; false leaves it as it is",
    )
    host: str | None = None
    evaluator: str | None = None


class RunConfig(Model):
    """A whole run: one model, a chain of passes, what to measure, where to write."""

    input_model: InputModel
    systems: dict[str, System] = Field(default_factory=dict)
    data_configs: list[DataConfig] = Field(default_factory=list)
    evaluators: dict[str, Evaluator] = Field(default_factory=dict)
    passes: dict[str, PassConfig] = Field(default_factory=dict)
    evaluator: str | None = Field(None, description="name of the evaluator of the run")
    host: str | System | None = Field(None, description="system that runs the passes")
    target: str | System | None = Field(None, description="system that the model is made for")
    evaluate_input_model: bool = Field(True, description="measure the input model with the same evaluator")
    search_strategy: SearchStrategy | bool | None = None
    output_dir: str | None = Field(None, description="where the model goes; models/NAME-VARIANT by default")
    output_name: str | None = None
    cache_dir: str | None = Field(None, description="the store of finished steps; one per user by default")
    no_artifacts: bool = Field(False, description="keep only the final model")
    log_severity_level: int = Field(3, ge=0, le=4, description="0 verbose, 1 info, 2 warning, 3 error, 4 fatal")
    ort_log_severity_level: int = Field(3, ge=0, le=4)

    def system(self, asked: str | System | None) -> System | None:
        """Returns the system that `asked` names or is; the only system of the file when none is asked for."""
        if isinstance(asked, System):
            return asked
        if asked is not None:
            return self.systems[asked]
        return next(iter(self.systems.values())) if len(self.systems) == 1 else None

    def data_config(self, name: str) -> DataConfig | None:
        """Returns the data configuration of that name, or None."""
        return next((data for data in self.data_configs if data.name == name), None)
