"""The rules on sample data: there is some, it may lie here, it is small, and it does not judge what it trained."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from runner.catalog.lint.configs import EVALUATION_PATHS
from runner.catalog.lint.rule import Fault, Faults, Rule
from runner.catalog.lint.subject import Subject
from runner.errors import Place

MOST_MEGABYTES = 5.0
_SHEETS = ("README.md", "LICENSES.md")
_SHORTEST_LINE = 20  # what is shorter, such as a heading, may stand in two texts
_TEXTS = {".txt", ".csv", ".tsv", ".json", ".jsonl", ".md"}


def _files(subject: Subject) -> list[Path]:
    folder = subject.folder / "sample_data"
    return [path for path in subject.files if path.is_relative_to(folder) and path.name not in _SHEETS]


def _data_is_licensed(subject: Subject) -> Faults:
    folder = subject.folder / "sample_data"
    files = _files(subject)
    if not files:
        yield Fault("there is no sample data", Place(str(folder)), "name a set of templates/samples under 'samples'")
        return
    sheets = [path for name in _SHEETS if (path := folder / name).is_file()]
    if not sheets:
        yield Fault("neither sample_data/README.md nor LICENSES.md says where the data is from", Place(str(folder)))
        return
    text = "".join(path.read_text(encoding="utf-8") for path in sheets)
    for name in sorted({path.relative_to(folder).parts[0] for path in files}):
        if name not in text:
            yield Fault(f"{sheets[0].name} says nothing of '{name}'", Place(str(sheets[0])))


def _data_is_small(subject: Subject) -> Faults:
    megabytes = sum(path.stat().st_size for path in _files(subject)) / 1e6
    if megabytes > MOST_MEGABYTES:
        cause = f"sample_data holds {megabytes:.1f} MB, at most {MOST_MEGABYTES:g} is wanted"
        yield Fault(cause, Place(str(subject.folder / "sample_data")))


def _data_is_kept_apart(subject: Subject) -> Faults:
    calibration = dict(_calibration_paths(subject))
    for key in EVALUATION_PATHS:
        judged = getattr(subject.info.evaluation, key)
        parts = dict(_parts(subject.folder / judged)) if judged else {}
        for path, used_by in calibration.items():
            shared = [where for part, where in _parts(subject.folder / path) if part in parts]
            if shared:
                cause = f"{path}, which {used_by} calibrates on, and {judged} share {len(shared)} of {len(parts)} items"
                yield Fault(f"{cause}, such as {shared[0]}", subject.place("evaluation", key))


def _calibration_paths(subject: Subject) -> Iterator[tuple[str, str]]:
    """Yields (path, variant) of the sample data in the data configs that passes name."""
    for variant, loaded in subject.loaded():
        passes = loaded.tree.members.get("passes")
        named = [leaf.value for _, leaf in passes.leaves()] if passes is not None else []
        for data in loaded.tree.members["data_configs"].items if "data_configs" in loaded.tree.members else []:
            if data.members["name"].value in named:
                paths = (leaf.value for _, leaf in data.leaves())
                yield from ((path, variant.name) for path in paths if isinstance(path, str) and path.startswith("sample_data/"))


def _parts(path: Path) -> Iterator[tuple[str, str]]:
    """Yields (what identifies it, where it stands) of the lines of a text, or of the files of a folder."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if not file.is_file() or file.name in _SHEETS:
            continue
        content = file.read_bytes()
        if file.suffix not in _TEXTS:
            yield hashlib.sha256(content).hexdigest(), file.name
            continue
        for number, line in enumerate(content.decode(errors="replace").splitlines(), start=1):
            words = " ".join(line.lower().split())
            if len(words) >= _SHORTEST_LINE:
                yield words, f"{file.name}:{number}"


RULES = (
    Rule(
        "sample-data-is-licensed", "must", "There is sample data, and a sheet beside it names source and licence of each file.",
        "Recipes must run without a network, and what lies in the repository must be free to lie there.",
        "add the files to sample_data/README.md",
        of_recipe=_data_is_licensed,
    ),
    Rule(
        "sample-data-is-small", "should", f"Sample data takes at most {MOST_MEGABYTES:g} MB.",
        "Everybody who clones the catalogue downloads it.", "keep a smaller sample",
        of_recipe=_data_is_small,
    ),
    Rule(
        "data-is-kept-apart", "must", "What calibrates a model does not judge it.",
        "A model looks better on data that it has seen.", "take other data for one of them",
        of_recipe=_data_is_kept_apart,
    ),
)  # fmt: skip
