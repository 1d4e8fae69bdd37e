"""Data sets of the Hugging Face hub, through the `datasets` package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runner.data.local import Raw
from runner.errors import DataUnavailable

_SMOKE_REMEDY = "use --smoke for made-up data of the same shape, or a data set beside the recipe"


def hub_dataset(
    data_name: str,
    subset: str | None = None,
    split: str = "validation",
    data_files: Any = None,
    **load: Any,
) -> Any:
    """Returns a split of a data set.

    Args:
        data_name: its id on the hub, or a format (``json``, ``csv``) with `data_files`.
        subset: configuration of the data set.
        split: split, in the notation of `datasets`.
        data_files: files of the data set.
        load: passed to `datasets.load_dataset`.

    Raises:
        DataUnavailable: `datasets` is not installed, or the data set cannot be had.
    """
    try:
        import datasets  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise DataUnavailable(
            f"the data set '{data_name}' needs the package 'datasets', which is not installed",
            f"pip install datasets, or {_SMOKE_REMEDY}",
        ) from None
    load.pop("trust_remote_code", None)  # data sets with code of their own no longer load
    try:
        return datasets.load_dataset(data_name, name=subset, split=split, data_files=data_files, **load)
    except Exception as error:  # the HTTP library under huggingface_hub changes with its releases
        raise DataUnavailable(f"the data set '{data_name}' cannot be had: {error}", _SMOKE_REMEDY) from error


def text_columns(
    dataset: Any, input_cols: Sequence[str] | None = None, label_col: str = "label", max_samples: int | None = None
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
    rows: list[dict[str, Any]] = []
    for row in dataset:
        if max_samples is not None and len(rows) >= max_samples:
            break
        rows.append(row)
    if not rows:
        raise DataUnavailable("the data set has no rows")
    columns = list(input_cols or [name for name, value in rows[0].items() if isinstance(value, str)][:2])
    missing = [name for name in columns if name not in rows[0]]
    if missing or not columns:
        raise DataUnavailable(f"the data set has no column {', '.join(missing) or 'of text'}; it has {', '.join(rows[0])}")
    return Raw([tuple(row[name] for name in columns) for row in rows], [row.get(label_col) for row in rows])
