"""Notes which modules of a PyTorch model go into which part, for SplitModel to cut its graph along later."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from runner.data.scripted_model import load_module
from runner.errors import InvalidRecipe, Problem, did_you_mean
from runner.models.files import carry
from runner.models.handle import ModelHandle
from runner.passes.declaration import Pass, PassContext
from runner.passes.graph.split import ASSIGNMENTS
from runner.recipe.options import PassOptions

if TYPE_CHECKING:
    import torch

_COLUMNS = ("module", "num_params", "num_bytes", "num_flops")


class CaptureSplitInfoOptions(PassOptions):
    """Options of CaptureSplitInfo."""

    num_splits: int | None = Field(None, ge=1, description="number of parts that the layers are divided into")
    block_to_split: str | list[str] | None = Field(
        None, description="modules whose children are divided; a transformer's layers by default"
    )
    cost_model: Path | None = Field(
        None, description=f"csv file with the columns {', '.join(_COLUMNS)}, one row a module without children"
    )
    accelerator_memory: int | None = Field(None, gt=0, description="with cost_model: bytes that a part may take at most")
    unique_embeds_lm_head_splits: bool = Field(False, description="parts of their own for the embedding and the head")

    @model_validator(mode="after")
    def _says_how(self) -> CaptureSplitInfoOptions:
        if (self.num_splits is None) == (self.cost_model is None):
            raise ValueError("one of num_splits and cost_model says how to split; set exactly one of them")
        if self.cost_model is not None and self.accelerator_memory is None:
            raise ValueError("cost_model needs accelerator_memory, the bytes that a part may take")
        return self


def capture(model: ModelHandle, options: CaptureSplitInfoOptions, context: PassContext) -> ModelHandle:
    """Carries the model on; its attribute `split_assignments` says module name to number of the part.

    Raises:
        InvalidRecipe: a module that is named does not exist, or the cost model cannot be read.
    """
    module = load_module(model)
    assignments = _by_number(module, options) if options.num_splits else _by_cost(module, options)
    context.say(f"{len(assignments)} modules in {len(set(assignments.values()))} parts")
    carry(model, context.output)
    return ModelHandle(model.kind, context.output, None, model.task, {**model.attributes, ASSIGNMENTS: assignments})


def _by_number(module: torch.nn.Module, options: CaptureSplitInfoOptions) -> dict[str, int]:
    """Divides the children of the blocks into parts of as equal a length as can be, longer ones first."""
    import numpy as np

    first, apart = _embeddings(module) if options.unique_embeds_lm_head_splits else ({}, ())
    members = [name for block in _blocks(module, options) for name in _children(module, block) if name not in (*first, *apart)]
    count = options.num_splits or 1
    if count > len(members):
        raise InvalidRecipe(
            Problem(
                "too-many-splits",
                f"CaptureSplitInfo: {len(members)} modules cannot be divided into {count} parts",
                remedy=f"set num_splits to {len(members)} at most, or block_to_split to a module with more children",
            )
        )
    used = 1 if first else 0
    parts = np.array_split(np.arange(len(members)), count)
    divided = {members[at]: number + used for number, part in enumerate(parts) for at in part.tolist()}
    return {**first, **divided, **dict.fromkeys(apart, count + used)}


def _by_cost(module: torch.nn.Module, options: CaptureSplitInfoOptions) -> dict[str, int]:
    """Goes through the modules in order, and begins a part where the memory would not do or the kind of work changes."""
    costs = _read_costs(options.cost_model) if options.cost_model else {}
    first, apart = _embeddings(module) if options.unique_embeds_lm_head_splits else ({}, ())
    assignments, part, taken, looks_up = dict(first), 1 if first else 0, 0, None
    for name, _ in module.named_modules():
        if name not in costs or name in (*first, *apart) or name.lower().endswith("dropout"):
            continue
        parameters, size, operations = costs[name]
        now_looks_up = parameters > operations > 0  # bound by memory, such as an embedding
        if looks_up is not None and (looks_up != now_looks_up or taken + size > (options.accelerator_memory or 0)):
            part, taken = part + 1, 0
        assignments[name] = part
        taken, looks_up = taken + size, now_looks_up
    if looks_up is None:
        raise _bad_cost_model(options.cost_model, "names no module of this model")
    return {**assignments, **dict.fromkeys(apart, part + 1)}


def _read_costs(path: Path) -> dict[str, tuple[int, int, int]]:
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        return {row["module"]: (int(row["num_params"]), int(row["num_bytes"]), int(row["num_flops"])) for row in rows}
    except OSError as error:
        raise _bad_cost_model(path, f"cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise _bad_cost_model(path, f"is no table of {', '.join(_COLUMNS)}: {error}") from error


def _bad_cost_model(path: Path | None, cause: str) -> InvalidRecipe:
    return InvalidRecipe(Problem("bad-cost-model", f"CaptureSplitInfo: the cost model {path} {cause}"))


def _embeddings(module: torch.nn.Module) -> tuple[dict[str, int], tuple[str, ...]]:
    """Returns the embedding as part 0, and the name of the head, which makes the last."""
    names = {id(one): name for name, one in module.named_modules()}
    embedding = module.get_input_embeddings() if hasattr(module, "get_input_embeddings") else None
    head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    if embedding is None or id(embedding) not in names:
        raise InvalidRecipe(
            Problem(
                "no-embedding",
                f"CaptureSplitInfo: {type(module).__name__} does not say which module its embedding is",
                remedy="take unique_embeds_lm_head_splits out",
            )
        )
    return {names[id(embedding)]: 0}, tuple(names[id(one)] for one in (head,) if id(one) in names)


def _blocks(module: torch.nn.Module, options: CaptureSplitInfoOptions) -> Iterator[str]:
    named = options.block_to_split
    if named is not None:
        yield from [named] if isinstance(named, str) else named
        return
    import torch

    lists = [(name, one) for name, one in module.named_modules() if isinstance(one, torch.nn.ModuleList) and len(one) > 1]
    if not lists:
        raise InvalidRecipe(
            Problem(
                "no-layers",
                f"CaptureSplitInfo: {type(module).__name__} has no list of layers",
                remedy="name the module whose children are to be divided in block_to_split",
            )
        )
    yield max(lists, key=lambda one: sum(weight.numel() for weight in one[1].parameters()))[0]


def _children(module: torch.nn.Module, block: str) -> list[str]:
    """Returns the full names of a module's children.

    Raises:
        InvalidRecipe: there is no such module.
    """
    try:
        found = module.get_submodule(block)
    except AttributeError:
        known = [name for name, one in module.named_modules() if name and any(True for _ in one.children())]
        raise InvalidRecipe(
            Problem("unknown-module", f"the model has no module '{block}'", remedy=did_you_mean(block, known))
        ) from None
    return [f"{block}.{name}" if block else name for name, _ in found.named_children()]


PASS = Pass(
    name="CaptureSplitInfo",
    summary="Notes which modules go into which part, so that SplitModel can cut the graph along them.",
    options=CaptureSplitInfoOptions,
    apply=capture,
    takes=("hf", "pytorch"),
    gives=None,
    packages=("torch", "transformers"),
)
