"""Binary files of single arrays, a folder an input: Olive's `raw_dataset`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.data.local import Examples
from runner.errors import DataUnavailable


def raw_dataset(
    folder: Path,
    data_dir: str,
    input_names: Sequence[str],
    input_shapes: Sequence[Sequence[int]],
    input_types: Sequence[str] | None = None,
    input_dirs: Sequence[str] | None = None,
    input_suffix: str | None = None,
    input_order_file: str | None = None,
    annotations_file: str | None = None,
) -> Examples:
    """Returns arrays read from files, whole as they lie there: a batch axis is part of the shape.

    Args:
        folder: what `data_dir` is relative to.
        data_dir: folder of the data; every other path lies inside it.
        input_names: the model's inputs.
        input_shapes: their shapes.
        input_types: numpy's names of their types; float32 by default.
        input_dirs: folder of each input's files; called as the input by default. The same file name in each is one example.
        input_suffix: only files that end so.
        input_order_file: a file name a line; by default all files of the first folder by name.
        annotations_file: a .npy file with a label for each example.

    Raises:
        DataUnavailable: the lists differ in length, or a file is missing or not of that size.
    """
    import numpy as np

    types = list(input_types or ["float32"] * len(input_names))
    folders = list(input_dirs or input_names)
    if not len(input_names) == len(input_shapes) == len(types) == len(folders):
        raise DataUnavailable("input_names, input_shapes, input_types and input_dirs of the raw data differ in length")
    root = folder / data_dir.replace("\\", "/")
    if not (root / folders[0]).is_dir():
        raise DataUnavailable(f"there is no folder '{folders[0]}' in {root}", "paths are relative to the configuration")
    if input_order_file:
        files = [line.strip() for line in (root / input_order_file).read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        files = sorted(path.name for path in (root / folders[0]).iterdir() if path.name.endswith(input_suffix or ""))
    labels = list(np.load(root / annotations_file)) if annotations_file else [None] * len(files)
    if len(labels) != len(files):
        raise DataUnavailable(f"{annotations_file} has {len(labels)} labels for {len(files)} files")

    def read(name: str, directory: str, dtype: str, shape: Sequence[int]) -> Any:
        path = root / directory / name
        try:
            return np.fromfile(path, dtype=dtype).reshape(shape)
        except (OSError, ValueError) as error:
            raise DataUnavailable(f"{path} does not hold {dtype} values of the shape {list(shape)}: {error}") from error

    specs = list(zip(input_names, folders, types, input_shapes, strict=True))
    items = [
        ({name: read(file, directory, dtype, shape) for name, directory, dtype, shape in specs}, label)
        for file, label in zip(files, labels, strict=True)
    ]
    return Examples(items)
