"""From a prepared data set to batches: its items, their inputs and labels, and the arrays stacked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from runner.data.local import Examples, Raw
from runner.errors import DataUnavailable, InvalidRecipe, Problem

Inputs = dict[str, Any]
Pair = tuple[Inputs, Any]


def items_of(dataset: Any) -> Iterable[Any]:
    """Goes through a data set that may offer only a length and an index, which never raises IndexError."""
    if isinstance(dataset, Raw):
        raise InvalidRecipe(
            Problem("no-pre-process", "the data are raw texts or images", remedy="name a pre-process component")
        )
    if isinstance(dataset, Examples):
        return dataset.items
    if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        return (dataset[at] for at in range(len(dataset)))
    if hasattr(dataset, "__iter__"):
        return dataset  # type: ignore[no-any-return]
    if dataset is None:
        raise DataUnavailable(
            "the data configuration loads no data set", "name one in load_dataset_config, or a dataloader component that does"
        )
    raise DataUnavailable(f"a {type(dataset).__name__} is no data set: it cannot be iterated over")


def pair_of(item: Any, names: Sequence[str]) -> Pair:
    """Takes an item apart into inputs by name and a label; inputs without names are the model's in their order."""
    inputs, label = item if isinstance(item, (tuple, list)) and len(item) == 2 else (item, None)
    if isinstance(inputs, Mapping):
        return dict(inputs), label
    listed = list(inputs) if isinstance(inputs, (tuple, list)) else [inputs]
    if not all(hasattr(one, "shape") for one in listed) or len(listed) > len(names):
        raise DataUnavailable(
            f"an example's inputs are a {type(inputs).__name__}; a mapping from input name to array was expected"
        )
    return dict(zip(names, listed, strict=False)), label


def array_of(value: Any) -> Any:
    """Returns a tensor of torch's, or anything that numpy reads, as a numpy array."""
    import numpy as np

    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)


def collated(
    examples: Examples,
    whole: Sequence[str],
    batch_size: int = 1,
    max_samples: int | None = None,
    shuffle: bool = False,
    drop_last: bool = False,
) -> Iterator[Pair]:
    """Yields batches of so many examples: arrays [batch, ...] by name, and labels or None.

    Fields named in `whole` are the first example's, without a batch axis.
    """
    items: Iterator[Pair] = islice(examples.items, max_samples)
    if shuffle:
        items = _shuffled(list(items))
    while chunk := list(islice(items, batch_size)):
        if drop_last and len(chunk) < batch_size:
            return
        inputs = {
            name: array_of(chunk[0][0][name])
            if name in whole
            else _stack([array_of(one[name]) for one, _ in chunk], examples.padding.get(name, 0))
            for name in chunk[0][0]
        }
        labels = [label for _, label in chunk]
        yield inputs, None if any(label is None for label in labels) else _stack([array_of(one) for one in labels], -100)


def _shuffled(items: Sequence[Pair]) -> Iterator[Pair]:
    import numpy as np

    return (items[at] for at in np.random.default_rng(0).permutation(len(items)))


def _stack(arrays: Sequence[Any], fill: int) -> Any:
    """Stacks arrays; vectors that differ in length are filled up at their ends."""
    import numpy as np

    longest = max(array.shape[0] if array.ndim else 0 for array in arrays)
    if arrays[0].ndim == 1:
        arrays = [np.pad(array, (0, longest - array.shape[0]), constant_values=fill) for array in arrays]
    return np.stack(arrays)
