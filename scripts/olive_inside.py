"""What olive_check.py runs inside Olive's own environment: it imports Olive and the standard library, nothing of this project.

python olive_inside.py check QUESTION.json ANSWER.json     QUESTION: a list of paths of configurations
python olive_inside.py load FOLDER ANSWER.json             FOLDER: what `olive run` wrote
"""

from __future__ import annotations

import difflib
import importlib.metadata
import inspect
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TOKENS = 4


class Warnings(logging.Handler):
    """Keeps what Olive warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps the message of a record."""
        self.told.append(record.getMessage())


def check(paths: list[str]) -> dict[str, Any]:
    """Returns Olive's version and, for every configuration, what Olive says of it.

    A problem has ``where`` (step, or part of the configuration), ``cause`` and, for a name that Olive does not know,
    ``unknown`` and ``nearest``.
    """
    warnings = Warnings()
    logging.getLogger("olive").addHandler(warnings)
    answers = []
    for path in paths:
        warnings.told.clear()
        os.chdir(Path(path).parent)
        problems = list(_problems(Path(path)))
        answers.append({"path": path, "problems": problems, "warnings": list(dict.fromkeys(warnings.told))})
    return {"olive": importlib.metadata.version("olive-ai"), "configs": answers}


def _problems(path: Path) -> Iterator[dict[str, Any]]:
    from olive.package_config import OlivePackageConfig
    from olive.systems.accelerator_creator import create_accelerator
    from olive.systems.system_config import LocalTargetUserConfig, SystemConfig
    from olive.workflows.run.config import RunConfig

    try:
        config = RunConfig.parse_file_or_obj(path)
        target = config.engine.target or SystemConfig(type="LocalSystem", config=LocalTargetUserConfig())
        accelerator = create_accelerator(target, skip_supported_eps_check=True)
    except Exception as error:  # whatever Olive raises is its answer
        yield from _causes("", error)
        return
    yield from _unknown_arguments(config.input_model)
    packages = OlivePackageConfig.load_default_config()
    searches = bool(config.engine.search_strategy)
    for step, passes in config.passes.items():
        for one in passes:
            yield from _of_pass(step, one, packages, accelerator, searches)


def _unknown_arguments(model: Any) -> Iterator[dict[str, Any]]:
    """What Olive finds only when it makes the model's handler: arguments that the handler lacks."""
    from olive.model.config.registry import get_model_handler

    known = list(inspect.signature(get_model_handler(model.type)).parameters)
    for name in model.config:
        if name not in known:
            yield _unknown("input_model", name, known, f"{model.type} has no argument")


def _of_pass(step: str, one: Any, packages: Any, accelerator: Any, searches: bool) -> Iterator[dict[str, Any]]:
    """What Olive finds only when it runs the pass, and the options that it would drop without an error."""
    try:
        declared = packages.import_pass_module(one.type)
    except ImportError as error:
        yield {"where": step, "cause": f"{one.type} cannot be imported: {error}"}
        return
    except ValueError:
        yield _unknown(step, one.type, list(packages.passes), "there is no pass")
        return
    options = dict(one.config or {})
    known = list(declared.default_config(accelerator))
    for name in [name for name in options if name not in known]:
        del options[name]
        yield {**_unknown(step, name, known, f"{declared.__name__} has no option"), "pass": declared.__name__}
    try:
        settled = declared.generate_config(accelerator, options, disable_search=not searches)
        if not searches and not declared.validate_config(settled, accelerator):
            yield {"where": step, "cause": f"{declared.__name__} would be skipped with these options on this target"}
    except Exception as error:  # whatever Olive raises is its answer
        yield from _causes(step, error)


def _unknown(where: str, name: str, known: list[str], cause: str) -> dict[str, Any]:
    nearest = difflib.get_close_matches(name, known, 1)
    return {"where": where, "cause": f"{cause} '{name}'", "unknown": name, "nearest": nearest[0] if nearest else None}


def _causes(where: str, error: Exception) -> Iterator[dict[str, Any]]:
    """Yields the causes of an error; pydantic tells several at once."""
    details = getattr(error, "errors", None)
    if not callable(details):
        yield {"where": where, "cause": f"{type(error).__name__}: {error}"}
        return
    for one in details():
        place = ".".join([part for part in (where, *map(str, one["loc"])) if part])
        yield {"where": place, "cause": one["msg"]}


def load(folder: Path) -> dict[str, Any]:
    """Returns what the model in a folder does here: ``tokens`` that it generates, or else the ``outputs`` of its graphs.

    Raises:
        FileNotFoundError: there is no ONNX model in the folder.
    """
    for config in sorted(folder.rglob("genai_config.json")):
        return {"tokens": _generate(config.parent)}
    import onnxruntime

    graphs = sorted(folder.rglob("*.onnx"))
    if not graphs:
        raise FileNotFoundError(f"no ONNX model in {folder}")
    sessions = {str(graph.relative_to(folder)): onnxruntime.InferenceSession(str(graph)) for graph in graphs}
    return {"outputs": {name: [one.name for one in session.get_outputs()] for name, session in sessions.items()}}


def _generate(folder: Path) -> list[int]:
    import onnxruntime_genai

    model = onnxruntime_genai.Model(str(folder))
    prompt = list(onnxruntime_genai.Tokenizer(model).encode("The weather was"))
    options = onnxruntime_genai.GeneratorParams(model)
    options.set_search_options(max_length=len(prompt) + TOKENS, min_length=len(prompt) + TOKENS, do_sample=False)
    generator = onnxruntime_genai.Generator(model, options)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)[len(prompt) :]]


def main(arguments: list[str]) -> None:
    """Answers one question."""
    verb, question, answer = arguments
    told = check(json.loads(Path(question).read_text(encoding="utf-8"))) if verb == "check" else load(Path(question))
    Path(answer).write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
