"""What the two sides of a benchmark are asked: the request for it, and the record of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from runner.models.handle import ModelHandle
from runner.recipe.info import Evaluation


@dataclass(frozen=True)
class Sizes:
    """How many inputs at once, and how long: what the speed is measured by. Empty for the task's own choice.

    Attributes:
        batches: numbers of inputs.
        lengths: tokens of an input; of texts only.
    """

    batches: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()


@dataclass(frozen=True)
class Case:
    """Inputs of one size.

    Attributes:
        feed: their file.
        batch: how many they are.
        length: tokens of each; None of pictures.
    """

    feed: str
    batch: int
    length: int | None = None


@dataclass(frozen=True)
class Request:
    """What the parent asks for.

    Attributes:
        source: the model that the recipe started from.
        output: the optimised model.
        evaluation: the recipe's evaluation data.
        folder: the recipe's folder.
        scratch: folder for the arrays.
        sizes: what the speed is measured by.
    """

    source: ModelHandle
    output: ModelHandle
    evaluation: Evaluation
    folder: Path
    scratch: Path
    sizes: Sizes = field(default_factory=Sizes)

    def to_line(self) -> str:
        """Returns the request as one line of JSON."""
        return json.dumps(
            {
                "source": self.source.to_json(),
                "output": self.output.to_json(),
                "evaluation": self.evaluation.model_dump(),
                "folder": str(self.folder),
                "scratch": str(self.scratch),
                "sizes": asdict(self.sizes),
            }
        )

    @classmethod
    def parse(cls, line: str) -> Request:
        """Returns the request that `to_line` gave."""
        data = json.loads(line)
        return cls(
            ModelHandle.from_json(data["source"]),
            ModelHandle.from_json(data["output"]),
            Evaluation.model_validate(data["evaluation"]),
            Path(data["folder"]),
            Path(data["scratch"]),
            Sizes(*(tuple(data["sizes"][name]) for name in ("batches", "lengths"))),
        )


@dataclass(frozen=True)
class Inputs:
    """Inputs of all scenarios. Files are .npz, one array an input.

    Attributes:
        prompt: token ids that are generated from; empty where nothing is.
        windows: token windows for perplexity; empty where there is no text.
        single: file with one input.
        batch: file with `BATCH` inputs.
        grid: inputs of other sizes, on which speed alone is measured.
        answers: files with the inputs on which both sides' answers are compared.
        pairs: files with the tokens of pairs of sentences: all first ones, then all second ones.
        scores: how near people find the sentences of each pair; greater is nearer.
        sounds: file with the clips that are transcribed, mono at 16 kHz, in the order of their names.
        transcripts: what is said in them; empty where nobody knows.
        sound_seconds: how long they are together.
        prompts: what is drawn, one a round.
        mask_token: id of the mask token, for masked words.
        truth: number of the right class of every picture in `answers`; empty where nobody knows.
        first_token: embeddings are the first token's state, not the mean.
        about: what one input is, in words.
        notes: what a reader of the results must know.
    """

    prompt: tuple[int, ...] = ()
    windows: tuple[tuple[int, ...], ...] = ()
    single: str | None = None
    batch: str | None = None
    grid: tuple[Case, ...] = ()
    answers: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    sounds: str | None = None
    transcripts: tuple[str, ...] = ()
    sound_seconds: float = 0.0
    prompts: tuple[str, ...] = ()
    mask_token: int | None = None
    truth: tuple[int, ...] = ()
    first_token: bool = False
    about: str = ""
    notes: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Inputs:
        """Returns the record of plain data."""
        return cls(
            **{
                **data,
                "prompt": tuple(data["prompt"]),
                "windows": tuple(tuple(ids) for ids in data["windows"]),
                "grid": tuple(Case(**case) for case in data["grid"]),
                "answers": tuple(data["answers"]),
                "pairs": tuple(data["pairs"]),
                "scores": tuple(data["scores"]),
                "transcripts": tuple(data["transcripts"]),
                "prompts": tuple(data["prompts"]),
                "truth": tuple(data["truth"]),
                "notes": tuple(data["notes"]),
            }
        )
