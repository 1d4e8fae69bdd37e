"""Data sets that the `datasets` package reads: of the Hugging Face hub, or files of its formats beside a configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from runner.data.local import Raw
from runner.errors import DataUnavailable, InvalidRecipe, Problem
from runner.recipe.config import Model

# What `datasets` reads without anything from the hub, when the files are named.
FILE_FORMATS = ("json", "csv", "parquet", "text", "arrow", "imagefolder", "audiofolder")
_SMOKE_REMEDY = "use --smoke for made-up data of the same shape, or a data set beside the recipe"


class TrainTestSplit(Model):
    """Rows that are drawn at random to be held out; the same ones in every data config that says the same but `take`."""

    test_size: int | float = Field(gt=0, description="rows that are held out, or below 1 the share of them")
    seed: int = Field(42, ge=0, description="decides which")
    take: Literal["train", "test"] = Field(description="the rows that are left, or those that are held out")


def hub_dataset(
    data_name: str,
    subset: str | None = None,
    split: str | None = None,
    data_dir: str | None = None,
    data_files: Any = None,
    col_filters: Mapping[str, Any] | None = None,
    train_test_split: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    **load: Any,
) -> Any:
    """Returns a split of a data set: rows that map a column's name to its value.

    Args:
        data_name: its id on the hub, a folder, or a format (``json``, ``csv``, ``parquet``, ``text`` …) with `data_files`.
        subset: configuration of the data set.
        split: split, in the notation of `datasets`; ``validation`` when not given, ``train`` for files that name no split.
        data_dir: folder of the data set's files.
        data_files: files of the data set, wildcards allowed: one, several, or by split.
        col_filters: values that a row's columns must have for the row to count.
        train_test_split: see `TrainTestSplit`; all rows when None.
        folder: what files are relative to; the current folder when None.
        load: passed to `datasets.load_dataset`.

    Raises:
        DataUnavailable: `datasets` is not installed, or the data set cannot be had.
        InvalidRecipe: `train_test_split` is wrong.
    """
    try:
        import datasets  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise DataUnavailable(
            f"the data set '{data_name}' needs the package 'datasets', which is not installed",
            f"pip install datasets, or {_SMOKE_REMEDY}",
        ) from None
    datasets.utils.logging.set_verbosity_error()
    load.pop("trust_remote_code", None)  # data sets with code of their own no longer load
    local = data_name.lower() in FILE_FORMATS or (folder is not None and (folder / data_name).is_dir())
    if split is None:
        split = "train" if local and not isinstance(data_files, Mapping) else "validation"
    if folder is not None:
        data_name = str(folder / data_name) if (folder / data_name).is_dir() else data_name
        data_files, data_dir = _beside(folder, data_files), _beside(folder, data_dir)
    try:
        rows = datasets.load_dataset(data_name, name=subset, split=split, data_dir=data_dir, data_files=data_files, **load)
        if col_filters:
            rows = rows.filter(lambda row: all(row[name] == value for name, value in col_filters.items()))
    except Exception as error:  # the HTTP library under huggingface_hub changes with its releases
        remedy = "name the files as they lie beside the configuration" if local else _SMOKE_REMEDY
        told = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__ else error
        raise DataUnavailable(f"the data set '{data_name}' cannot be had: {told}", remedy) from error
    return _part_of(rows, train_test_split) if train_test_split else rows


def _part_of(rows: Any, asked: Mapping[str, Any]) -> Any:
    """Returns the rows that are held out, or the others; both in the order in which they were drawn."""
    try:
        split = TrainTestSplit.model_validate(dict(asked))
    except ValidationError as error:
        raise InvalidRecipe(
            *(
                Problem("bad-value", f"train_test_split: {'.'.join(map(str, one['loc']))}: {one['msg']}")
                for one in error.errors()
            )
        ) from None
    count = len(rows)
    held_out = int(split.test_size) if split.test_size >= 1 else math.ceil(split.test_size * count)
    if held_out >= count:
        raise DataUnavailable(
            f"{held_out} of {count} rows are held out, which leaves none to train on", "hold out fewer, or add rows"
        )
    return rows.train_test_split(test_size=held_out, seed=split.seed)[split.take]


def _beside(folder: Path, named: Any) -> Any:
    """Returns the same files as absolute paths where they are paths at all."""
    if isinstance(named, str):
        return named if "://" in named else str((folder / Path(named.replace("\\", "/")).expanduser()).absolute())
    if isinstance(named, Mapping):
        return {split: _beside(folder, files) for split, files in named.items()}
    if isinstance(named, Sequence):
        return [_beside(folder, file) for file in named]
    return named


def first_rows(dataset: Any, max_samples: int | None = None) -> list[dict[str, Any]]:
    """Returns rows of a data set as plain mappings, at most so many.

    Raises:
        DataUnavailable: there is none, or the data set does not consist of rows.
    """
    rows: list[dict[str, Any]] = []
    for row in dataset if dataset is not None else ():
        if max_samples is not None and len(rows) >= max_samples:
            break
        if not isinstance(row, Mapping):
            raise DataUnavailable(
                f"the data set's rows are a {type(row).__name__}; mappings from column to value were expected"
            )
        rows.append(dict(row))
    if not rows:
        raise DataUnavailable("the data set has no rows")
    return rows


def require_columns(row: Mapping[str, Any], columns: Sequence[str]) -> None:
    """Makes sure that a data set has columns.

    Raises:
        DataUnavailable: it has not.
    """
    missing = [name for name in columns if name not in row]
    if missing or not columns:
        raise DataUnavailable(f"the data set has no column {', '.join(missing) or 'of text'}; it has {', '.join(row)}")


def text_columns(
    dataset: Any, input_cols: Sequence[str] | None = None, label_col: str | None = "label", max_samples: int | None = None
) -> Raw:
    """Returns the texts and labels of rows.

    Args:
        dataset: rows that map a column's name to its value.
        input_cols: columns with text, at most two; every column of text when not given, up to two.
        label_col: column of the label; rows without it have none.
        max_samples: take only so many rows.

    Raises:
        DataUnavailable: there is no row, or a column does not exist.
    """
    rows = first_rows(dataset, max_samples)
    columns = list(input_cols or [name for name, value in rows[0].items() if isinstance(value, str)][:2])
    require_columns(rows[0], columns)
    return Raw([tuple(row[name] for name in columns) for row in rows], [row.get(label_col or "") for row in rows])
