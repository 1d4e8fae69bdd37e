"""What a run needs, told before it starts: download, memory and disk of each step.

Pure arithmetic on the plan: the source's weights come from its files where they are here, else from what is known of its
architecture or, last, from their number alone; `runner.passes.footprint` says what each pass makes of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.engine.capacity import existing, same_disk
from runner.errors import ModelUnavailable
from runner.models.diffusion import component_files, pipeline_files
from runner.models.digest import files_below
from runner.models.spent_files import can_spend
from runner.models.stored_weights import count_files
from runner.models.weight_count import DRAWING, WeightCount, add_up, count_weights
from runner.passes.footprint import CODES_IN_TORCH, RULES, SOURCE_STEPS, Options, Stored
from runner.targets.target import TARGETS

if TYPE_CHECKING:
    from runner.engine.plan import Plan
    from runner.models.handle import ModelHandle
    from runner.recipe.info import Info, Variant

LIBRARIES = 360_000_000  # bytes that a worker holds before it loads any model: torch, transformers, ONNX Runtime
_ALMOST_ALL = 0.999  # the share of a component is less than one
_HALF = 2.1  # bytes a weight of a source that is computed from where it lies, one matrix in fp32 at a time
_WIDENED, _RUN = 0.4e9, 1.8  # bytes that this takes; times the result's size that running it takes
_DECODED = 1.0e9  # bytes that it takes to compute from the codes of a quantised checkpoint, some rows at a time
BESIDE = 5_000_000  # bytes of tokenizer, configuration and graph beside the weights


@dataclass(frozen=True)
class StepNeeds:
    """What one step needs.

    Attributes:
        name: of the step.
        pass_name: its pass.
        memory: bytes that the worker holds at its peak while the pass works.
        check: bytes that it holds while the result is checked against the source; 0 where nothing is checked.
        output: bytes of what it leaves in the store.
        scratch: further bytes that it writes on the store's disk and takes away again.
        linked: bytes of the output that are hard links to what the step before left, or to the source.
        passed_on: bytes of the output that are so as well where the next step alone reads it: those that stay as they are, of
            files that outlast it.
        spends: bytes of what the step before left that it can give up while it writes.
        cached: it is done already, and needs nothing.
    """

    name: str
    pass_name: str
    memory: int
    output: int
    scratch: int = 0
    check: int = 0
    linked: int = 0
    passed_on: int = 0
    spends: int = 0
    cached: bool = False


@dataclass(frozen=True)
class Needs:
    """What a run needs.

    Attributes:
        download: bytes to fetch; 0 where the source is here.
        steps: in their order.
        roughly: why the figures are rougher than usual; None where they are not.
        dropped: what a step left goes as soon as the next one is done (--no-artifacts).
        spent: or while the next one is written, where that step can do so and the disk knows files with holes.
        linkable: the source lies on the store's disk, so that links to it take no room.
    """

    download: int
    steps: tuple[StepNeeds, ...]
    roughly: str | None = None
    dropped: bool = False
    spent: bool = False
    linkable: bool = False

    @property
    def memory(self) -> int:
        """Returns the bytes of memory of the step that needs most; a check for which there is not enough is left out."""
        return max((step.memory for step in self.steps if not step.cached), default=0)

    @property
    def disk(self) -> int:
        """Returns the most bytes that the store grows by while the run goes on."""
        kept = peak = 0
        own, outlasting = (
            0,
            sys.maxsize if self.linkable else 0,
        )  # bytes of what comes in: made by this run, and those that stay
        for step in self.steps:
            if step.cached:
                own, outlasting = 0, sys.maxsize  # lies there already, and stays
                continue
            passed_on = step.passed_on if self.dropped and step is not self.steps[-1] else 0
            of_own = min(step.linked, own)
            of_outlasting = min(step.linked - of_own + passed_on, outlasting)
            written = step.output - of_own - of_outlasting
            given_up = min(own, written, step.spends) if self.dropped and self.spent else 0
            peak = max(peak, kept + step.scratch, kept + written + step.scratch - given_up)
            kept += written
            if self.dropped:
                kept -= own - of_own
            own, outlasting = step.output - of_outlasting, of_outlasting
            if step.pass_name in SOURCE_STEPS:
                own, outlasting = 0, sys.maxsize  # is needed on
        return peak

    @property
    def output(self) -> int:
        """Returns the bytes of the finished model."""
        return self.steps[-1].output


# --- estimates -------------------------------------------------------------------------------------------------------


def estimate(plan: Plan) -> Needs | None:
    """Returns what a planned run needs; None where nothing is known of its source, and for the toy sizes of --smoke."""
    request = plan.request
    if request.smoke:
        return None
    model = request.config.input_model
    begun = _of_files(plan.source.handle) or _of_id(model.model_path or "", model.task or "", request.info)
    if begun is None or any(step.pass_name not in RULES for step in plan.steps):
        return None
    stored, roughly = begun
    here = plan.source.handle is not None
    passes = [(step.name, step.pass_name, step.options) for step in plan.steps]
    left_out = {step.name for step in plan.steps if step.state != "to do"}
    steps = tuple(replace(step, cached=step.name in left_out) for step in walk(stored, passes, plan.target.name))
    spent = request.no_artifacts and can_spend(existing(plan.places.root))
    linkable = same_disk(plan.places.root, plan.source.handle.folder if plan.source.handle else plan.places.models)
    return Needs(0 if here else _download(request.info, stored), steps, roughly, request.no_artifacts, spent, linkable)


def estimate_config(config: Mapping[str, Any], info: Info | None, provider: str | None) -> Needs | None:
    """Returns what a configuration needs where nothing of it is done; None where nothing is known of its model or its passes.

    Args:
        config: the configuration as plain data, in which every pass is `{"type": ..., option: value, ...}`; options may also
            stand below `config` or `options`.
        info: the recipe's facts.
        provider: the execution provider; the CPU's when None.
    """
    model = config.get("input_model") or {}
    model_id, task = str(model.get("model_path") or ""), str(model.get("task") or "")
    begun = _of_id(model_id or (info.model.id if info else ""), task or (info.model.task if info else ""), info)
    passes = _plain_passes(config)
    target = next((name for name, target in TARGETS.items() if target.provider == provider), "cpu")
    if begun is None or not passes or any(pass_name not in RULES for _, pass_name, _ in passes):
        return None
    stored, roughly = begun
    imported: list[tuple[str, str, Options]] = [("source", "ImportGguf", {})] if info and _only_gguf(info) else []
    return Needs(_download(info, stored), tuple(walk(stored, [*imported, *passes], target)), roughly)


def variant_memory(folder: Path, info: Info, variant: Variant) -> int | None:
    """Returns the bytes of memory that making a variant takes at its peak; None where that cannot be told.

    Reads one small JSON file; takes some 0.1 ms.
    """
    try:
        config = json.loads((folder / variant.file).read_bytes())
    except (OSError, ValueError):
        return None
    needs = estimate_config(config, info, variant.ep) if isinstance(config, dict) else None
    return needs.memory if needs else None


def walk(stored: Stored, passes: Iterable[tuple[str, str, Options]], target: str) -> Iterable[StepNeeds]:
    """Yields what each step needs.

    Args:
        stored: the model that the first step takes.
        passes: (name of the step, name of the pass, options).
        target: name of the target.
    """
    source = stored
    for name, pass_name, options in passes:
        effect = RULES[pass_name](stored, options, target)
        if pass_name in SOURCE_STEPS:
            source = effect.stored
        checked = 0.0 if pass_name in SOURCE_STEPS else _checked(source, stored, effect.stored, pass_name in CODES_IN_TORCH)
        stored = effect.stored
        check = int(LIBRARIES + checked) if checked else 0
        sizes = (int(LIBRARIES + effect.memory), int(stored.size) + BESIDE, int(effect.scratch))
        links, spends = (int(effect.linked), int(effect.passed_on)), int(effect.spends)
        yield StepNeeds(name, pass_name, *sizes, check, *links, spends)


def _checked(source: Stored, before: Stored, made: Stored, in_torch: bool) -> float:
    """Bytes of the check against the source: both forms of the largest component, or the whole pipeline in PyTorch."""
    if source.stays_mapped and source.size <= _HALF * source.weights.total:
        return _WIDENED + (_DECODED if in_torch else _RUN * made.size)
    drawn = 4.0 * before.weights.total if before.in_components else 0.0
    return max(before.in_fp32 + made.size * before.share, drawn)


def _plain_passes(config: Mapping[str, Any]) -> list[tuple[str, str, Options]]:
    passes = config.get("passes")
    if not isinstance(passes, dict):
        return []
    told = [(name, step) for name, step in passes.items() if isinstance(step, dict)]
    return [
        (name, str(step.get("type")), {**step, **(step.get("config") or {}), **(step.get("options") or {})})
        for name, step in told
    ]


def component_bytes(part: ModelHandle) -> int:
    """Returns the bytes of a component's files: of a pipeline, or of a source that becomes one."""
    files = component_files(part) if part.kind == "diffusers" else files_below(part.folder)
    return sum(path.stat().st_size for _, path in files)


def component_memory(
    model: ModelHandle, sizes: Mapping[str, int], options: Mapping[str, Options], pass_name: str, target: str
) -> dict[str, int] | None:
    """Returns the bytes that a process holds at its peak that makes one component; None where that cannot be told.

    Args:
        model: the pipeline, or the source that becomes one.
        sizes: bytes of the files of each component, by name.
        options: the pass's options for each.
        pass_name: the pass.
        target: name of the target.
    """
    total = sum(sizes.values())
    begun = _of_files(model) if model.kind == "diffusers" else (Stored.plain(WeightCount(linear=total // 4), 4), None)
    if begun is None or pass_name not in RULES or not total:
        return None
    held = begun[0].size
    shares = {name: min(size / held, _ALMOST_ALL) for name, size in sizes.items()}
    return {
        name: LIBRARIES + int(RULES[pass_name](replace(begun[0], share=shares[name]), options[name], target).memory)
        for name in sizes
    }


# --- the source ------------------------------------------------------------------------------------------------------


def _of_files(handle: ModelHandle | None) -> tuple[Stored, str | None] | None:
    """Returns the weights as they lie in the files of a model that is here."""
    if handle is None:
        return None
    if handle.kind in ("onnx", "genai"):
        return _of_graph(handle)
    try:
        parts = _count_parts(handle)
    except ModelUnavailable:
        return None
    weights = add_up(*(count for count, _ in parts))
    if not weights.total:
        return None
    each = sum(count.total * size for count, size in parts) / weights.total
    return Stored.plain(weights, each, max(count.total for count, _ in parts) / weights.total), None


def _count_parts(handle: ModelHandle) -> list[tuple[WeightCount, float]]:
    """Returns the weights of each component, and the bytes that one takes; nothing where the files are not looked into."""
    if handle.kind == "hf":
        return [count_files(handle.folder)]
    if handle.kind != "diffusers":
        return []
    form = handle.attributes.get("load_kwargs", {}).get("variant")
    files: dict[str, list[Path]] = {}
    for name, path in pipeline_files(handle.folder, handle.attributes["model_variant"], form):
        if path.suffix == ".safetensors":
            files.setdefault(name.partition("/")[0], []).append(path)
    return [count_files(handle.folder / part, found) for part, found in files.items()]


def _of_graph(handle: ModelHandle) -> tuple[Stored, str | None]:
    names = handle.files or tuple(path.name for path in handle.folder.iterdir())
    size = sum((handle.folder / name).stat().st_size for name in names if (handle.folder / name).is_file())
    return Stored.plain(WeightCount(linear=size // 4), 4), "the kinds of the graph's weights are not looked at"


def _of_id(model_id: str, task: str, info: Info | None) -> tuple[Stored, str | None] | None:
    """Returns the weights of a model that has yet to be fetched."""
    told = info.model.parameters if info is not None and info.model.id == model_id else None
    known = count_weights(model_id, task.removesuffix("-with-past"))
    roughly = None
    if told and (known is None or abs(known.total - told) > 0.1 * told):
        known, roughly = WeightCount(linear=told), "only the number of its weights is known, not their kinds"
    if known is None:
        return None
    parts = DRAWING.get(model_id)
    share = max(part.total for part in parts.values()) / known.total if parts else 1.0
    return Stored.plain(known, _published_bytes(known, info), share), roughly


def _published_bytes(weights: WeightCount, info: Info | None) -> float:
    """Bytes a weight in the published files: what the download says, else two, as most language models have."""
    if info is None or not info.model.download_mb:
        return 2.0
    return 4.0 if info.model.download_mb * 1e6 / weights.total > 3 else 2.0


def _download(info: Info | None, stored: Stored) -> int:
    return int(info.model.download_mb * 1e6) if info is not None and info.model.download_mb else int(stored.size)


def _only_gguf(info: Info) -> bool:
    return [getattr(source, "format", "hub") for source in info.model.sources] == ["gguf"]
