"""From what was asked for to a `Request`: which configuration, which variant, which overrides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from runner.catalog.find import Found, find, named_variant
from runner.engine.request import Request, makes_genai
from runner.errors import UsageError
from runner.passes.table import options_of
from runner.recipe.document import Node, Origin, node_of
from runner.recipe.load import load_config
from runner.targets.target import TARGETS, Target, best_target


def make_request(
    word: str | None,
    configs: Sequence[Path] = (),
    *,
    catalog: Path | None = None,
    variant: str | None = None,
    target: Target | Literal["auto"] | None = None,
    overrides: Sequence[str] = (),
    model_path: str | None = None,
    smoke: bool = False,
    offline: bool = False,
    trust: bool = False,
    threads: int | None = None,
    output_dir: Path | None = None,
    no_cache: bool = False,
    no_artifacts: bool = False,
    space: Sequence[str] | None = None,
    only_plan: bool = False,
) -> Request:
    """Returns the request for a recipe of the catalogue, a folder, or configuration files.

    Args:
        word: a name, `name/variant` or path, see `runner.catalog.find.find`; None for the current folder, or with `configs`.
        configs: a configuration file, and further ones that are laid over it section by section.
        catalog: folder of recipes; $RECIPE_CATALOG or the nearest recipes/ when None.
        variant: name of the variant; the recipe's first when None.
        target: the recipe's first variant that is made for it, or what a configuration file is run for; it must be that of a
            variant that the word or `variant` names. `auto` is the best one
            that can be used here and that the recipe has variants for; the request's notes say why.
        overrides: `path=value` texts, laid over the configuration.
        model_path: a local folder in place of the model that the configuration names.
        space: what a search is to vary, see `load_config`; None where nobody searches.
        only_plan: nothing is to run, so that `auto` may be a target that cannot be used here.
        smoke, offline, trust, threads, output_dir, no_cache, no_artifacts: see `Request`.

    Raises:
        UsageError: nothing of that name, or options that do not go together.
        InvalidRecipe: the configuration has problems.
    """
    if word and configs:
        raise UsageError("bad-usage", f"'{word}' and --config do not go together", "give one of them")
    found: Found | None = None
    files = list(configs)
    why: tuple[str, ...] = ()
    if not files:
        named = find(word, catalog, variant)
        chosen = variant is not None or (word is not None and target is not None and named_variant(word, catalog) is not None)
        if target == "auto":
            own = named.variant.name if chosen and named.variant else ""

            def by_genai(one: Target) -> bool:
                file = _for_target(named, catalog, one, chosen=chosen).config
                return makes_genai(load_config([file], options_of, overrides, space=space).config)

            target, reason = best_target(_targets_of(named, chosen=chosen), own, genai=by_genai, only_plan=only_plan)
            why = (f"--target auto: {reason}",)
        found = _for_target(named, catalog, target, chosen=chosen)
        files = [found.config]
    elif target == "auto":
        raise UsageError("bad-usage", "--target auto chooses among a recipe's variants", "name the target beside --config")
    elif variant:
        raise UsageError("bad-usage", "--variant belongs to a recipe, not to --config", "name the variant's own file")
    elif len(files) == 1:
        found = find(str(files[0]), catalog)
    loaded = load_config(files, options_of, overrides, _adjustment(model_path, target if configs else None), space)
    return Request(
        replace(loaded, notes=(*loaded.notes, *why)),
        info=found.info if found else None,
        variant=found.variant.name if found and found.variant else None,
        inside_catalogue=found.trusted if found else False,
        smoke=smoke,
        offline=offline,
        trust=trust,
        no_cache=no_cache,
        no_artifacts=no_artifacts,
        threads=threads,
        output_dir=output_dir,
    )


def _targets_of(found: Found, chosen: bool) -> set[str]:
    """Returns the names of the targets that a recipe has variants for; that of the variant alone where somebody chose one."""
    if found.info is None:
        raise UsageError("bad-usage", "--target auto chooses among a recipe's variants", "name the target")
    variants = (found.variant,) if chosen and found.variant else found.info.recipes
    return {name for name, target in TARGETS.items() if any(variant.ep == target.provider for variant in variants)}


def _for_target(found: Found, root: Path | None, target: Target | None, chosen: bool) -> Found:
    """Returns the recipe's first variant for the target that was asked for; the one found where it fits already."""
    if target is None or found.info is None or found.variant is None or found.variant.ep == target.provider:
        return found
    fitting = [variant.name for variant in found.info.recipes if variant.ep == target.provider]
    if chosen:
        raise UsageError(
            "variant-not-for-target",
            f"{found.variant.name} of {found.info.name} is made for {found.variant.ep}, not for --target {target.name}",
            "name one of them" + (f"; for {target.name} there is {', '.join(fitting)}" if fitting else ""),
        )
    if not fitting:
        there = ", ".join(f"{variant.name} ({variant.ep})" for variant in found.info.recipes)
        raise UsageError("no-variant-for-target", f"{found.slug} is not made for {target.name}", f"variants: {there}")
    return find(str(found.folder), root, fitting[0])


def _adjustment(model_path: str | None, target: Target | None) -> Callable[[Node], Node]:
    """What flags change in the document; every changed value tells the flag as its origin."""

    def adjust(root: Node) -> Node:
        if model_path is not None:
            model = root.members.get("input_model", Node({}, Origin("--model-path")))
            path = Node(model_path, Origin(f"--model-path {model_path}"))
            root = root.with_members(input_model=model.with_members(model_path=path))
        if target is not None:
            system = {
                "type": "LocalSystem",
                "accelerators": [{"device": target.device, "execution_providers": [target.provider]}],
            }
            root = root.with_members(target=node_of(system, Origin(f"--target {target.name}")))
        return root

    return adjust
