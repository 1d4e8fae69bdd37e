"""From a data configuration to batches of (inputs, labels).

A configuration goes through Olive's stages: `load_dataset_config` gives a data set, `pre_process_data_config` makes model
inputs of it, `dataloader_config` makes batches. A stage's `type` names a component that the configuration's `user_script`
registers, or one of ours:

    stage        ours
    load         ``sentences`` (path, labels), ``images`` (path, labels), ``huggingface_dataset`` (data_name, subset, split),
                 ``local_dataset`` (data_dir, handed on as it is), ``dummy_dataset`` (input_shapes, input_names, input_types)
    pre-process  ``tokenize`` (max_length, padding, truncation), ``process_images``, ``huggingface_pre_process`` (input_cols,
                 label_col, max_samples, and those of ``tokenize``), ``skip_pre_process``
    dataloader   ``default_dataloader`` (batch_size)

A recipe that calibrates on its own sentences, with no network:

    {"name": "calibration", "type": "HuggingfaceContainer", "user_script": "user_script.py",
     "load_dataset_config": {"type": "sentences", "path": "sample_data/sentences.txt"},
     "pre_process_data_config": {"type": "tokenize", "max_length": 128},
     "dataloader_config": {"batch_size": 8}}

The same configuration runs in Olive, where the user script brings the two components. Olive passes `model_name` to the
pre-process component of a HuggingfaceContainer, and so does this runner: it is the folder with the model's tokenizer.

    from olive.data.registry import Registry

    @Registry.register_dataset()
    def sentences(path, **_):
        return Path(path).read_text(encoding="utf-8").splitlines()

    @Registry.register_pre_process()
    def tokenize(dataset, model_name, max_length, **_):
        tokenizer = AutoTokenizer.from_pretrained(model_name)
        encoded = [tokenizer(text, padding="max_length", truncation=True, max_length=max_length) for text in dataset]
        return [({name: torch.tensor(ids) for name, ids in one.items()}, 0) for one in encoded]

Without `user_script` our own components of these names do the same. Parameters that name a file or folder beside the
configuration reach a script's component as absolute paths.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from runner.data.hub import hub_dataset, text_columns
from runner.data.local import Examples, Raw, images, process_images, sentences, tokenize
from runner.data.registry import Component, ComponentRegistry, Stage, unknown_component
from runner.data.user_script import load_components
from runner.errors import DataUnavailable, InvalidRecipe, Problem, RecipeError, RunFailed, did_you_mean
from runner.models.digest import files_below, sha256_of_file
from runner.models.handle import ModelHandle
from runner.models.inputs import IMAGE_TASKS, GraphInput, graph_inputs, made_up, source_inputs
from runner.recipe.config import DataComponent, DataConfig

Inputs = dict[str, Any]
Pair = tuple[Inputs, Any]

HUB = "huggingface_dataset"
_DUMMY = "dummy_dataset"
# Olive's containers: what each stage is when the configuration does not say.
_CONTAINERS: Mapping[str, Mapping[Stage, str]] = {
    "DataContainer": {"dataset": "local_dataset", "pre_process": "pre_process"},
    "HuggingfaceContainer": {"dataset": HUB, "pre_process": "huggingface_pre_process"},
    "DummyDataContainer": {"dataset": _DUMMY, "pre_process": "skip_pre_process"},
}
_SECTIONS: Mapping[Stage, str] = {
    "dataset": "load_dataset_config",
    "pre_process": "pre_process_data_config",
    "post_process": "post_process_data_config",
    "dataloader": "dataloader_config",
}
_SYNTHETIC_BATCHES = 4


@dataclass(frozen=True)
class Batches:
    """Model inputs in batches; can be gone through any number of times.

    Attributes:
        pairs: starts a pass over (inputs, labels). Inputs map a name to a numpy array with the batch as leading axis; labels
            are an array with the same leading axis, or None where there are none.
        post_process: the recipe's own function from a model's output to predictions; None where it has none.
        synthetic: made-up values: good for shapes and time, not for accuracy.
    """

    pairs: Callable[[], Iterator[Pair]]
    post_process: Callable[[Any], Any] | None = None
    synthetic: bool = False

    def __iter__(self) -> Iterator[Inputs]:
        """Yields the inputs alone."""
        return (inputs for inputs, _ in self.pairs())

    def labelled(self) -> Iterator[Pair]:
        """Yields (inputs, labels)."""
        return self.pairs()


def open_data(config: DataConfig, *, folder: Path, model: ModelHandle, smoke: bool, script_allowed: bool) -> Batches:
    """Returns the batches of a data configuration, fitted to the model.

    For an `onnx` model, inputs that its graph does not have are left out and types are made its own.

    Args:
        config: the data configuration.
        folder: the folder of the run configuration, which paths are relative to.
        model: its folder holds the tokenizer or image processor, and its graph says which inputs exist.
        smoke: put made-up data of the model's shapes in place of what would come from the hub.
        script_allowed: whether a user_script may run.

    Raises:
        DataUnavailable: data is missing or does not fit the model.
        InvalidRecipe: a container or component is not known.
        NotTrusted: a script would run that may not.
        RunFailed: a script raised.
    """
    container = _container(config.type)
    load = config.load_dataset_config or DataComponent()
    load_type = load.type or container["dataset"]
    if (smoke and is_hub(config)) or load_type.lower() == _DUMMY:
        return _made_up(load.parameters(), _batch_size(config), model)
    scripts = ComponentRegistry()
    if config.user_script:
        script_dir = folder / config.script_dir if config.script_dir else None
        scripts = load_components(folder / config.user_script, script_dir, allowed=script_allowed)
    return _Opener(config, container, folder, model, scripts).open()


def is_hub(config: DataConfig) -> bool:
    """Says whether the data comes from the Hugging Face hub."""
    load = config.load_dataset_config or DataComponent()
    return (load.type or _container(config.type)["dataset"]).lower() == HUB


def data_digest(config: DataConfig, folder: Path) -> str:
    """Returns the sha256 over everything that decides what the data is and that lies on this machine.

    That is the configuration, the user script (all Python files of `script_dir` as well), and every local file or folder
    that a parameter names. Imports no ML library.

    Raises:
        DataUnavailable: the user script does not exist, or a path leads out of the folder.
    """
    whole = hashlib.sha256(config.model_dump_json().encode())
    named: list[Path] = []
    if config.user_script:
        script = folder / config.user_script
        if not script.is_file():
            raise DataUnavailable(f"there is no user script '{config.user_script}'", "paths are relative to the configuration")
        named.append(script)
    if config.script_dir:
        named += sorted((folder / config.script_dir).rglob("*.py"))
    for section in _SECTIONS.values():
        component: DataComponent | None = getattr(config, section)
        if component is not None:
            named += [path for text in _texts(component.parameters()) if (path := _local(text, folder)) is not None]
    for path in named:
        for name, file in files_below(path) if path.is_dir() else [(path.name, path)]:
            whole.update(f"{name}\0{sha256_of_file(file)}\n".encode())
    return whole.hexdigest()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for child in value.values():
            yield from _texts(child)
    elif isinstance(value, (list, tuple)):
        for child in value:
            yield from _texts(child)


def _local(text: str, folder: Path) -> Path | None:
    """Returns the file or folder beside the configuration that a parameter names, or None where it names something else."""
    if not text or len(text) > 500 or "\n" in text or "\0" in text:
        return None
    asked = Path(text.replace("\\", "/"))
    path = folder / asked
    if not path.exists():
        return None
    if not asked.is_absolute() and not path.resolve().is_relative_to(folder.resolve()):
        raise DataUnavailable(f"'{text}' leads out of the folder of its configuration", "keep data inside the folder")
    return path


def _container(name: str) -> Mapping[Stage, str]:
    found = next((stages for known, stages in _CONTAINERS.items() if known.lower() == name.lower()), None)
    if found is None:
        raise InvalidRecipe(
            Problem("unknown-container", f"there is no data container '{name}'", remedy=did_you_mean(name, _CONTAINERS))
        )
    return found


def _batch_size(config: DataConfig) -> int:
    parameters = config.dataloader_config.parameters() if config.dataloader_config else {}
    return int(parameters.get("batch_size") or 1)


def _made_up(parameters: Mapping[str, Any], batch_size: int, model: ModelHandle) -> Batches:
    """Made-up batches: of the shapes in the configuration where it gives them, of the model's own otherwise."""
    shapes = parameters.get("input_shapes")
    inputs = _model_inputs(model)
    if shapes:
        names = parameters.get("input_names") or [one.name for one in inputs]
        types = parameters.get("input_types") or ["float32"] * len(shapes)
        if not len(shapes) == len(names) == len(types):
            raise DataUnavailable("input_names, input_shapes and input_types of the dummy data differ in length")
        inputs = tuple(GraphInput(*one) for one in zip(names, types, map(tuple, shapes), strict=True))
    count = int(parameters.get("max_samples") or _SYNTHETIC_BATCHES)
    sizes = {str(one.shape[0]): batch_size for one in inputs if one.shape and isinstance(one.shape[0], str)}

    def pairs() -> Iterator[Pair]:
        for seed in range(count):
            yield made_up(inputs, model.folder, sizes, seed), None

    return Batches(pairs, synthetic=True)


def _model_inputs(model: ModelHandle) -> tuple[GraphInput, ...]:
    return graph_inputs(model.path) if model.kind == "onnx" else source_inputs(model)


@dataclass(frozen=True)
class _Opener:
    """Walks one configuration through its stages."""

    config: DataConfig
    container: Mapping[Stage, str]
    folder: Path
    model: ModelHandle
    scripts: ComponentRegistry

    def open(self) -> Batches:
        dataset = self._stage("dataset")
        prepared = self._pre_process(dataset)
        fit = partial(_fit, expected=graph_inputs(self.model.path) if self.model.kind == "onnx" else None)

        def pairs() -> Iterator[Pair]:
            for inputs, labels in self._batches(prepared):
                yield fit(inputs), labels

        return Batches(pairs, self._post_process())

    def _name(self, stage: Stage, default: str) -> str:
        section: DataComponent | None = getattr(self.config, _SECTIONS[stage])
        return (section.type if section else None) or default

    def _parameters(self, stage: Stage) -> dict[str, Any]:
        section: DataComponent | None = getattr(self.config, _SECTIONS[stage])
        return section.parameters() if section else {}

    def _stage(self, stage: Stage, *inputs: Any) -> Any:
        """Runs a script's component, or ours."""
        name = self._name(stage, self.container[stage])
        ours = self._ours(stage)
        scripted = self.scripts.find(stage, name)
        if scripted is not None:
            return self._call_script(name, scripted, stage, *inputs)
        if name.lower() not in ours:
            raise unknown_component(stage, name, [*ours, *self.scripts.names(stage)])
        return _call(ours[name.lower()], name, inputs, self._parameters(stage))

    def _ours(self, stage: Stage) -> dict[str, Component]:
        if stage == "dataset":
            local = lambda data_dir=None, **_: data_dir  # noqa: E731
            return {
                "sentences": partial(sentences, self.folder),
                "images": partial(images, self.folder),
                HUB: hub_dataset,
                "local_dataset": local,
                "simple_dataset": local,
            }
        return {
            "tokenize": partial(tokenize, model=self.model),
            "process_images": partial(process_images, model=self.model),
            "huggingface_pre_process": self._text_columns,
            "text_classification_pre_process": self._text_columns,
            "pre_process": lambda dataset, **_: dataset,
            "skip_pre_process": lambda dataset, **_: dataset,
        }

    def _pre_process(self, dataset: Any) -> Any:
        section = self.config.pre_process_data_config
        if isinstance(dataset, Raw) and (section is None or section.type is None):
            processor = process_images if self.model.task in IMAGE_TASKS else tokenize
            return _call(partial(processor, model=self.model), processor.__name__, (dataset,), self._parameters("pre_process"))
        return self._stage("pre_process", dataset)

    def _text_columns(self, dataset: Any, **parameters: Any) -> Examples:
        columns = {key: parameters.pop(key) for key in ("input_cols", "label_col", "max_samples") if key in parameters}
        for key in ("model_name", "trust_remote_code", "align_labels", "task"):
            parameters.pop(key, None)
        return tokenize(text_columns(dataset, **columns), self.model, **parameters)

    def _call_script(self, name: str, component: Component, stage: Stage, *inputs: Any) -> Any:
        parameters = {key: self._absolute(value) for key, value in self._parameters(stage).items()}
        known = inspect.signature(component).parameters
        for key, value in (("model_name", str(self.model.folder)), ("task", self.model.task)):
            if key in known or (stage == "pre_process" and _takes_any(component)):
                parameters.setdefault(key, value)
        try:
            return component(*inputs, **parameters)
        except RecipeError:
            raise
        except Exception as error:
            raise RunFailed(
                "script-failed", f"{self.config.user_script}: {name}() raised {type(error).__name__}: {error}"
            ) from error

    def _absolute(self, value: Any) -> Any:
        path = _local(value, self.folder) if isinstance(value, str) else None
        return str(path.resolve()) if path else value

    def _batches(self, prepared: Any) -> Iterator[Pair]:
        name = self._name("dataloader", "default_dataloader")
        scripted = self.scripts.find("dataloader", name)
        if scripted is None and name.lower() not in ("default_dataloader", "skip_dataloader"):
            raise unknown_component("dataloader", name, ["default_dataloader", *self.scripts.names("dataloader")])
        if scripted is not None:
            for item in _items(self._call_script(name, scripted, "dataloader", prepared)):
                inputs, labels = _pair(item)
                yield {key: _array(value) for key, value in inputs.items()}, None if labels is None else _array(labels)
            return
        examples = prepared if isinstance(prepared, Examples) else Examples([_pair(item) for item in _items(prepared)])
        limit = self._parameters("dataloader").get("max_samples")
        yield from _collated(examples, _batch_size(self.config), limit)

    def _post_process(self) -> Callable[[Any], Any] | None:
        name = self._name("post_process", "")
        component = self.scripts.find("post_process", name) if name else None
        return partial(component, **self._parameters("post_process")) if component else None


def _takes_any(component: Component) -> bool:
    return any(one.kind is inspect.Parameter.VAR_KEYWORD for one in inspect.signature(component).parameters.values())


def _call(component: Component, name: str, inputs: Sequence[Any], parameters: Mapping[str, Any]) -> Any:
    """Calls one of our components; a parameter that it does not have is the configuration's mistake."""
    known = inspect.signature(component).parameters
    unknown = [key for key in parameters if key not in known]
    if unknown and not _takes_any(component):
        raise InvalidRecipe(
            Problem("unknown-parameter", f"'{name}' has no parameter '{unknown[0]}'", remedy=did_you_mean(unknown[0], known))
        )
    missing = [
        key
        for key, one in list(known.items())[len(inputs) :]
        if one.default is one.empty and one.kind is not one.VAR_KEYWORD and key not in parameters
    ]
    if missing:
        raise InvalidRecipe(Problem("missing-parameter", f"'{name}' needs the parameter '{missing[0]}'"))
    return component(*inputs, **parameters)


def _items(dataset: Any) -> Iterable[Any]:
    """Goes through a data set that may offer only a length and an index, which never raises IndexError."""
    if isinstance(dataset, Raw):
        raise InvalidRecipe(
            Problem("no-pre-process", "the data are raw texts or images", remedy="name a pre-process component")
        )
    if hasattr(dataset, "__iter__"):
        return dataset  # type: ignore[no-any-return]
    if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        return (dataset[at] for at in range(len(dataset)))
    raise DataUnavailable(f"a {type(dataset).__name__} is no data set: it cannot be iterated over")


def _pair(item: Any) -> Pair:
    if isinstance(item, (tuple, list)) and len(item) == 2:
        inputs, label = item
    else:
        inputs, label = item, None
    if not isinstance(inputs, Mapping):
        raise DataUnavailable(
            f"an example's inputs are a {type(inputs).__name__}; a mapping from input name to array was expected"
        )
    return dict(inputs), label


def _array(value: Any) -> Any:
    import numpy as np

    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)


def _collated(examples: Examples, batch_size: int, limit: int | None) -> Iterator[Pair]:
    import numpy as np

    items = examples.items[:limit]
    for start in range(0, len(items), batch_size):
        chunk = items[start : start + batch_size]
        names = chunk[0][0]
        inputs = {name: _stack([_array(one[name]) for one, _ in chunk], examples.padding.get(name, 0)) for name in names}
        labels = [label for _, label in chunk]
        yield inputs, None if any(label is None for label in labels) else np.stack([_array(label) for label in labels])


def _stack(arrays: Sequence[Any], fill: int) -> Any:
    """Stacks arrays; vectors that differ in length are filled up at their ends."""
    import numpy as np

    longest = max(array.shape[0] if array.ndim else 0 for array in arrays)
    if arrays[0].ndim == 1:
        arrays = [np.pad(array, (0, longest - array.shape[0]), constant_values=fill) for array in arrays]
    return np.stack(arrays)


def _fit(inputs: Inputs, expected: Sequence[GraphInput] | None) -> Inputs:
    """Returns the inputs that the graph has, in its types.

    Raises:
        DataUnavailable: an input of the graph is not among the data.
    """
    if expected is None:
        return inputs
    missing = [one.name for one in expected if one.name not in inputs]
    if missing:
        raise DataUnavailable(
            f"the model's input '{missing[0]}' is not among the data, which has {', '.join(inputs)}",
            "name the inputs as the model does, in the data's pre-processing",
        )
    return {one.name: inputs[one.name].astype(one.dtype, copy=False) for one in expected}
