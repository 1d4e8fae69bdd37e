"""From a data configuration to batches of (inputs, labels).

A configuration goes through Olive's stages: `load_dataset_config` gives a data set, `pre_process_data_config` makes model
inputs of it, `dataloader_config` makes batches, and `post_process_data_config` makes predictions of a model's output. A
stage's `type` names a component that the configuration's `user_script` registers, or one of ours:

    stage         ours
    load          ``sentences`` (path, labels), ``images`` (path, labels), ``huggingface_dataset`` (data_name, subset, split,
                  data_files, data_dir, col_filters, train_test_split), ``local_dataset`` and ``simple_dataset`` (data_dir,
                  handed on as it is), ``raw_dataset``, ``dummy_dataset`` (input_shapes, input_names, input_types),
                  ``transformers_dummy_dataset`` and its prompt and token forms (seq_len, past_seq_len)
    pre-process   ``tokenize`` (max_length, padding, truncation), ``process_images``, ``huggingface_pre_process`` and
                  ``tokenizer_pre_process`` (input_cols, label_col, max_samples, and those of ``tokenize``),
                  ``ner_huggingface_preprocess``, ``text_generation_huggingface_pre_process``, ``skip_pre_process``
    dataloader    ``default_dataloader`` (batch_size, shuffle, drop_last), ``no_auto_batch_dataloader`` and
                  ``skip_dataloader`` (examples are batches already), ``dataloader_with_ignored_batch_fields``
    post-process  ``text_classification_post_process``, ``ner_post_process``, ``text_generation_post_process``,
                  ``skip_post_process``

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

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from runner.data import made_up, post_process
from runner.data.collate import Inputs, Pair, array_of, collated, items_of, pair_of
from runner.data.containers import HUB, TEXT_GENERATION, component_of, stage_parameters
from runner.data.hub import FILE_FORMATS, hub_dataset, text_columns
from runner.data.local import Examples, Raw, images, process_images, sentences, tokenize
from runner.data.local_files import local_path
from runner.data.model_feed import Feed
from runner.data.raw import raw_dataset
from runner.data.registry import Component, Stage, unknown_component
from runner.data.text_generation import text_generation, text_generation_options
from runner.data.token_labels import label_tokens
from runner.data.user_script import UserScript, load_components, script_failure
from runner.errors import DataUnavailable, InvalidRecipe, Problem, did_you_mean
from runner.models.handle import ModelHandle
from runner.models.inputs import IMAGE_TASKS, TEXT_TASKS, read_facts, sequence_length
from runner.recipe.config import DataConfig

_DUMMY = (
    "dummy_dataset",
    "transformers_dummy_dataset",
    "transformers_prompt_dummy_dataset",
    "transformers_token_dummy_dataset",
)
_PROMPTS: Mapping[str, Mapping[str, int]] = {
    "transformers_dummy_dataset": {"seq_len": 128, "past_seq_len": 128},
    "transformers_prompt_dummy_dataset": {"seq_len": 8, "past_seq_len": 0},
    "transformers_token_dummy_dataset": {"seq_len": 1, "past_seq_len": 8},
}
_AS_THEY_ARE = ("no_auto_batch_dataloader", "skip_dataloader")
_BATCHING = ("default_dataloader", "dataloader_with_ignored_batch_fields", *_AS_THEY_ARE)
_LOADER_OPTIONS = frozenset({"num_workers", "pin_memory", "persistent_workers", "prefetch_factor", "collate_fn"})  # of torch's
_SMOKE_SAMPLES = 8
_SMOKE_TOKENS = 256
_SMOKE_LABELS = 2


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

    For an `onnx` model, inputs that its graph does not have are left out, empty caches and positions that it does have are
    added, and types are made its own.

    Args:
        config: the data configuration.
        folder: the folder of the run configuration, which paths are relative to.
        model: its folder holds the tokenizer or image processor, and its graph says which inputs exist.
        smoke: put made-up data in place of what would come from the hub: rows of text that go through the same
            pre-processing where that is ours, inputs of the model's shapes otherwise.
        script_allowed: whether a user_script may run.

    Raises:
        DataUnavailable: data is missing or does not fit the model.
        InvalidRecipe: a container or component is not known.
        NotTrusted: a script would run that may not.
        RunFailed: a script raised.
    """
    load_type = component_of(config, "dataset", model.task).lower()
    if load_type in _DUMMY and not config.user_script:
        return _dummy(config, load_type, model)
    stands_in = smoke and is_hub(config, folder)
    if stands_in and not _rows_do(config, model):
        return _dummy(config, "dummy_dataset", model)
    script = None
    if config.user_script:
        script_dir = folder / config.script_dir if config.script_dir else None
        script = load_components(folder / config.user_script, script_dir, allowed=script_allowed)
    return _Opener(config, folder, model, script, stands_in).open()


def is_hub(config: DataConfig, folder: Path) -> bool:
    """Says whether the data comes from the Hugging Face hub, rather than from files that lie in `folder`."""
    if component_of(config, "dataset").lower() != HUB:
        return False
    name = str(stage_parameters(config, "dataset").get("data_name") or "")
    return name.lower() not in FILE_FORMATS and not (name and (folder / name).is_dir())


def _rows_do(config: DataConfig, model: ModelHandle) -> bool:
    """Says whether rows of text can stand in for a hub data set: they go through pre-processing of ours and a tokenizer."""
    if config.user_script or not read_facts(model.folder, "tokenizer_config.json"):
        return False
    asks = stage_parameters(config, "pre_process")
    return (model.task or "").removesuffix("-with-past") in TEXT_TASKS or "input_cols" in asks or "text_cols" in asks


def _dummy(config: DataConfig, kind: str, model: ModelHandle) -> Batches:
    batch_size = int(stage_parameters(config, "dataloader").get("batch_size") or 1)
    parameters = stage_parameters(config, "dataset")
    if kind in _PROMPTS:
        made = made_up.prompt_batches(model, batch_size, **{**_PROMPTS[kind], **parameters})
    else:
        made = made_up.dummy_batches(parameters, batch_size, model)
    return Batches(lambda: iter([(dict(batch), None) for batch in made]), synthetic=True)


@dataclass(frozen=True)
class _Opener:
    """Walks one configuration through its stages."""

    config: DataConfig
    folder: Path
    model: ModelHandle
    script: UserScript | None
    stands_in: bool

    def open(self) -> Batches:
        dataset = self._stand_in() if self.stands_in else self._stage("dataset")
        prepared = self._pre_process(dataset)
        feed = Feed.of(self.model)

        def pairs() -> Iterator[Pair]:
            for inputs, labels in self._batches(prepared, feed.names):
                yield feed.fitted(inputs), labels

        return Batches(pairs, self._post_process(), self.stands_in)

    def _name(self, stage: Stage) -> str:
        return component_of(self.config, stage, self.model.task)

    def _scripted(self, stage: Stage, name: str) -> Component | None:
        return self.script.components.find(stage, name) if self.script else None

    def _known(self, stage: Stage) -> list[str]:
        return self.script.components.names(stage) if self.script else []

    def _stage(self, stage: Stage, *inputs: Any) -> Any:
        """Runs a script's component, or ours."""
        name = self._name(stage)
        scripted = self._scripted(stage, name)
        if scripted is not None:
            return self._call_script(name, scripted, stage, *inputs)
        ours = self._datasets() if stage == "dataset" else self._pre_processes()
        if name.lower() not in ours:
            raise unknown_component(stage, name, [*ours, *self._known(stage)])
        return _call(ours[name.lower()], name, inputs, stage_parameters(self.config, stage))

    def _datasets(self) -> dict[str, Component]:
        handed_on = lambda data_dir=None, **_: data_dir  # noqa: E731
        return {
            "sentences": partial(sentences, self.folder),
            "images": partial(images, self.folder),
            "raw_dataset": partial(raw_dataset, self.folder),
            HUB: partial(hub_dataset, folder=self.folder),
            "local_dataset": handed_on,
            "simple_dataset": handed_on,
        }

    def _pre_processes(self) -> dict[str, Component]:
        as_it_is = lambda dataset, **_: dataset  # noqa: E731
        return {
            "tokenize": partial(tokenize, model=self.model),
            "process_images": partial(process_images, model=self.model),
            "huggingface_pre_process": self._text_columns,
            "text_classification_pre_process": self._text_columns,
            "tokenizer_pre_process": partial(self._text_columns, label_col=None),
            "ner_huggingface_preprocess": self._label_tokens,
            TEXT_GENERATION: self._text_generation,
            "pre_process": as_it_is,
            "skip_pre_process": as_it_is,
        }

    def _pre_process(self, dataset: Any) -> Any:
        section = self.config.pre_process_data_config
        if isinstance(dataset, Raw) and (section is None or section.type is None):
            processor = process_images if self.model.task in IMAGE_TASKS else tokenize
            parameters = stage_parameters(self.config, "pre_process")
            return _call(partial(processor, model=self.model), processor.__name__, (dataset,), parameters)
        if isinstance(dataset, Examples) and (section is None or section.type is None):
            return dataset
        return self._stage("pre_process", dataset)

    def _text_columns(self, dataset: Any, **parameters: Any) -> Examples:
        columns = {key: parameters.pop(key) for key in ("input_cols", "label_col", "max_samples") if key in parameters}
        if self.stands_in:
            columns["max_samples"] = min(columns.get("max_samples") or _SMOKE_SAMPLES, _SMOKE_SAMPLES)
        if parameters.pop("align_labels", False):
            dataset = _aligned(dataset, self.model, columns.get("label_col", "label"))
        for key in ("model_name", "model_config_path", "trust_remote_code", "task", "batched", "kwargs"):
            parameters.pop(key, None)
        parameters.update(parameters.pop("tokenizer_kwargs", None) or {})
        examples: Examples = _call(
            tokenize, "huggingface_pre_process", (text_columns(dataset, **columns), self.model), parameters
        )
        return examples

    def _label_tokens(self, dataset: Any, **parameters: Any) -> Examples:
        for key in ("model_name", "trust_remote_code", "task", "batched", "kwargs"):
            parameters.pop(key, None)
        examples: Examples = _call(label_tokens, "ner_huggingface_preprocess", (dataset, self.model), parameters)
        return examples

    def _text_generation(self, dataset: Any, **parameters: Any) -> Examples:
        parameters.pop("model_name", None)
        options = text_generation_options(parameters)
        if self.stands_in:
            samples = min(options.max_samples or _SMOKE_SAMPLES, _SMOKE_SAMPLES)
            length = min(options.max_seq_len, sequence_length(self.model.folder, _SMOKE_TOKENS))
            stride = min(options.stride, length) if options.stride else None
            options = options.model_copy(update={"max_samples": samples, "max_seq_len": length, "stride": stride})
        formatted = None
        if options.text_formatting_func:
            if self.script is None:
                raise InvalidRecipe(
                    Problem(
                        "missing-key",
                        f"'{TEXT_GENERATION}': text_formatting_func '{options.text_formatting_func}' needs a script",
                        remedy="name user_script in the data config",
                    )
                )
            formatted = self.script.function(options.text_formatting_func)
        return text_generation(dataset, self.model, options, formatted)

    def _stand_in(self) -> list[dict[str, Any]]:
        """Rows with the columns that the pre-processing reads."""
        name = self._name("pre_process").lower()
        asks = stage_parameters(self.config, "pre_process")
        if name == TEXT_GENERATION:
            options = text_generation_options({key: value for key, value in asks.items() if key != "model_name"})
            chat = bool(options.chat_template)
            columns = made_up.placeholders(options.text_template) if options.text_template else options.columns
            return made_up.stand_in_rows([options.message_col] if chat else columns, 1, None, words=False, chat=chat)
        words = name == "ner_huggingface_preprocess"
        columns = list(asks.get("input_cols") or (["tokens"] if words else ["text"]))
        label_col = asks.get("label_col") or ("ner_tags" if words else "label")
        labels = len(read_facts(self.model.folder).get("id2label") or range(_SMOKE_LABELS))
        return made_up.stand_in_rows(columns, labels, label_col, words, chat=False)

    def _call_script(self, name: str, component: Component, stage: Stage, *inputs: Any) -> Any:
        parameters = {key: self._absolute(value) for key, value in stage_parameters(self.config, stage).items()}
        known = inspect.signature(component).parameters
        for key, value in (("model_name", str(self.model.folder)), ("task", self.model.task)):
            if key in known or (stage == "pre_process" and _takes_any(component)):
                parameters.setdefault(key, value)
        return self._guarded(f"{name}()", lambda: component(*inputs, **parameters))

    def _guarded(self, called: str, call: Callable[[], Any]) -> Any:
        """Runs a piece of the script among its own modules; what it raises becomes an error that names the script."""
        if self.script is None:
            return call()
        with self.script.active():
            try:
                return call()
            except Exception as error:
                raise script_failure(self.config.user_script or "", error, called) from error

    def _absolute(self, value: Any) -> Any:
        path = local_path(value, self.folder) if isinstance(value, str) else None
        return str(path.resolve()) if path else value

    def _batches(self, prepared: Any, names: Sequence[str]) -> Iterator[Pair]:
        name = self._name("dataloader")
        scripted = self._scripted("dataloader", name)
        if scripted is not None:
            yield from self._as_they_are(self._call_script(name, scripted, "dataloader", prepared), names)
        elif name.lower() in _AS_THEY_ARE:
            yield from self._as_they_are(prepared, names)
        elif name.lower() in _BATCHING:
            yield from self._collated(prepared, names)
        else:
            raise unknown_component("dataloader", name, [*_BATCHING, *self._known("dataloader")])

    def _as_they_are(self, dataset: Any, names: Sequence[str]) -> Iterator[Pair]:
        for item in self._items(dataset):
            inputs, labels = pair_of(item, names)
            yield {key: array_of(value) for key, value in inputs.items()}, None if labels is None else array_of(labels)

    def _collated(self, prepared: Any, names: Sequence[str]) -> Iterator[Pair]:
        parameters = {
            key: value for key, value in stage_parameters(self.config, "dataloader").items() if key not in _LOADER_OPTIONS
        }
        whole = parameters.pop("fields_no_batch", ())
        whole = (whole,) if isinstance(whole, str) else tuple(whole)
        if not isinstance(prepared, Examples):
            prepared = Examples(pair_of(item, names) for item in self._items(prepared))
        yield from _call(collated, "default_dataloader", (prepared, whole), parameters)

    def _items(self, dataset: Any) -> Iterator[Any]:
        """Goes through a data set; the script's own code in it runs among its own modules."""
        items = iter(items_of(dataset))
        end = object()
        while (item := self._guarded("reading its data", lambda: next(items, end))) is not end:
            yield item

    def _post_process(self) -> Callable[[Any], Any] | None:
        name = self._name("post_process")
        component = self._scripted("post_process", name)
        parameters = stage_parameters(self.config, "post_process")
        if component is not None and self.script is not None:
            for key in ("model_name", "task"):
                if not _takes_any(component) and key not in inspect.signature(component).parameters:
                    parameters.pop(key, None)
            return post_process.scripted(self.script.bound(component), parameters)
        if name.lower() not in post_process.OURS:
            raise unknown_component("post_process", name, [*post_process.OURS, *self._known("post_process")])
        return post_process.OURS[name.lower()]


def _takes_any(component: Component) -> bool:
    return any(one.kind is inspect.Parameter.VAR_KEYWORD for one in inspect.signature(component).parameters.values())


def _call(component: Component, name: str, inputs: Sequence[Any], parameters: Mapping[str, Any]) -> Any:
    """Calls one of our components; a parameter that it does not have is the configuration's mistake."""
    known = list(inspect.signature(component).parameters.items())[len(inputs) :]
    names = [key for key, one in known if one.kind is not one.VAR_KEYWORD]
    unknown = [key for key in parameters if key not in names]
    if unknown and not _takes_any(component):
        raise InvalidRecipe(
            Problem("unknown-parameter", f"'{name}' has no parameter '{unknown[0]}'", remedy=did_you_mean(unknown[0], names))
        )
    missing = [
        key for key, one in known if one.default is one.empty and one.kind is not one.VAR_KEYWORD and key not in parameters
    ]
    if missing:
        raise InvalidRecipe(Problem("missing-parameter", f"'{name}' needs the parameter '{missing[0]}'"))
    return component(*inputs, **parameters)


def _aligned(dataset: Any, model: ModelHandle, label_col: str) -> Any:
    """Returns the data set with its labels numbered as the model's configuration numbers them, where both name theirs."""
    known = read_facts(model.folder).get("label2id")
    features = getattr(dataset, "features", None) or {}
    if not known or not hasattr(features.get(label_col), "names"):
        return dataset
    try:
        return dataset.align_labels_with_mapping({name.lower(): number for name, number in known.items()}, label_col)
    except (KeyError, ValueError) as error:
        raise DataUnavailable(
            f"align_labels: the data set's labels ({', '.join(features[label_col].names)}) are not those of the model "
            f"({', '.join(known)}): {error}"
        ) from error
