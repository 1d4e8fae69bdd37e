"""One command from a model to an optimised model: which recipe, for which target, in which precision, and why."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from runner.catalog.copies import copied_info, files_of
from runner.catalog.discover import Entry, catalog_root, list_entries
from runner.catalog.names import is_name
from runner.catalog.published import Published, published
from runner.catalog.scaffold import Decision, UnknownFacts, draft
from runner.catalog.scaffold import Wish as Scaffolded
from runner.compose.choices import TRADES, Choice, Trade, of_kind, of_recipe, ordered
from runner.compose.folder import CONFIG, Composed, recipe_beside
from runner.compose.known import recipe_of
from runner.compose.plain_passes import plain_passes
from runner.compose.subject import Subject
from runner.engine.capacity import memory
from runner.engine.estimate import estimate_config
from runner.engine.plan import Request
from runner.errors import DoesNotFit, InvalidRecipe, Problem, UsageError
from runner.passes.table import options_of
from runner.recipe.document import Node, Origin
from runner.recipe.info import Info
from runner.recipe.load import load_config
from runner.recipe.quantities import short_size
from runner.recipe.yaml_text import with_value, without
from runner.targets.target import TARGETS, Target, target_name
from runner.templating.clone import Clone, clone_of
from runner.templating.kinds import kind_of
from runner.templating.pipeline import render_config
from runner.templating.sample_data import sample_files

_SCRIPT = "user_script.py"
_OWN = ("info.yml", "info.yaml", "README.md")


@dataclass(frozen=True)
class Wish:
    """What was asked for; what is None is decided.

    Attributes:
        subject: the model.
        output: folder for the result.
        target: what the model is made for; the CPU when None.
        precision: precision or scheme, such as ``int4`` or ``int8-static``.
        trade: what matters most; the recipe's own default when None.
        max_memory: bytes that the run may use; all of the machine's when None.
        overrides: `path=value` texts, laid over the configuration.
        catalog: folder of recipes; the nearest when None.
        command: the command, as README.md of the recipe tells it.
        offline, trust, smoke, threads, no_cache: see `runner.engine.plan.Request`.
    """

    subject: Subject
    output: Path | None = None
    target: Target | None = None
    precision: str | None = None
    trade: Trade | None = None
    max_memory: int | None = None
    overrides: Sequence[str] = ()
    catalog: Path | None = None
    command: str = ""
    offline: bool = False
    trust: bool = False
    smoke: bool = False
    threads: int | None = None
    no_cache: bool = False


@dataclass(frozen=True)
class Decided:
    """What is going to be done.

    Attributes:
        composed: the recipe that was written beside the output.
        request: the run.
        recipe: the catalogue's recipe that it is from; None where there is none.
    """

    composed: Composed
    request: Request
    recipe: str | None


@dataclass
class _Told:
    """Collects what was decided, and what people should know."""

    decisions: list[Decision] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def decide(self, what: str, choice: str, why: str) -> None:
        self.decisions.append(Decision(what, choice, why))


def decide(wish: Wish, say: Callable[[str], None] = lambda _: None) -> Decided:
    """Decides what was not asked for, writes the recipe beside the output, and returns the run.

    Args:
        wish: what was asked for.
        say: told what is being done.

    Raises:
        UsageError: something that was asked for does not exist, or does not go together.
        DoesNotFit: nothing that was asked for fits the memory.
        InvalidRecipe: an override does not fit.
    """
    if wish.trade is not None and wish.trade not in TRADES:
        raise UsageError("unknown-trade", f"there is no trade '{wish.trade}'", f"there are: {', '.join(TRADES)}")
    subject, target, told = wish.subject, wish.target or TARGETS["cpu"], _Told()
    known = _published(subject, wish, say) if subject.kind == "hf" else None
    if known is not None and subject.task is None:
        subject = replace(subject, task=known.twin.task)
    told.decide("model", subject.word or str(subject.details.get("model_script")), _what(subject, known))
    root = catalog_root(wish.catalog)
    clone, entries = clone_of(root / "recipe"), list_entries(root).entries
    found = recipe_of(subject, known, entries)
    if found is not None and subject.task not in (None, found[0].info.model.task):
        told.notes.append(f"the catalogue's recipe {found[0].info.name} is for {found[0].info.model.task}")
        found = None
    entry = found[0] if found else None
    if found is not None:
        told.decide("recipe", found[0].info.name, found[1])
    told.decide("target", target.name, "asked for" if wish.target else "nothing else was asked for")
    choices = _choices(subject, known, entry, target, clone)
    if not choices:
        composed = _plain(wish, subject, known, target, told)
        return Decided(composed, _request(wish, composed, subject, None, trusted=subject.kind == "pytorch"), None)
    best = _fitting(ordered(choices, wish.precision, wish.trade, target), entry, subject, wish, told, clone)
    composed = _from_recipe(wish, subject, entry, best, told, clone) if entry else _scaffolded(wish, subject, best, told, clone)
    info = Info.model_validate(yaml.safe_load(composed.info)) if composed.info else None
    return Decided(composed, _request(wish, composed, subject, info, trusted=True), entry.info.name if entry else None)


def _published(subject: Subject, wish: Wish, say: Callable[[str], None]) -> Published | None:
    """What is known of a model; None where its architecture is not."""
    try:
        return published(subject.word, subject.task, wish.offline, say)
    except InvalidRecipe as error:
        if error.problems[0].rule != "no-tiny-twin":
            raise
        if subject.folder is not None:
            return None
        raise UsageError(
            "unknown-architecture",
            f"nothing here says what architecture {subject.word} has, and the hub was not reached",
            "name a folder with its config.json, or go online",
        ) from None


def _what(subject: Subject, known: Published | None) -> str:
    if subject.kind == "onnx":
        return "an ONNX graph"
    if subject.kind == "pytorch":
        return "a PyTorch module of a script"
    if subject.kind == "diffusers":
        return "a pipeline that draws"
    architecture = f"a {known.twin.model_type}, " if known else ""
    return f"{architecture}for {subject.task}"


def _choices(subject: Subject, known: Published | None, entry: Entry | None, target: Target, clone: Clone) -> list[Choice]:
    if entry is not None:
        return of_recipe(entry, kind_of(entry.info.model.task, entry.info.arch), target, clone)
    if known is None or subject.task is None:
        return []
    kind = kind_of(subject.task, known.twin.model_type)
    return of_kind(kind, subject.task, known.twin.model_type, target, clone) if kind else []


# --- which of them fits ------------------------------------------------------------------------------------------------


def _fitting(choices: Sequence[Choice], entry: Entry | None, subject: Subject, wish: Wish, told: _Told, clone: Clone) -> Choice:
    """Returns the first choice whose making fits the memory, and says why it is that one."""
    there = memory()
    limit = min(wish.max_memory or there.limit, there.limit)
    by = "--max-memory" if wish.max_memory and wish.max_memory < there.limit else there.limited_by
    passed: list[str] = []
    for choice in choices:
        needed = None if wish.smoke or entry is None else _needed(choice, entry.info, clone)
        if needed is not None and needed > limit:
            passed.append(f"{choice.scheme} needs about {short_size(needed)} of memory, more than {by}, {short_size(limit)}")
            continue
        _tell(choice, wish, passed, told)
        return choice
    raise DoesNotFit(
        *(Problem("too-little-memory", one) for one in passed[:-1]),
        Problem(
            "too-little-memory",
            passed[-1],
            remedy="take a smaller model or a bigger machine"
            + (", or raise --max-memory" if wish.max_memory else "")
            + (", or leave --precision open" if wish.precision else ""),
        ),
    )


def _needed(choice: Choice, info: Info, clone: Clone) -> int | None:
    config = json.loads(render_config(info, choice.variant, clone))
    needs = estimate_config(config, info, choice.variant.ep)
    return needs.memory if needs else None


def _tell(choice: Choice, wish: Wish, passed: Sequence[str], told: _Told) -> None:
    asked = {
        "size": "fewest bits a weight",
        "speed": "fastest of those measured, else fewest bits",
        "quality": "smallest that keeps the quality" if choice.keeps else "nothing keeps more",
    }
    why = asked[wish.trade] if wish.trade else "the recipe's default" if choice.of_recipe else "the usual one for its kind"
    if wish.precision:
        why = "asked for" + (f"; {why}" if wish.trade or choice.scheme != wish.precision else "")
    told.decide("precision", choice.precision, "; ".join([why, *passed]))
    measured = f"; {choice.why_measured()}" if choice.of_recipe else ""
    origin = f"variant {choice.variant.name} of the recipe" if choice.of_recipe else "from the pipelines for its kind of model"
    told.decide("pipeline", str(choice.variant.pipeline), f"{origin}{measured}")
    for metric, bar in choice.variant.gates.items():
        told.decide("must reach", f"{metric} {bar}", "'recipe bench' on the recipe's folder measures it")


# --- the recipe's folder -----------------------------------------------------------------------------------------------


def _output(wish: Wish, subject: Subject, target: Target, scheme: str) -> Path:
    return wish.output or Path("models") / f"{subject.name}-{target_name(target.provider)}-{scheme}"


def _from_recipe(wish: Wish, subject: Subject, entry: Entry, choice: Choice, told: _Told, clone: Clone) -> Composed:
    """A copy of the catalogue's recipe with the one variant, which remembers where it is from."""
    folder = recipe_beside(_output(wish, subject, _target(choice), choice.scheme))
    text, notes = copied_info(entry, _free_name(folder, subject), None)
    text = _with_only(text, entry.info, choice)
    info = Info.model_validate(yaml.safe_load(text))
    rendered = {variant.file for variant in entry.info.recipes}
    files = {
        name: path.read_bytes()
        for name, path in files_of(entry.folder)
        if name not in rendered and path.name not in _OWN and not name.startswith("requirements")
    }
    return _written(wish, subject, folder, info, text, choice, files, told, clone, [*told.notes, *notes])


def _with_only(text: str, info: Info, choice: Choice) -> str:
    """Returns info.yml with one variant, whose config is the folder's olive_config.json."""
    at = next((number for number, one in enumerate(info.recipes) if one.name == choice.variant.name), 0)
    for number in reversed(range(len(info.recipes))):
        if number != at:
            text = without(text, ("recipes", number))
    if not choice.of_recipe:
        for key in ("settings", "gates"):
            text = without(text, ("recipes", 0, key))
        for key in ("name", "device", "ep", "precision", "pipeline"):
            text = with_value(text, ("recipes", 0, key), getattr(choice.variant, key))
    return with_value(text, ("recipes", 0, "file"), CONFIG)


def _scaffolded(wish: Wish, subject: Subject, choice: Choice, told: _Told, clone: Clone) -> Composed:
    """A new recipe of a model that the catalogue does not know, from the pipelines for its kind."""
    target = _target(choice)
    folder = recipe_beside(_output(wish, subject, target, choice.scheme))
    root = catalog_root(wish.catalog)
    asked = Scaffolded(
        subject.word,
        targets=(target,),
        precisions=(choice.scheme,),
        name=_free_name(folder, subject),
        task=subject.task,
        offline=wish.offline,
        force=True,
    )
    try:
        made = draft(asked, root, clone)
    except UnknownFacts as error:
        unknown = {"licence": "unknown", "parameters": None, "context_length": None}
        made = draft(replace(asked, facts={name: unknown[name] for name in error.names}), root, clone)
        told.notes.append(f"nothing here says the {' and the '.join(error.names)} of the model: info.yml leaves that open")
    told.notes += made.notes
    info = Info.model_validate(yaml.safe_load(made.info))
    files = {f"sample_data/{name}": content for name, content in sample_files(info.samples, clone)}
    if made.script is not None:
        files[_SCRIPT] = made.script.encode()
    return _written(wish, subject, folder, info, made.info, choice, files, told, clone, told.notes, made.folder.parent.name)


def _written(
    wish: Wish,
    subject: Subject,
    folder: Path,
    info: Info,
    text: str,
    choice: Choice,
    files: dict[str, bytes],
    told: _Told,
    clone: Clone,
    notes: Sequence[str],
    family: str | None = None,
) -> Composed:
    config = json.loads(render_config(info, info.recipes[0], clone))
    elsewhere = subject.folder is not None and info.model.id != subject.word
    if subject.details:  # an adapter: the catalogue has no place for it
        model = {**config["input_model"], "model_path": subject.word, **subject.details}
        config = {**config, "input_model": model, "passes": {"merge": {"type": "MergeAdapterWeights"}, **config["passes"]}}
        elsewhere = False
    composed = Composed(
        folder,
        config,
        _target(choice),
        f"{info.title or info.name}: {choice.precision} for {_target(choice).name}",
        wish.command,
        tuple(told.decisions),
        tuple(dict.fromkeys(notes)),
        None if subject.details else text,
        family or info.arch,
        f"--model-path {subject.word}" if elsewhere else "",
        files,
    )
    composed.write()
    return composed


def _plain(wish: Wish, subject: Subject, known: Published | None, target: Target, told: _Told) -> Composed:
    """A configuration without a place in the catalogue: of an ONNX file, a script, an architecture without recipes."""
    precision = wish.precision or {"size": "int4", "speed": "int8", "quality": "fp32", None: "int8"}[wish.trade]
    if target.name != "cpu" and not wish.precision:
        precision = "int4" if wish.trade == "size" else "fp16"
    passes = plain_passes(subject, known.twin.model_type if known else None, precision, target)
    if subject.details.get("adapter_path"):
        passes = {"merge": {"type": "MergeAdapterWeights"}, **passes}
    told.decide("precision", precision, "asked for" if wish.precision else "what is safe without calibration data")
    chain = " > ".join(step["type"] for step in passes.values())
    told.decide("passes", chain, "no pipeline of the catalogue serves such a model")
    config = {
        "input_model": subject.input_model(),
        "systems": {
            "local_system": {
                "type": "LocalSystem",
                "accelerators": [{"device": target.device, "execution_providers": [target.provider]}],
            }
        },
        "passes": passes,
        "host": "local_system",
        "target": "local_system",
        "evaluate_input_model": False,
    }
    folder = recipe_beside(_output(wish, subject, target, precision))
    composed = Composed(
        folder, config, target, f"{subject.name}: {precision} for {target.name}", wish.command,
        tuple(told.decisions), tuple(told.notes), run_options="--trust" if subject.kind == "pytorch" else "",
    )  # fmt: skip
    composed.write()
    return composed


def _target(choice: Choice) -> Target:
    return next(target for target in TARGETS.values() if target.provider == choice.variant.ep)


def _free_name(folder: Path, subject: Subject) -> str:
    """A name that the recipe can have in the catalogue: after the folder of the output, which is the user's own choice."""
    own = folder.name.removesuffix("-recipe").lower()
    return own if is_name(own) else f"{subject.name}-optimized"


# --- the run -----------------------------------------------------------------------------------------------------------


def _request(wish: Wish, composed: Composed, subject: Subject, info: Info | None, trusted: bool) -> Request:
    def adjust(root: Node) -> Node:
        if info is None or subject.folder is None or info.model.id == subject.word:
            return root
        model = root.members["input_model"]
        path = Node(subject.word, Origin("--model_name_or_path"))
        return root.with_members(input_model=model.with_members(model_path=path))

    loaded = load_config([composed.config_file], options_of, wish.overrides, adjust)
    output = composed.folder.with_name(composed.folder.name.removesuffix("-recipe"))
    return Request(
        loaded,
        info=info,
        variant=info.recipes[0].name if info else None,
        inside_catalogue=trusted,
        smoke=wish.smoke,
        offline=wish.offline,
        trust=wish.trust,
        no_cache=wish.no_cache,
        threads=wish.threads,
        output_dir=output,
    )


def told_plainly(decided: Decided) -> dict[str, Any]:
    """Returns what was decided, as JSON data."""
    return {
        "recipe": decided.recipe,
        "folder": str(decided.composed.folder),
        "decisions": [{"what": one.what, "choice": one.choice, "why": one.why} for one in decided.composed.decisions],
        "notes": list(decided.composed.notes),
    }
