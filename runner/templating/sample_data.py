"""Sample data that recipes share: sets below templates/samples, copied into each folder so that it works alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from runner.errors import InvalidRecipe, Problem, did_you_mean
from runner.templating.clone import Clone

SOURCE = "source.md"  # of each set: a row for the table of files, then what else is to be said of them
_HEAD = """# Sample data

| file | what | used for | source | licence |
|---|---|---|---|---|
"""


def sample_files(names: Sequence[str], clone: Clone) -> Iterator[tuple[str, bytes]]:
    """Yields (path below sample_data/, content) of every file of some sets, and README.md with their sources and licences.

    Raises:
        InvalidRecipe: there is no such set.
    """
    rows, notes = [], []
    for name in names:
        for path in _files(name, clone):
            yield path.relative_to(clone.samples / name).as_posix(), path.read_bytes()
        table, _, note = (clone.samples / name / SOURCE).read_text(encoding="utf-8").partition("\n\n")
        rows.append(table.strip())
        notes.append(note.strip())
    if names:
        text = _HEAD + "\n".join(rows) + "\n" + "".join(f"\n{note}\n" for note in notes if note)
        yield "README.md", text.encode()


def _files(name: str, clone: Clone) -> list[Path]:
    folder = clone.samples / name
    if not (folder / SOURCE).is_file():
        known = sorted(path.parent.name for path in clone.samples.glob(f"*/{SOURCE}"))
        cause = f"there is no set of sample data '{name}'"
        raise InvalidRecipe(Problem("unknown-samples", cause, remedy=did_you_mean(name, known)))
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SOURCE)
