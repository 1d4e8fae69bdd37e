"""Runs that one command says in full: a few named passes on a model, written as a recipe folder beside the output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from runner.catalog.copies import copied_info
from runner.catalog.discover import Entry
from runner.catalog.names import is_name
from runner.catalog.scaffold import Decision
from runner.compose.folder import CONFIG, Composed, files_of_recipe, overridden, recipe_beside
from runner.compose.known import Known
from runner.compose.request import make_request
from runner.compose.subject import Subject
from runner.engine.publish import check_writable
from runner.engine.request import Request
from runner.errors import InvalidRecipe, Place, Problem, UsageError, did_you_mean
from runner.passes.declaration import Pass
from runner.passes.table import get, options_of
from runner.recipe.document import DEFAULT, node_of
from runner.recipe.migrate import PASS_LEVEL
from runner.recipe.steps import current_options
from runner.recipe.validate import check
from runner.recipe.yaml_text import with_value, without
from runner.targets.target import Target, target_name

Steps = dict[str, dict[str, Any]]
_DRAWS = "text-to-image"
_RENDERED = ("info.yml", "info.yaml", "README.md")


@dataclass(frozen=True)
class Chain:
    """What is going to be done.

    Attributes:
        scheme: what tells it from other chains, in small letters: part of the output's name.
        precision: precision of the weights.
        steps: passes by name, each with its type and options.
        data: data configs.
        decisions: what was decided, and why.
        notes: what people should know.
        files: further files of the recipe folder.
    """

    scheme: str
    precision: str
    steps: Steps
    data: Sequence[Mapping[str, Any]] = ()
    decisions: Sequence[Decision] = ()
    notes: Sequence[str] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Wish:
    """What every such command is told beside the passes.

    Attributes:
        target: what the model is made for.
        output: folder for the model; named after the model and the scheme when None.
        overrides: `path=value` texts, laid over the configuration; a path without a section is an option of the only pass.
        catalog: folder of recipes; the nearest when None.
        command: the command, as README.md of the recipe tells it.
        offline, trust, smoke, threads, no_cache: see `runner.engine.request.Request`.
    """

    target: Target
    output: Path | None = None
    overrides: Sequence[str] = ()
    catalog: Path | None = None
    command: str = ""
    offline: bool = False
    trust: bool = False
    smoke: bool = False
    threads: int | None = None
    no_cache: bool = False


def compose(known: Known, chain: Chain, wish: Wish, title: str) -> tuple[Composed, Request]:
    """Writes the recipe folder beside the output, and returns it with the run.

    Raises:
        InvalidRecipe: an option does not exist or does not fit its pass; nothing was written.
        UsageError: an override names no place, or the folder was changed by hand.
    """
    subject, target = known.subject, wish.target
    output = (wish.output or Path("models") / f"{subject.name}-{chain.scheme}").expanduser().absolute()
    output = output.with_name(f"{output.name}-smoke") if wish.smoke and wish.output is None else output
    check_writable(output)
    config = overridden(config_of(subject, chain.steps, target, output, chain.data), wish.overrides)
    _check(config)
    folder = recipe_beside(output)
    info, files = (None, dict[str, bytes]()) if known.entry is None else _of_recipe(known.entry, folder, chain, target)
    scripted = subject.kind == "pytorch"
    composed = Composed(
        folder, config, target, title, wish.command, tuple(chain.decisions), tuple(chain.notes), info,
        known.entry.family if known.entry else None, "--trust" if scripted else "", {**files, **chain.files},
    )  # fmt: skip
    composed.write()
    request = make_request(
        None, [composed.config_file], catalog=wish.catalog, smoke=wish.smoke, offline=wish.offline,
        trust=wish.trust or scripted, threads=wish.threads, output_dir=output, no_cache=wish.no_cache,
    )  # fmt: skip
    return composed, request


def config_of(
    subject: Subject, steps: Steps, target: Target, output: Path, data: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Returns a configuration, as JSON data: a model, passes by name, and the data configs that they read."""
    system = {
        "type": "LocalSystem",
        "accelerators": [{"device": target.device, "execution_providers": [target.provider]}],
    }
    return {
        "input_model": subject.input_model(),
        "systems": {"local_system": system},
        **({"data_configs": [dict(one) for one in data]} if data else {}),
        "passes": {name: dict(step) for name, step in steps.items()},
        "host": "local_system",
        "target": "local_system",
        "evaluate_input_model": False,
        "output_dir": str(output),
    }


def _check(config: Mapping[str, Any]) -> None:
    """Refuses passes and options that do not exist, before anything is written."""
    problems: list[Problem] = []
    for step in config["passes"].values():
        known, names = options_of(str(step.get("type")))
        if known is None:
            remedy = did_you_mean(str(step.get("type")), names)
            problems.append(Problem("unknown-pass", f"there is no pass '{step.get('type')}'", remedy=remedy))
            continue
        name, options = known
        beside = (*options.retired, *PASS_LEVEL)
        written = node_of({key: value for key, value in step.items() if key not in beside}, DEFAULT)
        given = current_options(written, options, [], problems, Place(CONFIG), f"{name} ")
        check(options, given, problems, Place(CONFIG), f"{name} ")
    if problems:
        raise InvalidRecipe(*(replace(problem, place=None) for problem in problems))  # there is no file yet


def _of_recipe(entry: Entry, folder: Path, chain: Chain, target: Target) -> tuple[str, dict[str, bytes]]:
    """Returns info.yml and the data of a catalogued model: where its weights come from, and what judges it."""
    own = folder.name.removesuffix("-recipe").lower()
    text, _ = copied_info(entry, own if is_name(own) else f"{entry.info.name}-{chain.scheme}", None)
    for number in reversed(range(1, len(entry.info.recipes))):
        text = without(text, ("recipes", number))
    for key in ("settings", "gates", "pipeline"):
        text = without(text, ("recipes", 0, key))
    told = {
        "name": f"{target_name(target.provider)}-{chain.scheme}",
        "file": CONFIG,
        "device": target.device,
        "ep": target.provider,
        "precision": chain.precision,
    }
    for key, value in told.items():
        text = with_value(text, ("recipes", 0, key), value)
    return text, files_of_recipe(entry)


def _check_kind(subject: Subject, declared: Pass) -> None:
    """Refuses a model that the pass does not take."""
    if subject.kind in declared.takes or (subject.kind == "onnx" and "genai" in declared.takes):
        return
    remedy = "name the model that the graph was exported from"
    if subject.kind != "onnx":
        remedy = "'recipe export' makes an ONNX graph of it first" if "onnx" in declared.takes else "name another model"
    raise UsageError(
        "wrong-kind", f"{declared.name} takes {' or '.join(declared.takes)} models, and this one is {subject.kind}", remedy
    )


def merged_first(known: Known, steps: Steps) -> Steps:
    """Returns the passes, behind one that adds the adapter to the weights where one was named."""
    return {"merge": {"type": "MergeAdapterWeights"}, **steps} if known.subject.details.get("adapter_path") else steps


def one_pass(
    known: Known, name: str, options: Mapping[str, Any], target: Target, data: Mapping[str, Any] | None = None
) -> Chain:
    """Returns the chain of a single pass.

    Args:
        known: the model.
        name: the pass, in any case.
        options: its options.
        target: what the model is made for.
        data: data config for a pass that reads one and was not given another.

    Raises:
        InvalidRecipe: there is no such pass.
        UsageError: data was named, and the pass reads none.
    """
    found, names = options_of(name)
    if found is None:
        raise InvalidRecipe(Problem("unknown-pass", f"there is no pass '{name}'", remedy=did_you_mean(name, names)))
    declared = get(found[0])
    if data is not None and not declared.data_options:
        raise UsageError(
            "data-unused", f"{declared.name} uses no data", f"'recipe passes show {declared.name}' tells its options"
        )
    _check_kind(known.subject, declared)
    read = {declared.data_options[0]: data["name"]} if data is not None else {}
    decisions = (
        Decision("model", known.subject.word or str(known.subject.details.get("model_script")), known.subject.kind),
        Decision("pass", declared.name, declared.summary),
        Decision("target", target.name, target.provider),
    )
    steps: Steps = {"apply": {"type": declared.name, **read, **options}}
    return Chain(declared.name.lower(), str(options.get("precision", "fp32")), steps, [data] if data else (), decisions)
