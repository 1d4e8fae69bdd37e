"""What a run will do, decided before anything is done: steps, their fingerprints, and which of them are finished."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from runner.data.local_files import data_digest
from runner.engine.fingerprint import fingerprint, step_ingredients, versions
from runner.engine.obstacles import check_components, check_outline, check_packages, check_steps, check_trust
from runner.engine.places import Places
from runner.engine.request import Request, makes_genai, output_of
from runner.engine.store import Store
from runner.errors import (
    DataUnavailable,
    InvalidRecipe,
    ModelUnavailable,
    NotTrusted,
    PackageMissing,
    Problem,
)
from runner.evaluation.check import evaluation_files
from runner.models.digest import DigestMemo
from runner.models.source import Access, Source, locate, path_missing
from runner.passes import table
from runner.passes.declaration import Pass
from runner.passes.each_component import Differing
from runner.recipe.config import DataConfig
from runner.recipe.quantities import short_size
from runner.targets.target import TARGETS, Target, require, session_threads, target_of, what_is_missing

SOURCE_STEP = "source"
EVALUATION_PACKAGES = ("onnxruntime", "onnxruntime-genai", "torch", "transformers", "numpy")


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
        needed: whether a run has to have the result; not where a later step's result is stored.
    """

    name: str
    pass_name: str
    options: dict[str, Any]
    fingerprint: str | None
    ingredients: dict[str, Any]
    cached: bool
    needed: bool = True

    @property
    def state(self) -> str:
        """Returns in a word or two what a run does about it."""
        return "cached" if self.cached else "to do" if self.needed else "not needed"

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
    target = target_of(config.system(config.target), request.place("target"))
    genai = makes_genai(config)
    target_missing = what_is_missing(target, genai=genai)
    checked_there = what_is_missing(target) is None  # where its device and runtime are, a smoke run's check runs there as well
    if access.fetch:
        require(target if checked_there or not request.smoke else TARGETS["cpu"], genai=genai)
    check_steps(request, target)
    with missing.noted():
        check_trust(request)
    with missing.noted():
        check_packages(request)
    source = _source(request, access, missing)
    check_components(request, source)
    steps = _steps(request, source, target, store, memo, missing)
    if any(step.state == "to do" for step in steps):
        check_outline(request, source, target)
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
        output=output_of(request),
        places=places,
        threads=session_threads(request.threads),
        notes=tuple(
            dict.fromkeys(
                (
                    *_notes(request, target, target_missing, checked_there),
                    *source.notes,
                    *missing.notes,
                    *_kept_from_before(request, steps, store),
                )
            )
        ),
        lacks=tuple(dict.fromkeys(missing.problems)),
    )


def _source(request: Request, access: Access, missing: _Missing) -> Source:
    """Returns the model that the run starts from: under --smoke a tiny one in its place."""
    config, folder = request.config, request.loaded.folder
    if request.smoke and config.input_model.type != "PyTorchModel":
        from runner.models.smoke_source import smoke_source  # brings the tables of architectures, which real runs do without

        return smoke_source(config.input_model, folder, access, request.info.arch if request.info else None)
    source = Source(None, None, config.input_model.model_path or f"{config.input_model.model_loader}()")
    scripted = config.input_model.type == "PyTorchModel"
    sources = request.info.model.sources if request.info and not scripted else ()
    key = "model_script" if scripted else "model_path"
    mistyped = request.place("input_model", key) is None and path_missing(config.input_model, folder)
    with nullcontext() if mistyped else missing.noted():
        try:
            source = locate(config.input_model, sources, folder, access)
        except ModelUnavailable as error:
            raise error.at(request.place("input_model", key)) from None
    return source


def _notes(request: Request, target: Target, target_missing: tuple[str, str] | None, checked_there: bool) -> tuple[str, ...]:
    notes = list(request.loaded.notes)
    config = request.config
    if target_missing:
        built = request.smoke and target.name != "cpu" and not checked_there
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


def _steps(
    request: Request, source: Source, target: Target, store: Store, memo: DigestMemo, missing: _Missing
) -> tuple[Step, ...]:
    asked: list[tuple[str, Pass, dict[str, Any], Differing]] = []
    if source.step is not None:
        asked.append((SOURCE_STEP, table.get(source.step[0]), source.step[1], {}))
    handed: dict[str, Any] = {}
    for name, step in request.config.passes.items():
        pass_ = table.get(step.type)
        given = step.options.model_fields_set
        taken = {key: value for key, value in handed.items() if key not in given} if pass_.gives == "hf" else {}
        options = {key: taken.get(key, value) for key, value in step.options.model_dump(mode="json").items()}
        asked.append((name, pass_, options, step.components))
        handed = {**handed, **(pass_.hands_on(step.options) if pass_.hands_on else {})}
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
    cached = [bool(step.fingerprint and not request.no_cache and store.get(step.fingerprint)) for step in steps]
    first = next((at + 1 for at in reversed(range(len(steps))) if cached[at]), 0)  # to be made; the source is compared with
    return tuple(
        replace(step, cached=cached[at], needed=at >= first or (step.name == SOURCE_STEP and first < len(steps)))
        for at, step in enumerate(steps)
    )


def _kept_from_before(request: Request, steps: tuple[Step, ...], store: Store) -> tuple[str, ...]:
    """Says which results stay in the store although nothing but the finished model is to be kept."""
    if not request.no_artifacts:
        return ()
    own = [step for step in steps[:-1] if step.cached and step.pass_name not in table.SOURCE_MODULES]
    found = {step.name: entry for step in own if (entry := store.told(step.fingerprint or ""))}
    if not found:
        return ()
    size = short_size(sum(entry.size for entry in found.values()))
    told = f"what {', '.join(found)} left ({size}) was made by an earlier run, and stays in the store for others"
    return (f"--no-artifacts: {told}; 'recipe cache gc' takes out what is old",)


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
            raise InvalidRecipe(Problem("unknown-name", cause, request.place("data_configs")))
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
    from runner.evaluation.evaluate import VERSION

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
            "version": VERSION,
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
    from runner.evaluation.structure import VERSION
    from runner.targets.operator_kernels import table_digest

    return fingerprint(
        {
            "version": VERSION,
            "model": last,
            "target": target.name,
            "kernels": table_digest(),
            "placed": what_is_missing(target) is None,
        },
    )
