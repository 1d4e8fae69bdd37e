"""What a run will do, decided before anything is done: steps, their fingerprints, and which of them are finished."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runner.data.batches import data_digest
from runner.engine.fingerprint import fingerprint, step_ingredients, versions
from runner.engine.places import Places
from runner.engine.store import Store
from runner.errors import DataUnavailable, InvalidRecipe, NotTrusted, Place, Problem
from runner.evaluation.evaluate import VERSION as EVALUATION_VERSION
from runner.evaluation.evaluate import check_evaluator
from runner.models.digest import DigestMemo
from runner.models.source import Access, Source, locate, twin
from runner.passes import table
from runner.passes.declaration import Pass
from runner.recipe.config import DataConfig, RunConfig
from runner.recipe.info import Info
from runner.recipe.load import LoadedConfig
from runner.targets.target import Target, require, session_threads, target_of

SOURCE_STEP = "source"
EVALUATION_PACKAGES = ("onnxruntime", "onnxruntime-genai", "torch", "transformers", "numpy")


@dataclass(frozen=True)
class Request:
    """What somebody asked to run.

    Attributes:
        loaded: the checked configuration.
        info: the recipe's info.yml, where it has one.
        variant: name of the variant, where it has one.
        inside_catalogue: the folder belongs to the catalogue, whose scripts are trusted.
        smoke: the tiny twin and synthetic data in place of the real ones.
        offline: no network.
        trust: run code and load pickles from outside the catalogue.
        no_cache: make every step again.
        threads: threads to compute with; one a usable core when None.
        output_dir: overrides the configuration's.
    """

    loaded: LoadedConfig
    info: Info | None = None
    variant: str | None = None
    inside_catalogue: bool = False
    smoke: bool = False
    offline: bool = False
    trust: bool = False
    no_cache: bool = False
    threads: int | None = None
    output_dir: Path | None = None

    @property
    def config(self) -> RunConfig:
        """Returns the typed configuration."""
        return self.loaded.config

    @property
    def name(self) -> str:
        """Returns how people call it: id and variant, or the configuration's file name."""
        if self.info is None:
            return self.loaded.files[0].stem
        return f"{self.info.name}/{self.variant}" if self.variant else self.info.name


@dataclass(frozen=True)
class Step:
    """One application of a pass.

    Attributes:
        name: the key in the configuration's passes; ``source`` for the step that makes the source model.
        pass_name: the pass.
        options: resolved options, as JSON data.
        fingerprint: key in the store; None while the source has not been fetched.
        ingredients: what the fingerprint was made of.
        cached: whether the store holds the result.
    """

    name: str
    pass_name: str
    options: dict[str, Any]
    fingerprint: str | None
    ingredients: dict[str, Any]
    cached: bool


@dataclass(frozen=True)
class Plan:
    """Everything that `execute` needs.

    Attributes:
        request: what was asked for.
        target: what the model is made for.
        source: the model it starts from.
        steps: source step first, where there is one; then the configuration's passes in their order.
        evaluation: fingerprint of the evaluation; None when nothing is evaluated or the source is not here.
        evaluated: whether the store holds the evaluation.
        output: folder for the result.
        places: where the cache is.
        threads: threads to compute with.
        notes: what people should know before it starts.
    """

    request: Request
    target: Target
    source: Source
    steps: tuple[Step, ...]
    evaluation: str | None
    evaluated: bool
    output: Path
    places: Places
    threads: int
    notes: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Returns whether there is nothing left to compute."""
        return self.steps[-1].cached and (self.evaluation is None or self.evaluated)


def make_plan(request: Request, places: Places, store: Store, memo: DigestMemo, access: Access) -> Plan:
    """Returns the plan of a run.

    Raises:
        RecipeError: whatever stands in the way, found before any work: an unusable target, a missing or damaged model,
            code that is not trusted, steps that do not fit together, data that is not there.
    """
    config = request.config
    target = target_of(config.system(config.target), _place(request, "target"))
    require(target)
    _check_steps(request, target)
    _check_trust(request)
    folder = request.loaded.folder
    scripted = config.input_model.type == "PyTorchModel"
    smoke_twin = request.smoke and config.input_model.type == "HfModel"
    if smoke_twin:
        source = twin(config.input_model, folder)
    else:
        source = locate(config.input_model, request.info.model.sources if request.info and not scripted else (), folder, access)
    steps = _steps(request, source, target, store, memo)
    evaluation = _evaluation_fingerprint(request, steps, source, target, memo)
    return Plan(
        request,
        target,
        source,
        steps,
        evaluation,
        evaluated=evaluation is not None and not request.no_cache and store.get(evaluation) is not None,
        output=_output(request),
        places=places,
        threads=session_threads(request.threads),
        notes=_notes(request),
    )


def _place(request: Request, *path: str | int) -> Place | None:
    return request.loaded.tree.deepest(path).origin.place


def _notes(request: Request) -> tuple[str, ...]:
    notes = list(request.loaded.notes)
    config = request.config
    if config.search_strategy and not isinstance(config.search_strategy, bool):
        notes.append("search_strategy: no pass option lists several values, so the one point is run")
    if config.input_model.load_kwargs.get("trust_remote_code") and not request.trust:
        notes.append("trust_remote_code: the model's own code is not run unless --trust is given")
    if request.smoke and config.input_model.type != "HfModel":
        notes.append(f"--smoke: a {config.input_model.type} has no tiny twin; the model itself is run")
    return tuple(notes)


def _check_steps(request: Request, target: Target) -> None:
    """Every pass must serve the target, and take what the one before gives."""
    problems: list[Problem] = []
    kind = {"HfModel": "hf", "PyTorchModel": "pytorch", "ONNXModel": "onnx"}[request.config.input_model.type]
    for name, step in request.config.passes.items():
        pass_ = table.get(step.type)
        place = _place(request, "passes", name)
        if target.name not in pass_.targets:
            problems.append(Problem("pass-not-for-target", f"'{name}': {pass_.name} does not serve {target.name}", place))
        if kind not in pass_.takes and not (kind == "onnx" and "genai" in pass_.takes):
            problems.append(
                Problem(
                    "steps-do-not-fit",
                    f"'{name}': {pass_.name} takes {' or '.join(pass_.takes)} models, and what comes in is {kind}",
                    place,
                    "convert the model to ONNX first (OnnxConversion, ModelBuilder)"
                    if "onnx" in pass_.takes
                    else "reorder the passes",
                )
            )
        kind = pass_.gives or kind
    if not request.config.passes:
        problems.append(
            Problem(
                "no-passes", "the configuration has no passes: there is nothing to run", Place(str(request.loaded.files[0]))
            )
        )
    evaluator = request.config.evaluators.get(request.config.evaluator or "")
    if evaluator is not None:
        problems += check_evaluator(request.config)
    if problems:
        raise InvalidRecipe(*problems)


SCRIPT_KEYS = ("model_script", "script_dir", "user_script")


def _check_trust(request: Request) -> None:
    """Scripts are named in the input model, in data configs and in passes; wherever they stand, they would run."""
    if request.inside_catalogue or request.trust:
        return
    named = [
        (str(leaf.value), leaf)
        for path, leaf in request.loaded.tree.leaves()
        if path and path[-1] in SCRIPT_KEYS and leaf.value
    ]
    if named:
        raise NotTrusted(sorted({script for script, _ in named}), named[0][1].origin.place)


def _steps(request: Request, source: Source, target: Target, store: Store, memo: DigestMemo) -> tuple[Step, ...]:
    asked: list[tuple[str, Pass, dict[str, Any]]] = []
    if source.step is not None:
        asked.append((SOURCE_STEP, table.get(source.step[0]), source.step[1]))
    for name, step in request.config.passes.items():
        asked.append((name, table.get(step.type), step.options.model_dump(mode="json")))
    steps: list[Step] = []
    digest = source.digest
    for name, pass_, options in asked:
        data = _data_digests(request, pass_, options, memo)
        ingredients = step_ingredients(pass_, options, digest or "unknown", target, data)
        key = fingerprint(ingredients) if digest else None
        steps.append(Step(name, pass_.name, options, key, ingredients, cached=False))
        digest = key
    return tuple(
        replace(step, cached=step.fingerprint is not None and not request.no_cache and store.get(step.fingerprint) is not None)
        for step in steps
    )


def _data_digests(request: Request, pass_: Pass, options: Mapping[str, Any], memo: DigestMemo) -> dict[str, str]:
    """Digests of what the options refer to: data configs with their scripts and files, and scripts of the pass itself."""
    digests = {}
    folder = request.loaded.folder
    for option in pass_.data_options:
        named = options.get(option)
        if not named:
            continue
        data = request.config.data_config(named) if isinstance(named, str) else DataConfig.model_validate(named)
        if data is None:
            raise DataUnavailable(f"{pass_.name}: there is no data config '{named}'", place=_place(request, "data_configs"))
        digests[option] = data_digest(data, folder) + (":smoke" if request.smoke else "")
    script = options.get("user_script")
    if isinstance(script, str):
        path = folder / script
        if not path.is_file():
            raise DataUnavailable(
                f"{pass_.name}: there is no user script '{script}'", "paths are relative to the configuration"
            )
        digests["user_script"] = memo.of_file(path)
    return digests


def _evaluation_fingerprint(
    request: Request, steps: tuple[Step, ...], source: Source, target: Target, memo: DigestMemo
) -> str | None:
    config = request.config
    evaluator = config.evaluators.get(config.evaluator or "")
    last = steps[-1].fingerprint if steps else source.digest
    if evaluator is None or last is None:
        return None
    named = {metric.data_config for metric in evaluator.metrics if metric.data_config is not None}
    data = {}
    for one in named:
        resolved = config.data_config(one) if isinstance(one, str) else one
        if resolved is not None:
            data[resolved.name] = data_digest(resolved, request.loaded.folder)
    return fingerprint(
        {
            "version": EVALUATION_VERSION,
            "evaluator": evaluator.model_dump(mode="json"),
            "evaluate_input_model": config.evaluate_input_model,
            "model": last,
            "source": source.digest,
            "target": target.name,
            "smoke": request.smoke,
            "threads": session_threads(request.threads),
            "data": data,
            "packages": versions(EVALUATION_PACKAGES),
        }
    )


def _output(request: Request) -> Path:
    """Returns where the result goes. A smoke run never takes the place of a real model."""
    if request.output_dir is not None:
        return request.output_dir.expanduser().absolute()
    named = request.config.output_dir or f"models/{request.name.replace('/', '-')}"
    return Path(f"{named}-smoke" if request.smoke else named).expanduser().absolute()
