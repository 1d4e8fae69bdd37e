"""Applies a pass to every component of a pipeline, each with its own options, and puts the pipeline together again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from runner.models.components import is_pipeline, parts_of, pipeline_of
from runner.models.diffusion import source_parts
from runner.models.digest import files_below
from runner.models.files import carry, link
from runner.models.handle import ModelHandle
from runner.passes.declaration import Pass, PassContext
from runner.passes.export.from_diffusers import assemble_pipeline

if TYPE_CHECKING:
    from pathlib import Path

# By name or pattern of names: the options that differ for a component, or False where it is left as it is.
Differing = Mapping[str, Mapping[str, Any] | Literal[False]]


@dataclass(frozen=True)
class Part:
    """A component on its way through a pass.

    Attributes:
        name: its name, and the folder of what is made of it.
        model: what the pass takes.
        options: the pass's options for it; None where it is left as it is.
    """

    name: str
    model: ModelHandle
    options: Any | None


# Makes components, each into the folder of its name below the output of the context.
MakeAll = Callable[[Sequence[Part], PassContext], Mapping[str, ModelHandle]]


def is_taken_apart(pass_: Pass, model: ModelHandle) -> bool:
    """Says whether a pass is applied to the components of a model: of a pipeline, or of a source that becomes one."""
    return is_pipeline(model) or (model.kind == "diffusers" and pass_.gives == "onnx")


def options_of_component(pass_: Pass, options: Mapping[str, Any], differing: Differing, name: str) -> dict[str, Any] | None:
    """Returns the options for a component as plain data, unchecked; None where the pass leaves it as it is.

    Args:
        pass_: the pass, whose `leaves` hold where nothing names the component.
        options: those of all components, as plain data.
        differing: what differs; where several entries fit a name, later ones are laid over earlier ones.
        name: the component.
    """
    own: dict[str, Any] | None = None if name in pass_.leaves else {}
    for pattern, given in differing.items():
        if fnmatchcase(name, pattern):
            own = None if given is False else {**(own or {}), **given}
    return None if own is None else {**options, **own}


def parts_for(pass_: Pass, model: ModelHandle, options: Any, differing: Differing) -> tuple[Part, ...]:
    """Returns the components of a model that is taken apart, in the order in which they run."""
    shared = options.model_dump(mode="json")
    chosen = {}
    for name in (models := parts_of(model) if is_pipeline(model) else source_parts(model)):
        own = options_of_component(pass_, shared, differing, name)
        chosen[name] = None if own is None else pass_.options.model_validate(own)
    return tuple(Part(name, part, chosen[name]) for name, part in models.items())


def make(pass_: Pass, part: Part, context: PassContext) -> ModelHandle:
    """Returns what a pass makes of a component; `context.output` is the component's own."""
    if part.options is None:
        context.say("left as it is")
        carry(part.model, context.output, graph=True)
        return replace(part.model, folder=context.output)
    return pass_.apply(part.model, part.options, context)


def assemble(model: ModelHandle, made: Mapping[str, ModelHandle], output: Path) -> ModelHandle:
    """Returns the pipeline of components that lie in folders of their names below `output`; the rest of the model goes along.

    Args:
        model: what was taken apart.
        made: what became of its components, in their order.
        output: the folder of the pipeline.
    """
    if model.kind == "diffusers":
        return assemble_pipeline(model, made, output)
    for name, path in files_below(model.folder):
        if name.partition("/")[0] not in made:
            link(path, output / name)
    whole = {key: value for key, value in model.attributes.items() if key not in ("parts", "components")}
    return pipeline_of(output, made.items(), model.task, **whole)


def context_of(context: PassContext, name: str) -> PassContext:
    """Returns the context for a component: folders of its name, and its name before what is said."""
    output, scratch = context.output / name, context.scratch / name
    for folder in (output, scratch):
        folder.mkdir()

    def say(text: str) -> None:
        context.say(f"{name}: {text}")

    return replace(context, output=output, scratch=scratch, say=say)


def apply_pass(
    pass_: Pass,
    model: ModelHandle,
    options: Any,
    context: PassContext,
    differing: Differing | None = None,
    make_all: MakeAll | None = None,
) -> ModelHandle:
    """Returns the handle of what a pass makes of a model; of a pipeline, it is made of what it makes of each component.

    Args:
        pass_: the pass.
        model: what it takes.
        options: its options.
        context: where the result goes; each component gets a folder of its name in it.
        differing: what differs for single components.
        make_all: makes the components that are not left as they are; one after the other by default.
    """
    if not is_taken_apart(pass_, model):
        return pass_.apply(model, options, context)
    parts = parts_for(pass_, model, options, differing or {})
    made = dict(make_all([part for part in parts if part.options is not None], context)) if make_all else {}
    for part in parts:
        if part.name not in made:
            made[part.name] = make(pass_, part, context_of(context, part.name))
    return assemble(model, {part.name: made[part.name] for part in parts}, context.output)


def unmatched(differing: Differing, names: Iterable[str]) -> list[str]:
    """Returns the names and patterns that fit none of the components."""
    known = list(names)
    return [pattern for pattern in differing if not any(fnmatchcase(name, pattern) for name in known)]
