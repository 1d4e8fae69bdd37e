"""One command from a model to an optimised model: which recipe, for which target, in which precision, and why."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from runner.catalog.copies import copied_info
from runner.catalog.discover import OWN_CATALOG, Entry, catalog_root
from runner.catalog.names import is_name
from runner.catalog.scaffold import Decision, UnknownFacts, draft
from runner.catalog.scaffold import Wish as Scaffolded
from runner.compose.choices import TRADES, Choice, Trade, ordered
from runner.compose.folder import CONFIG, Composed, files_of_recipe, overridden, recipe_beside
from runner.compose.known import Known, look_up
from runner.compose.offers import offers
from runner.compose.plain_passes import plain_passes
from runner.compose.request import make_request
from runner.compose.single_step import config_of, merged_first
from runner.compose.subject import Subject
from runner.engine.capacity import memory
from runner.engine.estimate import estimate_config
from runner.engine.publish import check_writable
from runner.engine.request import Request
from runner.errors import DoesNotFit, Problem, UsageError
from runner.recipe.info import Info
from runner.recipe.quantities import short_size
from runner.recipe.yaml_text import with_value, without
from runner.targets.target import TARGETS, Target, target_name
from runner.templating.clone import Clone, clone_of
from runner.templating.pipeline import render_config
from runner.templating.sample_data import sample_files

_SCRIPT = "user_script.py"


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
        offline, trust, smoke, threads, no_cache: see `runner.engine.request.Request`.
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
        StoreError: the output cannot be written.
    """
    if wish.trade is not None and wish.trade not in TRADES:
        raise UsageError("unknown-trade", f"there is no trade '{wish.trade}'", f"there are: {', '.join(TRADES)}")
    target, clone = wish.target or TARGETS["cpu"], clone_of(catalog_root(wish.catalog) / "recipe")
    known = look_up(wish.subject, wish.catalog, wish.offline, say)
    subject, told = known.subject, _Told(notes=list(known.notes))
    if subject.kind == "hf" and known.twin is None and subject.folder is None:
        raise UsageError(
            "unknown-architecture",
            f"nothing here says what architecture {subject.word} has, and the hub was not reached",
            "name a folder with its config.json, or go online",
        )
    told.decide("model", subject.word or str(subject.details.get("model_script")), _what(known))
    if known.entry is not None:
        told.decide("recipe", known.entry.info.name, known.why)
    told.decide("target", target.name, "asked for" if wish.target else "nothing else was asked for")
    choices = offers(known, target, clone).choices
    if not choices:
        return Decided(*_plain(wish, known, target, told), None)
    best = _fitting(ordered(choices, wish.precision, wish.trade, target), known.entry, wish, told, clone)
    if known.entry is not None:
        return Decided(*_from_recipe(wish, known, known.entry, best, told, clone), known.entry.info.name)
    return Decided(*_scaffolded(wish, known, best, told, clone), None)


def _what(known: Known) -> str:
    kinds = {"onnx": "an ONNX graph", "pytorch": "a PyTorch module of a script", "diffusers": "a pipeline that draws"}
    architecture = f"a {known.architecture}, " if known.architecture else ""
    return kinds.get(known.subject.kind) or f"{architecture}for {known.subject.task}"


# --- which of them fits ------------------------------------------------------------------------------------------------


def _fitting(choices: Sequence[Choice], entry: Entry | None, wish: Wish, told: _Told, clone: Clone) -> Choice:
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


def _output(wish: Wish, subject: Subject, scheme: str) -> Path:
    """Returns where the model goes.

    Raises:
        StoreError: it cannot be written; nothing was, so far.
    """
    output = wish.output or Path("models") / f"{subject.name}-{scheme}"
    check_writable(output.expanduser().absolute())
    return output


def _from_recipe(wish: Wish, known: Known, entry: Entry, choice: Choice, told: _Told, clone: Clone) -> tuple[Composed, Request]:
    """A copy of the catalogue's recipe with the one variant, which remembers where it is from."""
    folder = recipe_beside(_output(wish, known.subject, choice.variant.name))
    text, notes = copied_info(entry, _free_name(folder, known.subject), None)
    told.notes += notes
    return _written(wish, known, folder, _with_only(text, entry.info, choice), choice, files_of_recipe(entry), told, clone)


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


def _scaffolded(wish: Wish, known: Known, choice: Choice, told: _Told, clone: Clone) -> tuple[Composed, Request]:
    """A new recipe of a model that the catalogue does not know, from the pipelines for its kind."""
    subject = known.subject
    folder = recipe_beside(_output(wish, subject, choice.variant.name))
    root = catalog_root(wish.catalog)
    asked = Scaffolded(
        subject.word,
        targets=(_target(choice),),
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
    samples = Info.model_validate(yaml.safe_load(made.info)).samples
    files = {f"sample_data/{name}": content for name, content in sample_files(samples, clone)}
    if made.script is not None:
        files[_SCRIPT] = made.script.encode()
    return _written(wish, known, folder, made.info, choice, files, told, clone, made.folder.parent.name)


def _written(
    wish: Wish,
    known: Known,
    folder: Path,
    text: str,
    choice: Choice,
    files: dict[str, bytes],
    told: _Told,
    clone: Clone,
    family: str | None = None,
) -> tuple[Composed, Request]:
    """Writes the folder and returns it with the run.

    A config that is not what the pipeline gives (an adapter goes in first, options were set) is kept by hand from then on.
    """
    subject, info = known.subject, Info.model_validate(yaml.safe_load(text))
    config = json.loads(render_config(info, info.recipes[0], clone))
    if subject.details:  # an adapter
        model = {**config["input_model"], **subject.details}
        config = {**config, "input_model": model, "passes": merged_first(known, config["passes"])}
    if subject.details or wish.overrides:
        text = without(text, ("recipes", 0, "pipeline"))
        text = without(text, ("recipes", 0, "settings"))
        config = overridden(config, wish.overrides)
    elsewhere = subject.folder is not None and info.model.id != subject.word
    composed = Composed(
        folder,
        config,
        _target(choice),
        f"{info.title or info.name}: {choice.precision} for {_target(choice).name}",
        wish.command,
        tuple(told.decisions),
        tuple(dict.fromkeys(told.notes)),
        text,
        family or (known.entry.family if known.entry else None),
        f"--model-path {subject.word}" if elsewhere else "",
        files,
    )
    composed.write()
    ours = catalog_root(wish.catalog) == OWN_CATALOG  # scripts of another catalogue need --trust
    return composed, _request(wish, composed, subject.word if elsewhere else None, trusted=ours)


def _plain(wish: Wish, known: Known, target: Target, told: _Told) -> tuple[Composed, Request]:
    """A configuration without a place in the catalogue: of an ONNX file, a script, an architecture without recipes."""
    subject = known.subject
    usual = {"size": "int4", "speed": "int8", "quality": "fp32", None: "int8"}
    if target.name != "cpu":
        usual = {"size": "int4", "speed": "fp16", "quality": "fp16", None: "fp16"}
    precision = wish.precision or usual[wish.trade]
    passes = merged_first(known, plain_passes(subject, known.architecture or None, precision, target))
    told.decide("precision", precision, "asked for" if wish.precision else "what is safe without calibration data")
    chain = " > ".join(step["type"] for step in passes.values())
    told.decide("passes", chain, "no pipeline of the catalogue serves such a model")
    output = _output(wish, subject, f"{target_name(target.provider)}-{precision}")
    scripted = subject.kind == "pytorch"
    composed = Composed(
        recipe_beside(output),
        overridden(config_of(subject, passes, target, output), wish.overrides),
        target,
        f"{subject.name}: {precision} for {target.name}",
        wish.command,
        tuple(told.decisions),
        tuple(told.notes),
        run_options="--trust" if scripted else "",
    )
    composed.write()
    return composed, _request(wish, composed, None, trusted=scripted)


def _target(choice: Choice) -> Target:
    return next(target for target in TARGETS.values() if target.provider == choice.variant.ep)


def _free_name(folder: Path, subject: Subject) -> str:
    """A name that the recipe can have in the catalogue: after the folder of the output, which is the user's own choice."""
    own = folder.name.removesuffix("-recipe").lower()
    return own if is_name(own) else f"{subject.name}-optimized"


# --- the run -----------------------------------------------------------------------------------------------------------


def _request(wish: Wish, composed: Composed, model_path: str | None, trusted: bool) -> Request:
    output = composed.folder.with_name(composed.folder.name.removesuffix("-recipe"))
    request = make_request(
        str(composed.folder),
        catalog=wish.catalog,
        model_path=model_path,
        smoke=wish.smoke,
        offline=wish.offline,
        trust=wish.trust,
        threads=wish.threads,
        output_dir=output,
        no_cache=wish.no_cache,
    )
    return replace(request, inside_catalogue=trusted)
