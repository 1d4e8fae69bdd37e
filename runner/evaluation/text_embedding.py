"""Text embeddings of a model of any kind, and the benchmarks of mteb on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import DataUnavailable, RunFailed
from runner.evaluation.metric import Metric
from runner.evaluation.retention import correlations, pooled, unit
from runner.models.handle import ModelHandle
from runner.models.inputs import pools_first_token

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_LONGEST = 512
_SMOKE_TASK = "smoke_sts"
# Pairs with how near they are to one another, 0 to 5.
_PAIRS = (
    ("A man plays the guitar.", "Somebody makes music on a guitar.", 4.5),
    ("The cat sleeps on the sofa.", "A cat lies asleep on a couch.", 4.8),
    ("The train arrives at noon.", "Lunch is served at twelve.", 1.5),
    ("Children run across the field.", "The river is frozen.", 0.2),
    ("She reads a long novel.", "She reads a book.", 3.8),
    ("The shop is closed on Sundays.", "Two dogs bark at the gate.", 0.0),
)


class Embedder:
    """A loaded model that turns texts into vectors.

    Sentence encoders are averaged over their tokens, or give the first token's state where their folder says so; decoders
    give the last token's; an output of one vector a text is taken as it is.
    """

    def __init__(self, model: ModelHandle, threads: int, provider: str, max_length: int | None = None) -> None:
        from runner.evaluation.forward import open_forward
        from runner.models.torch_source import load_tokenizer

        self._tokenizer = load_tokenizer(model)
        self._longest = max_length or min(int(self._tokenizer.model_max_length), _LONGEST)
        self._decoder = model.kind == "genai" or (model.task or "").startswith("text-generation")
        self._first_token = pools_first_token(model.folder)
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._tokenizer.padding_side = "right"
        self._forward = open_forward(_with_hidden_states(model), threads, provider)

    def embed(self, texts: Sequence[str], batch_size: int) -> Array:
        """Returns vectors of length 1, float32 [texts, width].

        Raises:
            RunFailed: the model gives no hidden states.
        """
        import numpy as np

        found = []
        for start in range(0, len(texts), batch_size):
            chunk = list(texts[start : start + batch_size])
            encoded = self._tokenizer(chunk, padding=True, truncation=True, max_length=self._longest, return_tensors="np")
            inputs = {name: np.asarray(values) for name, values in encoded.items()}
            found.append(self._vectors(inputs))
        vectors: Array = np.concatenate(found)
        return vectors

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Returns how many tokens of each text are read."""
        encoded = self._tokenizer(list(texts), truncation=True, max_length=self._longest)
        return [len(ids) for ids in encoded["input_ids"]]

    @property
    def vocabulary(self) -> int:
        """Returns the number of tokens that the tokenizer has."""
        return len(self._tokenizer)

    def text_of(self, tokens: Sequence[int]) -> str:
        """Returns the text of tokens; special ones, which the tokenizer adds by itself, count where there are no others."""
        text = str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))
        return text or str(self._tokenizer.decode(list(tokens)))

    def _vectors(self, inputs: Mapping[str, Array]) -> Array:
        import numpy as np

        from runner.evaluation.forward import outputs_of

        outputs = outputs_of(self._forward, inputs)
        for name, value in outputs.items():
            if value.ndim == 2 and ("sentence" in name or "embed" in name):
                return unit(value)
        hidden = next((outputs[name] for name in ("last_hidden_state", "hidden_states") if name in outputs), None)
        if hidden is None or hidden.ndim != 3:
            raise RunFailed(
                "no-hidden-states",
                f"the model gives {', '.join(outputs)}, and no hidden states to make embeddings of",
                "build it with extra_options include_hidden_states, or for the task feature-extraction",
            )
        mask = inputs["attention_mask"]
        if self._decoder:
            return unit(hidden[np.arange(len(hidden)), mask.sum(axis=1) - 1])
        return pooled(hidden, mask, self._first_token)


def _with_hidden_states(model: ModelHandle) -> ModelHandle:
    """Returns the model as one that gives hidden states: a decoder's graph, or a source without its head."""
    if model.kind == "genai":
        from runner.models.generation import genai_config

        return ModelHandle("onnx", model.folder, genai_config(model.folder)["model"]["decoder"]["filename"])
    return replace(model, task="feature-extraction") if model.kind == "hf" else model


def text_embedding_tasks(
    model: ModelHandle, asked: Mapping[str, Any], folder: Path, threads: int, provider: str, smoke: bool
) -> list[Metric]:
    """Runs mteb's tasks on the model's embeddings and returns their main scores, named `task-main_score`.

    Args:
        model: the model.
        asked: the evaluator's keys: `tasks` and what else Olive's MTEBEvaluator takes.
        folder: what `output_folder` is relative to.
        threads: threads to compute with.
        provider: execution provider.
        smoke: six pairs of sentences of our own in place of the tasks, through the same embeddings; mteb is not needed.

    Raises:
        DataUnavailable: a task does not exist or its data cannot be had.
        RunFailed: the model gives no hidden states.
    """
    embedder = Embedder(model, threads, provider, asked.get("max_length"))
    batch_size = int(asked.get("batch_size") or 32)
    if smoke:
        return [_similarity(embedder, batch_size, asked["tasks"])]
    return _benchmark(embedder, asked, folder, batch_size)


def _similarity(embedder: Embedder, batch_size: int, tasks: Sequence[str]) -> Metric:
    """Returns the rank correlation between the cosines of pairs and how near people find them."""
    left, right, truth = zip(*_PAIRS, strict=True)
    cosines = (embedder.embed(left, batch_size) * embedder.embed(right, batch_size)).sum(axis=-1)
    (spearman, _), _ = correlations(truth, cosines, cosines)
    value = spearman.value
    return Metric(f"{_SMOKE_TASK}-main_score", value, "", True, note=f"made-up pairs in place of {', '.join(map(str, tasks))}")


def _benchmark(embedder: Embedder, asked: Mapping[str, Any], folder: Path, batch_size: int) -> list[Metric]:
    import mteb

    class Encoder:
        """The embeddings in the form that mteb asks for."""

        mteb_model_meta = None

        def encode(self, inputs: Any, **_: Any) -> Array:
            return embedder.embed([text for batch in inputs for text in batch["text"]], batch_size)

        def similarity(self, left: Array, right: Array) -> Any:
            return left @ right.T

        def similarity_pairwise(self, left: Array, right: Array) -> Any:
            return (left * right).sum(axis=-1)

    restrict = {key: asked[key] for key in ("eval_splits",) if asked.get(key)}
    try:
        tasks = mteb.get_tasks(tasks=list(asked["tasks"]), **restrict)
        predictions = folder / asked["output_folder"] if asked.get("output_folder") else None
        results = mteb.evaluate(Encoder(), tasks, cache=None, prediction_folder=predictions, show_progress_bar=False)
    except RunFailed:
        raise
    except Exception as error:  # unknown tasks and whatever the HTTP library raises
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataUnavailable(
            f"the tasks {', '.join(map(str, asked['tasks']))} of mteb cannot be run: {told}",
            "mteb fetches their data from the hub; run once with network",
        ) from error
    return [
        Metric(f"{one.task_name}-main_score", float(one.main_score), "", True, note=_splits(one))
        for one in results.task_results
    ]


def _splits(result: Any) -> str:
    return "; ".join(
        f"{split} {one.get('hf_subset', '')} {one['main_score']:.4f}".replace("  ", " ")
        for split, scores in result.scores.items()
        for one in scores
    )
