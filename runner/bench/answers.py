"""Holds the optimised model's answers against the baseline's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.bench.inputs_record import Inputs
from runner.bench.scenarios import CLASSIFIERS, EMBEDDINGS, MASKED_WORDS
from runner.evaluation.metric import Metric
from runner.evaluation.retention import agreement, cosine, pooled, unit

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_PICTURE_LOGITS = "logits_per_image"  # of models of pictures and texts, which give embeddings and the texts' logits too
_EMBEDDINGS = ("image_embeds", "text_embeds")


def compare(task: str | None, inputs: Inputs, baseline: Sequence[Path], optimised: Sequence[Path]) -> list[Metric]:
    """Returns cosine, worst cosine and, where both sides choose among classes or words, agreement.

    Args:
        task: the source model's task.
        inputs: what was asked.
        baseline: the source model's outputs (.npz), one file for each of `inputs.answers`.
        optimised: the optimised model's outputs of the same inputs.
    """
    import numpy as np

    theirs, ours = [], []
    embedded: tuple[list[Array], list[Array]] = [], []
    for feed, one, other in zip(inputs.answers, baseline, optimised, strict=True):
        reference, candidate = _same_output(one, other)
        asked = dict(np.load(feed))
        theirs.append(_answer(task, inputs, asked, reference))
        ours.append(_answer(task, inputs, asked, candidate))
        for name in _shared_embeddings(one, other):
            embedded[0].append(np.load(one)[name])
            embedded[1].append(np.load(other)[name])
    reference, candidate = np.concatenate(theirs), np.concatenate(ours)
    vectors = (np.concatenate(side) for side in embedded) if embedded[0] else (reference, candidate)
    metrics = list(cosine(*vectors))
    if task in (*MASKED_WORDS, *CLASSIFIERS) or inputs.truth:
        metrics.append(agreement(reference.argmax(axis=-1), candidate.argmax(axis=-1)))
    return metrics


def accuracy(inputs: Inputs, outputs: Sequence[Path]) -> Metric:
    """Returns the share of pictures whose class a model chooses first, 0 to 1.

    Args:
        inputs: what was asked, with the right answers.
        outputs: the model's outputs (.npz), one file for each of `inputs.answers`.
    """
    import numpy as np

    chosen = np.concatenate([_same_output(one, one)[0].argmax(axis=-1) for one in outputs])
    right = tuple(float(int(one) == other) for one, other in zip(chosen, inputs.truth, strict=True))
    return Metric("accuracy", sum(right) / len(right), "", True, right, f"right first choice on {len(right)} pictures")


def similarities(task: str | None, inputs: Inputs, outputs: Sequence[Path]) -> Array:
    """Returns the cosine of the embeddings of each pair of sentences, [pairs].

    Args:
        task: the source model's task.
        inputs: what was asked.
        outputs: the model's outputs (.npz), one file for each of `inputs.pairs`.
    """
    import numpy as np

    found = []
    for feed, path in zip(inputs.pairs, outputs, strict=True):
        output = _same_output(path, path)[0]
        first, second = np.split(unit(_answer(task, inputs, dict(np.load(feed)), output)), 2)
        found.append((first * second).sum(axis=-1))
    cosines: Array = np.concatenate(found)
    return cosines


def _shared_embeddings(one: Path, other: Path) -> list[str]:
    """Returns the embeddings of pictures and texts that both files hold.

    A picture's logits have a large part in common whatever is quantised, so that their cosine would say little.
    """
    import numpy as np

    reference, candidate = np.load(one), np.load(other)
    found = [name for name in _EMBEDDINGS if name in reference.files and name in candidate.files]
    return found if _PICTURE_LOGITS in reference.files and len(found) == len(_EMBEDDINGS) else []


def _same_output(one: Path, other: Path) -> tuple[Array, Array]:
    """Returns the logits of pictures, else the output that both files name, or the first of each; the order is the models'."""
    import numpy as np

    reference, candidate = np.load(one), np.load(other)
    shared = [name for name in reference.files if name in candidate.files]
    if _PICTURE_LOGITS in shared:
        shared = [_PICTURE_LOGITS]
    if shared:
        return reference[shared[0]], candidate[shared[0]]
    return reference[reference.files[0]], candidate[candidate.files[0]]


def _answer(task: str | None, inputs: Inputs, asked: dict[str, Array], output: Array) -> Array:
    """Returns one vector an input, [n, width]: a sentence embedding, the logits of the masked word, or the whole output."""
    import numpy as np

    if inputs.mask_token is not None and output.ndim == 3:
        vectors: Array = output[asked["input_ids"] == inputs.mask_token]
        return vectors
    mask = asked.get("attention_mask")
    if task in EMBEDDINGS and output.ndim == 3:
        return pooled(output, mask if mask is not None else np.ones(output.shape[:2]), inputs.first_token)
    if mask is not None and output.ndim == 3:
        output = output * mask[..., None]  # what stands at padding is nobody's answer
    return output.reshape(output.shape[0], -1)
