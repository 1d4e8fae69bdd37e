"""Applies a pass to every model of a pipeline, one after the other, each with what is known of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from runner.models.components import is_pipeline, parts_of, pipeline_of
from runner.models.digest import files_below
from runner.models.files import carry, link
from runner.models.handle import ModelHandle
from runner.passes.declaration import Pass, PassContext


def apply_pass(pass_: Pass, model: ModelHandle, options: Any, context: PassContext) -> ModelHandle:
    """Returns the handle of what a pass makes of a model; of a pipeline, it is made of what it makes of each of its models.

    Args:
        pass_: the pass. The components that it leaves are carried along as they are.
        model: what it takes.
        options: its options.
        context: where the result goes; each component gets a folder of its own in it.
    """
    if not is_pipeline(model):
        return pass_.apply(model, options, context)
    parts = parts_of(model)
    made = {name: _made(pass_, name, part, options, context) for name, part in parts.items()}
    for name, path in files_below(model.folder):
        if name.partition("/")[0] not in parts:
            link(path, context.output / name)
    whole = {key: value for key, value in model.attributes.items() if key not in ("parts", "components")}
    return pipeline_of(context.output, made.items(), model.task, **whole)


def _made(pass_: Pass, name: str, part: ModelHandle, options: Any, context: PassContext) -> ModelHandle:
    output, scratch = context.output / name, context.scratch / name
    output.mkdir()
    scratch.mkdir()

    def say(text: str) -> None:
        context.say(f"{name}: {text}")

    if name in pass_.leaves:
        say("left as it is")
        carry(part, output, graph=True)
        return replace(part, folder=output)
    return pass_.apply(part, options, replace(context, output=output, scratch=scratch, say=say))
