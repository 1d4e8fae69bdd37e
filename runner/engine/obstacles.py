"""What stands in the way of a run, found before any work: each check raises all that it finds."""

from __future__ import annotations

from itertools import chain

from runner.engine.request import KINDS, Request
from runner.errors import InvalidRecipe, NotTrusted, PackageMissing, Place, Problem, did_you_mean
from runner.evaluation.check import check_evaluator, missing_packages
from runner.models.diffusion import COMPONENTS
from runner.models.outline import outline_of, outline_of_id
from runner.models.source import Source
from runner.passes import table
from runner.passes.each_component import options_of_component, unmatched
from runner.targets.target import Target

SCRIPT_KEYS = ("model_script", "script_dir", "user_script")


def check_steps(request: Request, target: Target) -> None:
    """Every pass must serve the target, and take what the one before gives."""
    problems: list[Problem] = []
    kind: str = KINDS[request.config.input_model.type]
    for name, step in request.config.passes.items():
        pass_ = table.get(step.type)
        place = request.place("passes", name)
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
        problems += check_evaluator(request.config, request.place)
    if problems:
        raise InvalidRecipe(*problems)


def check_packages(request: Request) -> None:
    """What the evaluator needs must be installed, unless it is not going to run."""
    problems = missing_packages(request.config, request.smoke)
    if problems:
        raise PackageMissing(*problems)


def check_components(request: Request, source: Source) -> None:
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
            problems.append(Problem("no-components", cause, request.place("passes", name, "components"), "leave them out"))
            continue
        for pattern in unmatched(step.components, names):
            cause = f"'{name}': the pipeline has no component '{pattern}'"
            place = request.place("passes", name, "components", pattern)
            problems.append(Problem("unknown-component", cause, place, did_you_mean(pattern, names)))
        pass_ = table.get(step.type)
        left = [one for one in names if at == 0 and options_of_component(pass_, {}, step.components, one) is None]
        if left and pass_.gives == "onnx":
            cause = f"'{name}': {pass_.name} leaves out {', '.join(left)}, and a pipeline needs all of its components"
            place = request.place("passes", name, "components")
            problems.append(Problem("component-left-out", cause, place, "only later steps can leave a component as it is"))
    if problems:
        raise InvalidRecipe(*problems)


def check_outline(request: Request, source: Source, target: Target) -> None:
    """No pass may refuse a model whose matrices it can know beforehand; what passes make of them is followed step by step."""
    model, outline = request.config.input_model, None
    if not request.smoke and model.type == "HfModel" and source.step is None:
        outline = outline_of(source.handle) if source.handle is not None else outline_of_id(model.model_path or "")
    problems: list[Problem] = []
    for name, step in request.config.passes.items():
        foresee = table.get(step.type).foresee
        try:
            outline = foresee(step.options, outline, target) if foresee else None
        except InvalidRecipe as error:
            problems += error.at(request.place("passes", name)).problems
            outline = None
    if problems:
        raise InvalidRecipe(*problems)


def check_trust(request: Request) -> None:
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
