"""What a run will do, decided before anything is done: steps, their fingerprints, and which of them are finished."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from runner.data.batches import data_digest
from runner.engine.fingerprint import fingerprint, step_ingredients, versions
from runner.engine.places import Places
from runner.engine.store import Store
from runner.errors import (
    DataUnavailable,
    InvalidRecipe,
    ModelUnavailable,
    NotTrusted,
    PackageMissing,
    Place,
    Problem,
    did_you_mean,
)
from runner.evaluation.check import check_evaluator, evaluation_files, missing_packages
from runner.evaluation.evaluate import VERSION as EVALUATION_VERSION
from runner.evaluation.structure import VERSION as STRUCTURE_VERSION
from runner.models.diffusion import COMPONENTS
from runner.models.digest import DigestMemo
from runner.models.outline import outline_of, outline_of_id
from runner.models.source import Access, Source, locate, path_missing, smoke_source
from runner.passes import table
from runner.passes.declaration import Pass
from runner.passes.each_component import Differing, options_of_component, unmatched
from runner.recipe.config import DataConfig, RunConfig
from runner.recipe.info import Info
from runner.recipe.load import LoadedConfig
from runner.targets.operator_kernels import table_digest
from runner.targets.target import TARGETS, Target, require, session_threads, target_of, what_is_missing

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
        no_artifacts: keep the finished model only, not what the steps before the last one leave.
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
    no_artifacts: bool = False
    threads: int | None = None
    output_dir: Path | None = None

    @property
    def config(self) -> RunConfig:
        """Returns the typed configuration."""
        return self.loaded.config

    @property
    def name(self) -> str:
        """Returns how people call it: id and variant; else the file's name, or the folder's."""
        if self.info is None:
            file = self.loaded.files[0]
            return self.loaded.folder.name if file.name == "olive_config.json" else file.stem
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

    @property
    def components(self) -> Differing:
        """Returns what differs for single components of a pipeline."""
        told = self.ingredients.get("components", ())
        return {pattern: own["options"] if own else False for pattern, own in told}


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
        structure: fingerprint of the check that the target's provider can run the result; None for the CPU.
        structured: whether the store holds what that check found.
        output: folder for the result.
        places: where the cache is.
        threads: threads to compute with.
        notes: what people should know before it starts.
        lacks: what a run would stop at, which a dry run plans on without: files, packages, trust.
    """

    request: Request
    target: Target
    source: Source
    steps: tuple[Step, ...]
    evaluation: str | None
    evaluated: bool
    structure: str | None
    structured: bool
    output: Path
    places: Places
    threads: int
    notes: tuple[str, ...]
    lacks: tuple[Problem, ...] = ()

    @property
    def evaluates(self) -> bool:
        """Returns whether the configuration measures its model."""
        return self.request.config.evaluator in self.request.config.evaluators

    @property
    def complete(self) -> bool:
        """Returns whether there is nothing left to compute."""
        checked = self.structure is None or self.structured
        return self.steps[-1].cached and checked and (self.evaluation is None or self.evaluated)


@dataclass
class _Missing:
    """Takes what is only missing on this machine: a run stops at it, a dry run notes it and plans on."""

    tolerated: bool
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Turns an error about this machine into a note where that is tolerated."""
        try:
            yield
        except (DataUnavailable, ModelUnavailable, PackageMissing) as error:
            if not self.tolerated:
                raise
            self.problems += error.problems
            self.notes += [f"a run needs what is not here: {problem.cause}" for problem in error.problems]
        except NotTrusted as error:
            if not self.tolerated:
                raise
            self.problems += error.problems
            self.notes += [f"{problem.cause}; a run needs --trust" for problem in error.problems]


def make_plan(request: Request, places: Places, store: Store, memo: DigestMemo, access: Access) -> Plan:
    """Returns the plan of a run.

    A dry run (`access.fetch` is False) asks nothing of this machine: a device, model, script or file that is not here
    becomes a note. A path of a model that was typed on the command line must exist even then.

    Raises:
        RecipeError: whatever stands in the way, found before any work: an unusable target, a missing or damaged model,
            code that is not trusted, steps that do not fit together, data that is not there.
    """
    config = request.config
    missing = _Missing(tolerated=not access.fetch)
    target = target_of(config.system(config.target), _place(request, "target"))
    genai = makes_genai(config)
    target_missing = what_is_missing(target, genai=genai)
    if access.fetch:
        require(TARGETS["cpu"] if request.smoke else target, genai=genai)
    _check_steps(request, target)
    with missing.noted():
        _check_trust(request)
    with missing.noted():
        _check_packages(request)
    source = _source(request, access, missing)
    _check_components(request, source)
    _check_outline(request, source, target)
    steps = _steps(request, source, target, store, memo, missing)
    evaluation = None
    with missing.noted():
        evaluation = _evaluation_fingerprint(request, steps, source, target, memo)
    structure = _structure_fingerprint(steps, target)
    return Plan(
        request,
        target,
        source,
        steps,
        evaluation,
        evaluated=evaluation is not None and not request.no_cache and store.get(evaluation) is not None,
        structure=structure,
        structured=structure is not None and not request.no_cache and store.get(structure) is not None,
        output=_output(request),
        places=places,
        threads=session_threads(request.threads),
        notes=tuple(dict.fromkeys((*_notes(request, target, target_missing), *source.notes, *missing.notes))),
        lacks=tuple(dict.fromkeys(missing.problems)),
    )


def require_device(request: Request) -> None:
    """Makes sure that what a request makes can also be run here, as a smoke run need not be able to.

    Raises:
        TargetUnavailable: its target cannot be used here; says what mends it.
        InvalidRecipe: the configuration names no target of ours.
    """
    config = request.config
    require(target_of(config.system(config.target), _place(request, "target")), genai=makes_genai(config))


def makes_genai(config: RunConfig) -> bool:
    """Says whether onnxruntime-genai has a part in a run: one of its passes makes a folder for it."""
    return any(table.get(step.type).gives == "genai" for step in config.passes.values())


def _source(request: Request, access: Access, missing: _Missing) -> Source:
    """Returns the model that the run starts from: under --smoke a tiny one in its place."""
    config, folder = request.config, request.loaded.folder
    if request.smoke and config.input_model.type != "PyTorchModel":
        return smoke_source(config.input_model, folder, access, request.info.arch if request.info else None)
    source = Source(None, None, config.input_model.model_path or f"{config.input_model.model_loader}()")
    scripted = config.input_model.type == "PyTorchModel"
    sources = request.info.model.sources if request.info and not scripted else ()
    key = "model_script" if scripted else "model_path"
    mistyped = _place(request, "input_model", key) is None and path_missing(config.input_model, folder)
    with nullcontext() if mistyped else missing.noted():
        try:
            source = locate(config.input_model, sources, folder, access)
        except ModelUnavailable as error:
            raise error.at(_place(request, "input_model", key)) from None
    return source


def _place(request: Request, *path: str | int) -> Place | None:
    return request.loaded.tree.deepest(path).origin.place


def _notes(request: Request, target: Target, target_missing: tuple[str, str] | None) -> tuple[str, ...]:
    notes = list(request.loaded.notes)
    config = request.config
    if target_missing:
        built = request.smoke and target.name != "cpu"
        done = "the model is built for it and checked on the CPU" if built else "a run stops there"
        notes.append(f"{target.provider}: {target_missing[0]}; {done}")
    for role in ("host", "target"):
        system = config.system(getattr(config, role))
        if system is not None and system.type != "LocalSystem":
            notes.append(f"{role}: a {system.type} system is read as this machine; steps run in this environment")
    if config.search_strategy and not request.loaded.varies:
        notes.append("search_strategy: nothing has several values, so there is one point to run")
    if config.input_model.load_kwargs.get("trust_remote_code") and not request.trust:
        notes.append("trust_remote_code: the model's own code is not run unless --trust is given")
    if request.smoke and config.input_model.type == "PyTorchModel":
        notes.append("--smoke: a PyTorchModel has no tiny twin; the model itself is run")
    return tuple(notes)


def _check_steps(request: Request, target: Target) -> None:
    """Every pass must serve the target, and take what the one before gives."""
    problems: list[Problem] = []
    kind = {"HfModel": "hf", "PyTorchModel": "pytorch", "ONNXModel": "onnx", "DiffusersModel": "diffusers"}[
        request.config.input_model.type
    ]
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
        problems += check_evaluator(request.config, partial(_place, request))
    if problems:
        raise InvalidRecipe(*problems)


def _check_packages(request: Request) -> None:
    """What the evaluator needs must be installed, unless it is not going to run."""
    problems = missing_packages(request.config, request.smoke)
    if problems:
        raise PackageMissing(*problems)


def _check_components(request: Request, source: Source) -> None:
    """Components that a step names must be there, as far as is known what the source is."""
    problems: list[Problem] = []
    model = request.config.input_model
    draws = model.type == "DiffusersModel"
    told = source.handle.attributes.get("model_variant") if source.handle else None
    variant = told or (model.model_variant if model.model_variant != "auto" else None)
    names = COMPONENTS[variant] if draws and variant else tuple(dict.fromkeys(chain(*COMPONENTS.values()))) if draws else ()
    for at, (name, step) in enumerate(request.config.passes.items()):
        if step.components and not names:
            cause = f"'{name}' names components, and the model is one"
            problems.append(Problem("no-components", cause, _place(request, "passes", name, "components"), "leave them out"))
            continue
        for pattern in unmatched(step.components, names):
            cause = f"'{name}': the pipeline has no component '{pattern}'"
            place = _place(request, "passes", name, "components", pattern)
            problems.append(Problem("unknown-component", cause, place, did_you_mean(pattern, names)))
        pass_ = table.get(step.type)
        left = [one for one in names if at == 0 and options_of_component(pass_, {}, step.components, one) is None]
        if left and pass_.gives == "onnx":
            cause = f"'{name}': {pass_.name} leaves out {', '.join(left)}, and a pipeline needs all of its components"
            place = _place(request, "passes", name, "components")
            problems.append(Problem("component-left-out", cause, place, "only later steps can leave a component as it is"))
    if problems:
        raise InvalidRecipe(*problems)


def _check_outline(request: Request, source: Source, target: Target) -> None:
    """No pass may refuse a model whose matrices it can know beforehand; what passes make of them is followed step by step."""
    model = request.config.input_model
    if request.smoke or model.type != "HfModel" or source.step is not None:
        outline = None
    elif source.handle is not None:
        outline = outline_of(source.handle)
    else:
        outline = outline_of_id(model.model_path or "")
    problems: list[Problem] = []
    for name, step in request.config.passes.items():
        foresee = table.get(step.type).foresee
        try:
            outline = foresee(step.options, outline, target) if foresee else None
        except InvalidRecipe as error:
            problems += error.at(_place(request, "passes", name)).problems
            outline = None
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


def _steps(
    request: Request, source: Source, target: Target, store: Store, memo: DigestMemo, missing: _Missing
) -> tuple[Step, ...]:
    asked: list[tuple[str, Pass, dict[str, Any], Differing]] = []
    if source.step is not None:
        asked.append((SOURCE_STEP, table.get(source.step[0]), source.step[1], {}))
    for name, step in request.config.passes.items():
        asked.append((name, table.get(step.type), step.options.model_dump(mode="json"), step.components))
    steps: list[Step] = []
    digest = source.digest
    for name, pass_, options, differing in asked:
        data = None
        components: dict[str, Any] = {}
        with missing.noted():
            for pattern, own in differing.items():
                of_own = {} if own is False else _data_digests(request, pass_, own, memo)
                components[pattern] = False if own is False else {"options": dict(own), "data": of_own}
            data = _data_digests(request, pass_, options, memo)
        ingredients = step_ingredients(pass_, options, digest or "unknown", target, data or {}, components)
        key = fingerprint(ingredients) if digest and data is not None else None
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
            cause = f"{pass_.name}: there is no data config '{named}'"
            raise InvalidRecipe(Problem("unknown-name", cause, _place(request, "data_configs")))
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
    if evaluator is None:
        return None
    data = {}
    for metric in evaluator.metrics:
        resolved = config.data_config(metric.data_config) if isinstance(metric.data_config, str) else metric.data_config
        if resolved is not None:
            data[resolved.name] = data_digest(resolved, request.loaded.folder)
    for file in evaluation_files(config, request.loaded.folder):
        data[file.name] = memo.of_file(file)
    if last is None:
        return None
    return fingerprint(
        {
            "version": EVALUATION_VERSION,
            "evaluator": evaluator.model_dump(mode="json"),
            "evaluate_input_model": config.evaluate_input_model,
            "model": last,
            "source": source.digest,
            "target": target.name,
            "measured_on": "cpu" if what_is_missing(target) else target.name,
            "smoke": request.smoke,
            "threads": session_threads(request.threads),
            "data": data,
            "packages": versions(EVALUATION_PACKAGES),
        }
    )


def _structure_fingerprint(steps: tuple[Step, ...], target: Target) -> str | None:
    last = steps[-1].fingerprint
    if last is None or target.name == "cpu":
        return None
    return fingerprint(
        {
            "version": STRUCTURE_VERSION,
            "model": last,
            "target": target.name,
            "kernels": table_digest(),
            "placed": what_is_missing(target) is None,
        },
    )


def _output(request: Request) -> Path:
    """Returns where the result goes. A smoke run never takes the place of a real model."""
    if request.output_dir is not None:
        return request.output_dir.expanduser().absolute()
    named = request.config.output_dir or f"models/{request.name.replace('/', '-')}"
    return Path(f"{named}-smoke" if request.smoke else named).expanduser().absolute()
