"""Data to calibrate a quantiser on: what the command line names, else samples of the catalogue that suit the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from runner.catalog.scaffold import Decision
from runner.compose.row_survey import Read, survey
from runner.data.local import IMAGE_FILES
from runner.data.text_generation import template_columns
from runner.errors import UsageError
from runner.models.tasks import TASKS, WITH_PAST
from runner.templating.clone import Clone
from runner.templating.sample_data import sample_files

NAME = "calibration"
_FORMATS = {".txt": "text", ".md": "text", ".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
# What a model reads -> the set of samples that calibrates it.
Reads = Literal["prose", "sentences", "pictures"]
_SETS: Mapping[Reads, str] = {
    "prose": "prose-calibration",
    "sentences": "sentences-calibration",
    "pictures": "pictures-calibration",
}


@dataclass(frozen=True)
class DataWish:
    """The data that was asked for; what is None is decided.

    Attributes:
        data_name: id of a data set on the hub, a file or a folder.
        data_files: files of the data set.
        subset, split: which part of it.
        text_field: column of text.
        text_template: text with {column} in it.
        use_chat_template: rows are chat messages.
        input_cols: columns of text of a model that reads one or two sentences.
        max_seq_len: tokens of a sample.
        max_samples: samples at most.
        batch_size: samples at a time.
    """

    data_name: str | None = None
    data_files: Sequence[str] = ()
    subset: str | None = None
    split: str | None = None
    text_field: str | None = None
    text_template: str | None = None
    use_chat_template: bool = False
    input_cols: Sequence[str] = ()
    max_seq_len: int | None = None
    max_samples: int | None = None
    batch_size: int | None = None

    @property
    def names_data(self) -> bool:
        """Returns whether it says where data comes from."""
        return bool(self.data_name or self.data_files)


@dataclass(frozen=True)
class Calibration:
    """A data config with what goes beside it.

    Attributes:
        config: the data config, named `NAME`.
        decision: where the data comes from.
        files: sample data for the recipe folder.
    """

    config: Mapping[str, Any]
    decision: Decision
    files: Mapping[str, bytes] = field(default_factory=dict)


def reads_of(task: str | None, folder: Path | None) -> Reads | None:
    """Returns what a model is calibrated on, by its task, else by what lies beside its graph; None where neither says."""
    reads = TASKS[task.removesuffix(WITH_PAST)].reads if task and task.removesuffix(WITH_PAST) in TASKS else ()
    if task and task.removesuffix(WITH_PAST) == "text-generation":
        return "prose"
    if reads:
        return "pictures" if reads == ("image",) else "sentences" if reads == ("text",) else None
    if folder is None:
        return None
    if (folder / "tokenizer.json").is_file():
        return "sentences"
    return "pictures" if (folder / "preprocessor_config.json").is_file() else None


def calibration(reads: Reads | None, wish: DataWish, clone: Clone) -> Calibration:
    """Returns the data config for a model.

    Raises:
        UsageError: nothing is known that suits the model, or the files are not there.
        InvalidRecipe: local files have no such column or split, or hold nothing to read.
    """
    if reads is None:
        raise UsageError(
            "no-calibration-data",
            "no data is at hand that suits what this model reads",
            "give --task, put tokenizer.json or preprocessor_config.json beside the graph, or take an algorithm without data",
        )
    if not wish.names_data:
        named = _SETS[reads]
        files = {f"sample_data/{name}": content for name, content in sample_files([named], clone)}
        load = "sample_data/calibration" if reads == "pictures" else "sample_data/calibration.txt"
        config = _pictures(load, wish) if reads == "pictures" else _text(reads, "text", [load], wish)
        return Calibration(config, Decision("calibration", named, "no data was named; a set of the catalogue"), files)
    decision = Decision("calibration", wish.data_name or ", ".join(wish.data_files), "asked for")
    if reads == "pictures":
        return Calibration(_pictures(_picture_folder(wish), wish), decision)
    name, files_named = located(wish)
    columns = dict.fromkeys(wish.input_cols, "--input_cols") if reads == "sentences" and wish.input_cols else columns_read(wish)
    survey(files_named, Read(columns, [wish.split], "messages" if wish.use_chat_template else None, 0))
    return Calibration(_text(reads, name, files_named, wish), decision)


def located(wish: DataWish) -> tuple[str, Sequence[str]]:
    """Returns the name (or format) and the files of a data set of text, local paths made absolute.

    Raises:
        UsageError: a file is not there, or of no format that is read.
    """
    named, files = wish.data_name or "", list(wish.data_files)
    local = Path(named).expanduser()
    if named and local.is_dir():
        return str(local.absolute()), _absolute(files)
    if named and _is_path(named):
        files, named = [*files, named], ""
    files = _absolute(files)
    if named:
        return named, files
    suffix = Path(files[0]).suffix.lower()
    if suffix not in _FORMATS:
        raise UsageError("unknown-format", f"{files[0]} has no format that is read", f"files end in {', '.join(_FORMATS)}")
    return _FORMATS[suffix], files


def fields_of(template: str | None) -> list[str]:
    """Returns the columns that a template names.

    Raises:
        UsageError: its braces do not match.
    """
    try:
        return template_columns(template or "")
    except ValueError as error:
        raise UsageError("bad-template", f"--text_template: {error}", "write a brace that is no column as {{ or }}") from None


def columns_read(data: DataWish, messages: str = "messages") -> Mapping[str, str]:
    """Returns the columns of text that are read, each with the flag that names it; `messages` is that of conversations."""
    if data.use_chat_template:
        return {messages: "--messages"}
    if data.text_template:
        return dict.fromkeys(fields_of(data.text_template), "--text_template")
    return {data.text_field or "text": "--text_field"}


def _is_path(named: str) -> bool:
    """Says whether a name is that of a file, there or not, rather than an id of the hub or a format."""
    path = Path(named).expanduser()
    return path.is_file() or path.is_absolute() or named.startswith(".") or path.suffix.lower() in _FORMATS


def _absolute(files: Sequence[str]) -> list[str]:
    found = []
    for one in files:
        path = Path(one).expanduser()
        if "://" not in one and "*" not in one and not path.is_file():
            raise UsageError("no-data", f"there is no data file '{one}'", "check the path")
        if path.is_file() and not path.stat().st_size:
            raise UsageError("no-data", f"the data file '{one}' is empty", "name one with rows")
        found.append(one if "://" in one else str(path.absolute()))
    return found


def _text(reads: Reads, name: str, files: Sequence[str], wish: DataWish) -> dict[str, Any]:
    load = {
        "data_name": name,
        **({"subset": wish.subset} if wish.subset else {}),
        **({"data_files": files[0] if len(files) == 1 else list(files)} if files else {}),
        "split": wish.split or "train",
    }
    prepared = _windows(wish) if reads == "prose" else _single_texts(wish)
    return {
        "name": NAME,
        "type": "HuggingfaceContainer",
        "load_dataset_config": load,
        "pre_process_data_config": prepared,
        **({} if reads == "prose" and wish.batch_size is None else {"dataloader_config": {"batch_size": wish.batch_size or 1}}),
    }


def _windows(wish: DataWish) -> dict[str, Any]:
    """Running text for a language model."""
    formed = bool(wish.text_template or wish.use_chat_template)
    return {
        "type": "text_generation_huggingface_pre_process",
        "strategy": "join",
        **({"text_template": wish.text_template} if wish.text_template else {}),
        **({"chat_template": True} if wish.use_chat_template else {}),
        **({} if formed else {"text_cols": wish.text_field or "text"}),
        "max_seq_len": wish.max_seq_len or 512,
        "max_samples": wish.max_samples or 64,
    }


def _single_texts(wish: DataWish) -> dict[str, Any]:
    """Sentences, each as long as it is."""
    for option, given in (("--text_template", wish.text_template), ("--use_chat_template", wish.use_chat_template)):
        if given:
            raise UsageError("bad-usage", f"{option} is for language models", "name the columns with --input_cols")
    columns = list(wish.input_cols) or [wish.text_field or "text"]
    return {
        "type": "tokenizer_pre_process",
        "input_cols": columns,
        "max_length": wish.max_seq_len or 128,
        "padding": False,
        **({"max_samples": wish.max_samples} if wish.max_samples else {}),
    }


def _picture_folder(wish: DataWish) -> str:
    named = [*wish.data_files, *([wish.data_name] if wish.data_name else [])]
    folder = Path(named[0]).expanduser()
    if len(named) != 1 or not folder.is_dir():
        raise UsageError(
            "no-data", f"'{named[0]}' is no folder of pictures", f"name one folder whose files end in {', '.join(IMAGE_FILES)}"
        )
    if not any(file.suffix.lower() in IMAGE_FILES for file in folder.iterdir()):
        raise UsageError("no-data", f"{folder} holds no pictures", f"files of pictures end in {', '.join(IMAGE_FILES)}")
    return str(folder.absolute())


def _pictures(folder: str, wish: DataWish) -> dict[str, Any]:
    most = {"max_samples": wish.max_samples} if wish.max_samples else {}
    return {
        "name": NAME,
        "type": "DataContainer",
        "load_dataset_config": {"type": "images", "path": folder, **most},
        "pre_process_data_config": {"type": "process_images"},
        "dataloader_config": {"batch_size": wish.batch_size or 1},
    }
