"""Stands in for the modules of Olive that people's scripts import, so that these run unchanged and without it.

The names are those that published recipes use: the component registry, datasets, handlers, enumerations and results.
Each script gets modules of its own (`stand_ins`), whose registries nobody else sees. A name that is not served raises
`NotServed`, an ImportError that says which; a script that catches ImportError goes on as it would without Olive.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from runner.data import olive_handlers
from runner.data.registry import ComponentRegistry

IGNORE_INDEX = -100


class NotServed(ImportError):
    """A script imports a name of Olive that has no counterpart here."""

    def __init__(self, module: str, name: str | None = None) -> None:
        self.wanted = f"{module}.{name}" if name else module
        super().__init__(f"'{self.wanted}' of Olive has no counterpart here", name=module)


class _TextEnum(StrEnum):
    """Base of enumerations whose members are texts."""


class Framework(_TextEnum):
    """What runs a model."""

    ONNX = "ONNX"
    PYTORCH = "PyTorch"
    TENSORFLOW = "TensorFlow"
    OPENVINO = "OpenVINO"
    QNN = "QNN"


class ModelFileFormat(_TextEnum):
    """How a model's file was saved."""

    ONNX = "ONNX"
    PYTORCH_ENTIRE_MODEL = "PyTorch.EntireModel"
    PYTORCH_STATE_DICT = "PyTorch.StateDict"
    PYTORCH_TORCH_SCRIPT = "PyTorch.TorchScript"


class Precision(_TextEnum):
    """Element types of weights."""

    INT4 = "int4"
    INT8 = "int8"
    INT16 = "int16"
    INT32 = "int32"
    UINT4 = "uint4"
    UINT8 = "uint8"
    UINT16 = "uint16"
    UINT32 = "uint32"
    FP16 = "fp16"
    FP32 = "fp32"
    NF4 = "nf4"
    BF16 = "bf16"


class Device(_TextEnum):
    """Kinds of devices."""

    CPU = "cpu"
    GPU = "gpu"
    NPU = "npu"


class DataComponentType(_TextEnum):
    """Stages of a data configuration."""

    LOAD_DATASET = "load_dataset"
    PRE_PROCESS_DATA = "pre_process_data"
    POST_PROCESS_DATA = "post_process_data"
    DATALOADER = "dataloader"


class DataContainerType(_TextEnum):
    """Kinds of containers."""

    DATA_CONTAINER = "data_container"


class MetricType(_TextEnum):
    """Kinds of metrics."""

    ACCURACY = "accuracy"
    LATENCY = "latency"
    THROUGHPUT = "throughput"
    SIZE_ON_DISK = "size_on_disk"
    CUSTOM = "custom"


class BaseDataset:
    """A sequence of (inputs, label) pairs over rows that map names to values.

    Args:
        data: the rows.
        label_col: name of the label; the label is 1 where it is None, since no one asks for it.
        max_samples: length at most.
    """

    def __init__(self, data: Any, label_col: str | None = None, max_samples: int | None = None, **_: Any) -> None:
        self.data = data
        self.label_col = label_col
        self.effective_len = len(data) if max_samples is None else min(len(data), max_samples)

    def __len__(self) -> int:
        return self.effective_len

    def __getitem__(self, index: int) -> tuple[dict[str, Any], Any]:
        if index >= self.effective_len:
            raise IndexError(index)
        row = dict(self.data[index])
        return row, 1 if self.label_col is None else row.pop(self.label_col)


class DummyDataset:
    """Ones of given shapes, as tensors by name (or in order without names), with the label 0."""

    def __init__(
        self,
        input_shapes: Sequence[Sequence[int]],
        input_names: Sequence[str] | None = None,
        input_types: Sequence[str] | None = None,
        max_samples: int = 32,
        **_: Any,
    ) -> None:
        import torch

        dtypes = [getattr(torch, one) for one in input_types or ["float32"] * len(input_shapes)]
        tensors = [torch.ones(*shape, dtype=dtype) for shape, dtype in zip(input_shapes, dtypes, strict=True)]
        self.example: Any = dict(zip(input_names, tensors, strict=True)) if input_names else tuple(tensors)
        self.max_samples = max_samples

    def __len__(self) -> int:
        return self.max_samples

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if index >= self.max_samples:
            raise IndexError(index)
        return self.example, 0


class OliveModelOutput(NamedTuple):
    """What a custom metric's function is given: what post-processing made, and what the model gave before it."""

    preds: Any
    logits: Any


@dataclass
class SubMetricResult:
    """One figure of a script's metric."""

    value: float
    priority: int = -1
    higher_is_better: bool = True


@dataclass
class MetricResult:
    """Figures by name."""

    root: dict[str, SubMetricResult] = field(default_factory=dict)

    @classmethod
    def model_validate(cls, data: Mapping[str, Any]) -> MetricResult:
        """Returns the figures of a mapping whose values are results or mappings with their keys."""
        return cls({key: SubMetricResult(**one) if isinstance(one, Mapping) else one for key, one in data.items()})

    parse_obj = model_validate

    def items(self) -> Iterator[tuple[str, SubMetricResult]]:
        """Yields names and figures."""
        return iter(self.root.items())


def joint_metric_key(metric_name: str, sub_type_name: str) -> str:
    """Returns the name of a figure: metric and sub-type."""
    return f"{metric_name}-{sub_type_name}"


def flatten_metric_result(results: Mapping[str, MetricResult]) -> MetricResult:
    """Returns the figures of several metrics under their joint names."""
    return MetricResult({joint_metric_key(name, sub): one for name, result in results.items() for sub, one in result.items()})


class OliveEvaluator:
    """Base of evaluators that a script registers; its parameters become attributes."""

    def __init__(self, **kwargs: Any) -> None:
        self.__dict__.update(kwargs)


class EvaluatorRegistry:
    """The evaluators that one script registered, by name in any case."""

    def __init__(self) -> None:
        self._evaluators: dict[str, Callable[..., Any]] = {}

    def register(self, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorates a class, or a function that returns an object, with ``evaluate(model, metrics, device, providers)``."""

        def decorate(evaluator: Callable[..., Any]) -> Callable[..., Any]:
            self._evaluators[name.lower()] = evaluator
            return evaluator

        return decorate

    def get(self, name: str) -> Callable[..., Any] | None:
        """Returns the evaluator of that name, or None."""
        return self._evaluators.get(name.lower())


def format_data(data: Mapping[str, Any], io_config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the inputs that a graph has, as arrays of its types."""
    import numpy as np

    types = dict(zip(io_config["input_names"], io_config["input_types"], strict=True))
    return {
        name: np.ascontiguousarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value, dtype=types[name])
        for name, value in data.items()
        if name in types
    }


def tensor_data_to_device(data: Any, device: Any) -> Any:
    """Returns the same structure of mappings, lists and tuples with its tensors on a device."""
    if hasattr(data, "to"):
        return data.to(device)
    if isinstance(data, Mapping):
        return {key: tensor_data_to_device(value, device) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return type(data)(tensor_data_to_device(value, device) for value in data)
    return data


def default_dataloader(dataset: Any, batch_size: int = 1, **kwargs: Any) -> Any:
    """Returns a torch DataLoader over (inputs, label) pairs."""
    from torch.utils.data import DataLoader

    return DataLoader(dataset, batch_size=batch_size, **kwargs)


def no_auto_batch_dataloader(dataset: Any, **kwargs: Any) -> Any:
    """Returns a torch DataLoader that gives examples as they are, without a batch axis."""
    from torch.utils.data import DataLoader

    return DataLoader(dataset, **{**kwargs, "batch_size": None})


def huggingface_dataset(data_name: str, **load: Any) -> Any:
    """Returns a split of a hub data set, or of local files where `data_name` names their format."""
    from runner.data.hub import hub_dataset

    return hub_dataset(data_name, **load)


def get_tokenizer(model_name_or_path: str, **kwargs: Any) -> Any:
    """Returns the tokenizer of a folder or hub id."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_name_or_path, **kwargs)


def get_model_config(model_name_or_path: str, **kwargs: Any) -> Any:
    """Returns the transformers configuration of a folder or hub id."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(model_name_or_path, **kwargs)


def get_attr(module: Any, attribute: str, fail_on_not_found: bool = False) -> Any:
    """Returns the attribute at a dotted path, or None where there is none.

    Raises:
        AttributeError: it does not exist, and must.
    """
    for name in filter(None, attribute.split(".")):
        if not hasattr(module, name):
            if fail_on_not_found:
                raise AttributeError(f"there is no attribute {attribute}")
            return None
        module = getattr(module, name)
    return module


@dataclass(frozen=True)
class AcceleratorSpec:
    """A device with an execution provider."""

    accelerator_type: str
    execution_provider: str | None = None
    memory: int | None = None


_HANDLERS = {
    name: getattr(olive_handlers, name)
    for name in ("OliveModelHandler", "ONNXModelHandler", "PyTorchModelHandler", "HfModelHandler")
}
_RESULTS = {
    "MetricResult": MetricResult,
    "SubMetricResult": SubMetricResult,
    "flatten_metric_result": flatten_metric_result,
    "joint_metric_key": joint_metric_key,
}
_DATASETS = {"BaseDataset": BaseDataset, "ClassificationDataset": BaseDataset, "DummyDataset": DummyDataset}
_DATALOADERS = {
    "default_dataloader": default_dataloader,
    "no_auto_batch_dataloader": no_auto_batch_dataloader,
    "skip_dataloader": lambda dataset, **_: dataset,
}
# Metric and SubMetric only stand in annotations.
_MODULES: Mapping[str, Mapping[str, Any]] = {
    "olive": {},
    "olive.common": {},
    "olive.common.hf": {},
    "olive.common.hf.utils": {"get_tokenizer": get_tokenizer, "get_model_config": get_model_config},
    "olive.common.utils": {
        "format_data": format_data,
        "get_attr": get_attr,
        "tensor_data_to_device": tensor_data_to_device,
        "StrEnumBase": _TextEnum,
    },
    "olive.constants": {"Framework": Framework, "ModelFileFormat": ModelFileFormat, "Precision": Precision},
    "olive.data": {},
    "olive.data.component": {},
    "olive.data.component.dataloader": _DATALOADERS,
    "olive.data.component.dataset": _DATASETS,
    "olive.data.component.load_dataset": {
        "huggingface_dataset": huggingface_dataset,
        "dummy_dataset": DummyDataset,
        "local_dataset": lambda **_: None,
    },
    "olive.data.constants": {
        "IGNORE_INDEX": IGNORE_INDEX,
        "DataComponentType": DataComponentType,
        "DataContainerType": DataContainerType,
    },
    "olive.data.registry": {},
    "olive.evaluator": {**_RESULTS, "OliveEvaluator": OliveEvaluator, "Metric": object, "SubMetric": object},
    "olive.evaluator.metric": {**_RESULTS, "MetricType": MetricType, "Metric": object, "SubMetric": object},
    "olive.evaluator.metric_result": _RESULTS,
    "olive.evaluator.olive_evaluator": {"OliveEvaluator": OliveEvaluator, "OliveModelOutput": OliveModelOutput},
    "olive.evaluator.registry": {},
    "olive.hardware": {"Device": Device, "AcceleratorSpec": AcceleratorSpec},
    "olive.hardware.accelerator": {"Device": Device, "AcceleratorSpec": AcceleratorSpec},
    "olive.model": _HANDLERS,
    "olive.model.handler": _HANDLERS,
    "olive.model.handler.base": {"OliveModelHandler": olive_handlers.OliveModelHandler},
    "olive.model.handler.hf": {"HfModelHandler": olive_handlers.HfModelHandler},
    "olive.model.handler.onnx": {"ONNXModelHandler": olive_handlers.ONNXModelHandler},
    "olive.model.handler.pytorch": {"PyTorchModelHandler": olive_handlers.PyTorchModelHandler},
}


def is_olives(module: str) -> bool:
    """Says whether a module's name belongs to Olive."""
    return module == "olive" or module.startswith("olive.")


def served() -> tuple[str, ...]:
    """Returns the modules that are stood in for."""
    return tuple(_MODULES)


def stand_ins(components: ComponentRegistry, evaluators: EvaluatorRegistry) -> dict[str, types.ModuleType]:
    """Returns modules by name whose registries are these."""
    own: dict[str, dict[str, Any]] = {
        "olive.data.registry": {"Registry": components},
        "olive.evaluator.registry": {"Registry": evaluators},
    }
    made: dict[str, types.ModuleType] = {}
    for name, members in _MODULES.items():
        module = types.ModuleType(name)
        module.__path__ = []
        module.__dict__.update(members, **own.get(name, {}))
        module.__dict__["__getattr__"] = _refuse(name)
        made[name] = module
        above, _, last = name.rpartition(".")
        if above:
            made[above].__dict__[last] = module
    return made


def _refuse(module: str) -> Callable[[str], Any]:
    def refuse(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotServed(module, name)

    return refuse
