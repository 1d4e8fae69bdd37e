"""A new recipe: what is decided of a model that nobody listed, and the folder that follows from it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from runner.catalog.discover import Entry, list_entries, quick_info
from runner.catalog.licences import licence_named
from runner.catalog.names import NAME_REMEDY, is_name
from runner.catalog.published import Fact, Published, download_from, published
from runner.errors import InvalidRecipe, RecipeError, UsageError, did_you_mean, nearest
from runner.models.tasks import TASKS, WITH_PAST
from runner.models.twin import KNOWN
from runner.models.twin_table import Twin
from runner.recipe.folder import info_file
from runner.recipe.info import Info
from runner.recipe.yaml_text import scalar
from runner.targets.target import TARGETS, Target, target_name
from runner.templating.clone import PIPELINE_SUFFIX, Clone
from runner.templating.environment import render
from runner.templating.kinds import KINDS, Kind, kind_named, kind_of, precision_of, scheme_for, schemes
from runner.templating.pipeline import render_config
from runner.templating.recipe import Rendering, render_recipe

MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HANDLE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,37}[A-Za-z0-9])?")
_SCRIPT = "user_script.py"
_FLAGS = {"parameters": "--parameters N", "context_length": "--context-length N", "licence": "--licence NAME"}
FACTS = ("parameters", "context_length", "licence", "gated", "download_mb")


@dataclass(frozen=True)
class Wish:
    """What was asked for; what is None or empty is decided.

    Attributes:
        model: a Hugging Face id, or a folder with a config.json.
        targets: what the variants run on; CPU when none is named.
        precisions: precisions or schemes, such as ``int4`` or ``int8-static``.
        family: folder that holds the recipe's.
        name: the recipe's id.
        task: Hugging Face task.
        pipeline: a template for all variants.
        facts: facts of the model that the user knows, by their names in info.yml.
        offline: ask nobody.
        force: write into a folder that is there already.
    """

    model: str
    targets: Sequence[Target] = ()
    precisions: Sequence[str] = ()
    family: str | None = None
    name: str | None = None
    task: str | None = None
    pipeline: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    offline: bool = False
    force: bool = False


@dataclass(frozen=True)
class Decision:
    """One thing that was decided, and why."""

    what: str
    choice: str
    why: str


@dataclass(frozen=True)
class Draft:
    """A recipe that is ready to be written.

    Attributes:
        folder: where it goes.
        info: its info.yml, as text.
        script: its user script; None where it needs none.
        decisions: what was decided.
        notes: what people should know, and what is left to them.
        clone: where the templates are.
    """

    folder: Path
    info: str
    script: str | None
    decisions: tuple[Decision, ...]
    notes: tuple[str, ...]
    clone: Clone

    @property
    def name(self) -> str:
        """Returns the recipe's id."""
        return self.folder.name

    def write(self) -> None:
        """Writes info.yml, the user script where it needs one and none is there, and everything that is rendered from them.

        What was rendered from an info.yml that lies there is taken away first.
        """
        self._remove_rendered()
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "info.yml").write_text(self.info, encoding="utf-8", newline="\n")
        if self.script is not None and not (self.folder / _SCRIPT).exists():
            (self.folder / _SCRIPT).write_text(self.script, encoding="utf-8", newline="\n")
        for rendering in self._renderings(Info.model_validate(yaml.safe_load(self.info))):
            rendering.write()

    def _remove_rendered(self) -> None:
        file = info_file(self.folder)
        if file is None:
            return
        with suppress(InvalidRecipe):  # of a file that is not valid nothing is known to be rendered
            for rendering in self._renderings(quick_info(file)):
                rendering.path.unlink(missing_ok=True)
        file.unlink()

    def _renderings(self, info: Info) -> list[Rendering]:
        return render_recipe(self.folder, self.folder.parent.name, info, self.clone)


class UnknownFacts(UsageError):
    """Facts of the model that info.yml must state are not known here; `names` are those facts."""

    def __init__(self, model: str, names: Sequence[str]) -> None:
        self.names = tuple(names)
        flags = " and ".join(_FLAGS[name] for name in names)
        super().__init__(
            "facts-unknown",
            f"nothing here says the {' and the '.join(names)} of {model}",
            f"look at its model card and add {flags}",
        )


def draft(wish: Wish, root: Path, clone: Clone, say: Callable[[str], None] = lambda _: None) -> Draft:
    """Decides what was not asked for and returns the recipe; writes nothing.

    Args:
        wish: what was asked for.
        root: the catalogue's folder.
        clone: where the templates are.
        say: told what is being done.

    Raises:
        UsageError: something that was asked for does not exist, does not go together or is there already; an
            `UnknownFacts` where flags must state facts.
        InvalidRecipe: no architecture is known for the model.
    """
    _check_words(wish)
    try:
        known = published(wish.model, wish.task, wish.offline, say)
    except InvalidRecipe as error:
        raise _unknown_architecture(wish.model, error) from None
    name = wish.name or _name_of(wish.model)
    entries = list_entries(root).entries
    family, why_family = (wish.family, "asked for") if wish.family else _family_of(name, known.twin, entries)
    folder = root / family / name
    _refuse_taken(folder, name, wish, entries)
    task, why_task = _task_of(wish, known.twin)
    kind = _kind_for(wish, task, known.twin)
    facts = _facts_of(wish, known, task)
    variants = list(_variants_of(wish, kind, task, known, clone))
    dropped = list(_dropped(wish, kind, known.twin, clone))
    context = _context(wish, name, folder, known, kind, task, facts, variants, clone)
    text = render(clone.templates, "recipe/info.yml.j2", context)
    configs = _configs(text, clone)
    decisions = (
        Decision("architecture", known.twin.model_type, "the nearest family" if known.twin.stands_in else _origin_of(known)),
        Decision("task", task, why_task),
        Decision("family", family, why_family),
        *(Decision(fact, _plainly(facts[fact].value), facts[fact].why) for fact in FACTS if fact in facts),
        *(Decision("variant", one["name"], f"{one['ep']}, pipeline {one['pipeline']}") for one in variants),
    )
    script = render(clone.templates, "recipe/user_script.py.j2", {}) if _SCRIPT in "".join(configs) else None
    return Draft(folder, text, script, decisions, (*known.notes, *dropped), clone)


def _unknown_architecture(model: str, error: InvalidRecipe) -> RecipeError:
    if error.problems[0].rule != "no-tiny-twin":
        return error
    near = nearest(model, [twin.pattern for twin in KNOWN])
    return UsageError(
        "unknown-architecture",
        f"nothing here says what architecture {model} has, and the hub was not reached",
        (f"did you mean one of {near}? " if near else "") + "take a folder with its config.json as --model, or go online",
    )


def _check_words(wish: Wish) -> None:
    if not (Path(wish.model) / "config.json").is_file() and not MODEL_ID.fullmatch(wish.model):
        remedy = "write it as Org/Name, as in ibm-granite/granite-3.3-2b-instruct, or name a folder with a config.json"
        raise UsageError("bad-model-id", f"'{wish.model}' is neither a Hugging Face id nor such a folder", remedy)
    for flag, text in (("--name", wish.name), ("--family", wish.family)):
        if text is not None and not is_name(text):
            cause = f"{flag}: '{text}' cannot be the name of a folder here"
            raise UsageError(
                "bad-name",
                cause,
                NAME_REMEDY,
            )
    if wish.task is not None and wish.task.removesuffix(WITH_PAST) not in TASKS:
        raise UsageError("unknown-task", f"there is no task '{wish.task}'", did_you_mean(wish.task, TASKS))


def _name_of(model: str) -> str:
    plain = re.sub(
        r"[^a-z0-9._-]+", "-", Path(model).resolve().name.lower() if Path(model).is_dir() else model.lower().rpartition("/")[2]
    )
    return plain.strip("-._")


def _family_of(name: str, twin: Twin, entries: Sequence[Entry]) -> tuple[str, str]:
    """The family whose name the recipe's begins with, else the one that the architecture is called after, else a new one."""
    families = sorted({entry.family for entry in entries if entry.family}, key=len, reverse=True)
    for family in families:
        if name.startswith(family):
            return family, "the name begins with it"
    for family in families:
        if twin.model_type.startswith(family):
            return family, f"the architecture is {twin.model_type}"
    word = re.match(r"[a-z]+(?:-[a-z]+)*", twin.model_type.lower())
    return (word[0] if word else name), "no family is there for it yet"


def _refuse_taken(folder: Path, name: str, wish: Wish, entries: Sequence[Entry]) -> None:
    elsewhere = next((entry for entry in entries if name in (entry.info.name, *entry.info.aliases)), None)
    if elsewhere is not None and elsewhere.folder.resolve() != folder.resolve():
        raise UsageError("name-taken", f"there is a recipe '{name}' in {elsewhere.folder}", "give another with --name")
    if folder.exists() and not wish.force:
        raise UsageError("folder-exists", f"{folder} is there already", "give another --name, or write into it with --force")


def _task_of(wish: Wish, twin: Twin) -> tuple[str, str]:
    if wish.task:
        return wish.task.removesuffix(WITH_PAST), "asked for"
    return twin.task, "what the architecture is for" if not twin.stands_in else "what its nearest family is for"


def _kind_for(wish: Wish, task: str, twin: Twin) -> Kind:
    """The kind whose pipelines serve the model; where a template was named, the one that its name begins with."""
    if wish.pipeline:
        return kind_of(task, twin.model_type) or kind_named(wish.pipeline) or KINDS[0]
    kind = kind_of(task, twin.model_type)
    if kind is None:
        served = "; ".join(f"{one.name}: {', '.join(one.tasks)}" for one in KINDS)
        raise UsageError(
            "no-pipeline",
            f"no pipeline serves {task} of a {twin.model_type} yet",
            f"write one as templates/pipelines/NAME{PIPELINE_SUFFIX} and name it with --template NAME; served: {served}",
        )
    return kind


def _facts_of(wish: Wish, known: Published, task: str) -> dict[str, Fact]:
    facts = dict(known.facts)
    facts |= {
        name: Fact(value, "model card", "given on the command line") for name, value in wish.facts.items() if value is not None
    }
    reads = TASKS[task].reads if task in TASKS else ()
    needed = [name for name in _FLAGS if name != "context_length" or ("text" in reads and "image" not in reads)]
    unknown = [name for name in needed if name not in facts]
    if unknown:
        raise UnknownFacts(wish.model, unknown)
    licence = facts["licence"]
    facts["licence"] = Fact(licence_named(licence.value).name, licence.source, licence.why)
    facts.setdefault("gated", Fact(False, "hub", "taken to be open: look at its page"))
    if "download_mb" not in facts:
        facts["download_mb"] = download_from(facts["parameters"].value, task)
    return facts


def _variants_of(wish: Wish, kind: Kind, task: str, known: Published, clone: Clone) -> Iterator[dict[str, Any]]:
    """The variants: every target with every precision, where a pipeline serves both.

    Raises:
        UsageError: no pipeline serves a precision on any target, or the template is unknown or made for another target.
    """
    chosen = _of_template(wish, clone) if wish.pipeline else list(_products(wish, kind, known.twin, clone))
    for number, (target, scheme, pipeline) in enumerate(chosen):
        name = f"{target_name(target.provider)}-{scheme}"
        gate = kind.gate(task, scheme, target)
        yield {
            "name": name,
            "file": f"olive_config.{name}.json" if number else "olive_config.json",
            "device": target.device,
            "ep": target.provider,
            "precision": precision_of(scheme),
            "pipeline": pipeline,
            "settings": {},
            "gates": dict([gate]) if gate else {},
        }


def _of_template(wish: Wish, clone: Clone) -> list[tuple[Target, str, str]]:
    pipeline = str(wish.pipeline)
    if pipeline not in clone.pipelines:
        raise UsageError("unknown-pipeline", f"there is no pipeline '{pipeline}'", did_you_mean(pipeline, clone.pipelines))
    target = next((one for one in TARGETS.values() if f"-{target_name(one.provider)}-" in pipeline), None)
    wanted = list(wish.targets) or [target or TARGETS["cpu"]]
    scheme = pipeline.partition(f"-{target_name(target.provider)}-")[2] if target else (wish.precisions or ["fp32"])[0]
    wrong = [one.name for one in wanted if target is not None and one is not target]
    if wrong:
        raise UsageError(
            "wrong-target", f"the pipeline {pipeline} is not made for {wrong[0]}", "name another --template, or none"
        )
    if wish.precisions and precision_of(scheme) not in map(precision_of, wish.precisions):
        cause = f"the pipeline {pipeline} makes {precision_of(scheme)}, not {', '.join(wish.precisions)}"
        raise UsageError("wrong-precision", cause, "name another --template, or none")
    return [(one, scheme, pipeline) for one in wanted]


def _products(wish: Wish, kind: Kind, twin: Twin, clone: Clone) -> Iterator[tuple[Target, str, str]]:
    targets = list(wish.targets) or [TARGETS["cpu"]]
    asked = list(wish.precisions) or [_first_scheme(kind, targets[0], clone)]
    for precision in asked:
        if not any(scheme_for(precision, kind, twin.model_type, target, clone.pipelines) for target in targets):
            raise _no_such_precision(precision, kind, targets, clone)
    seen = set()
    for target in targets:
        served = schemes(kind, target, clone.pipelines)
        for precision in asked:
            scheme = scheme_for(precision, kind, twin.model_type, target, clone.pipelines)
            if scheme is not None and (target.name, scheme) not in seen:
                seen.add((target.name, scheme))
                yield target, scheme, served[scheme]


def _first_scheme(kind: Kind, target: Target, clone: Clone) -> str:
    served = schemes(kind, target, clone.pipelines)
    return next((one for one in ("int4", "int8", "int8-dynamic", "fp16") if one in served), next(iter(served), "fp32"))


def _no_such_precision(precision: str, kind: Kind, targets: Sequence[Target], clone: Clone) -> UsageError:
    there = {target.name: list(schemes(kind, target, clone.pipelines)) for target in targets}
    known = sorted({scheme for names in there.values() for scheme in names})
    listed = "; ".join(f"{name}: {', '.join(names) or 'none'}" for name, names in there.items())
    cause = f"no pipeline makes {precision} of {_article(kind)} on {' or '.join(there)}"
    near = did_you_mean(precision, known)
    return UsageError("unknown-precision", cause, f"there are {listed}" + (f"; {near}" if near.startswith("did") else ""))


def _article(kind: Kind) -> str:
    return f"a model of kind {kind.name}"


def _dropped(wish: Wish, kind: Kind, twin: Twin, clone: Clone) -> Iterator[str]:
    """What of the product of targets and precisions was left out, since no pipeline serves it."""
    if wish.pipeline:
        return
    for target in wish.targets:
        for precision in wish.precisions:
            if scheme_for(precision, kind, twin.model_type, target, clone.pipelines) is None:
                yield f"left out: no pipeline makes {precision} of {_article(kind)} on {target.name}"
    if twin.model_type.startswith("gemma") and "fp16" in wish.precisions:
        yield "Gemma loses accuracy in fp16: measure it, or take bf16 on CUDA"


def _context(
    wish: Wish,
    name: str,
    folder: Path,
    known: Published,
    kind: Kind,
    task: str,
    facts: Mapping[str, Fact],
    variants: Sequence[dict[str, Any]],
    clone: Clone,
) -> dict[str, Any]:
    """What templates/recipe/info.yml.j2 asks for; texts as YAML writes them."""
    key, path = kind.evaluation
    evaluation: dict[str, Any] = {key: path}
    if kind.windows:
        evaluation["windows"] = kind.windows
    prompt = "The capital of France is [MASK]." if task == "fill-mask" else kind.prompt
    if prompt and task == "fill-mask" and known.twin.vocabulary is not None:
        prompt = prompt.replace("[MASK]", known.twin.vocabulary.roles.get("mask_token", "[MASK]"))
    if prompt:
        evaluation["prompt"] = scalar(prompt)
    title = title_of(wish.model)
    context: dict[str, Any] = {
        "to_clone": Path(os.path.relpath(clone.root.resolve(), folder.resolve())).as_posix(),
        "name": scalar(name),
        "arch": scalar(known.twin.model_type),
        "title": scalar(title),
        "summary": scalar(kind.about),
        "keywords": [*kind.keywords, *(["chat"] if re.search(r"instruct|chat|(?<![a-z])it(?![a-z])", name) else [])],
        "maintainers": list(maintainer(clone.root)),
        "model": scalar(_model_id(wish.model)),
        "on_hub": not Path(wish.model).is_dir(),
        "task": task,
        "facts": {fact: scalar(facts[fact].value) for fact in FACTS if fact in facts},
        "provenance": {fact: facts[fact].source for fact in FACTS if fact in facts},
        "samples": [kind.samples],
        "evaluation": evaluation,
        "variants": variants,
    }
    _prepare_pictures(context, variants, known.twin, clone)
    return context


def _prepare_pictures(context: dict[str, Any], variants: Sequence[dict[str, Any]], twin: Twin, clone: Clone) -> None:
    """Adds the calibration set where a pipeline reads it, and how this model wants its pictures where that differs."""
    info = Info.model_validate(yaml.safe_load(render(clone.templates, "recipe/info.yml.j2", context)))
    for variant, plain in zip(info.recipes, variants, strict=True):
        config = json.loads(render_config(info, variant, clone))
        if "sample_data/calibration" not in json.dumps(config):
            continue
        wanted = f"{context['samples'][0]}-calibration"
        if wanted not in context["samples"]:
            context["samples"].append(wanted)
        for data in config.get("data_configs", ()):
            prepared = data.get("pre_process_data_config", {})
            different = {key: value for key, value in _pictures_of(twin).items() if key in prepared and prepared[key] != value}
            if different:
                plain["settings"] = {data["name"]: {"pre_process_data_config": different}}


def _pictures_of(twin: Twin) -> dict[str, Any]:
    """How an image processor scales, crops and normalises, as the calibration of pictures calls it."""
    told = twin.processor or {}
    if "image_mean" not in told:
        return {}
    size, cropped = told.get("size") or {}, told.get("crop_size")
    height = size.get("height") or size.get("shortest_edge")
    pixels = cropped["height"] if isinstance(cropped, dict) else height
    crop = told.get("crop_pct") or (round(pixels / height, 4) if told.get("do_center_crop") and height else 1.0)
    return {"size": pixels, "crop": crop, "mean": told["image_mean"], "deviation": told["image_std"]}


def _configs(text: str, clone: Clone) -> list[str]:
    """The configs that follow from info.yml: whatever is wrong shows before anything is written."""
    info = Info.model_validate(yaml.safe_load(text))
    return [render_config(info, variant, clone) for variant in info.recipes]


def title_of(model: str) -> str:
    """Returns a title for people: `granite-3.3-2b-instruct` is Granite 3.3 2B Instruct."""
    words = re.split(r"[-_\s]+", Path(model).name)
    return " ".join(
        word.upper() if re.fullmatch(r"\d+(?:\.\d+)?[bm]", word) else word[:1].upper() + word[1:] for word in words if word
    )


def _model_id(model: str) -> str:
    """The id; of a folder the id that its config.json says it is from, else its absolute path."""
    if not Path(model).is_dir():
        return model
    named = str(json.loads((Path(model) / "config.json").read_text(encoding="utf-8")).get("_name_or_path") or "")
    return named if MODEL_ID.fullmatch(named) else Path(model).resolve().as_posix()


def _origin_of(known: Published) -> str:
    return "its config.json" if known.folder else f"known: {known.twin.pattern}"


def _plainly(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)


def maintainer(folder: Path) -> Iterator[str]:
    """Yields the handle that git's configuration gives its user, as `@name`; nothing where that does not look like one."""
    for key in ("github.user", "user.name"):
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), "config", "--get", key],
                capture_output=True,
                text=True,
                encoding="utf-8",
                check=False,
            )
        except FileNotFoundError:
            return
        name = done.stdout.strip().removeprefix("@")
        if _HANDLE.fullmatch(name):
            yield f"@{name}"
            return
