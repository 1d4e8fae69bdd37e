"""Asks Olive itself whether it accepts the catalogue's configurations, and runs some of them with it.

    python scripts/olive_check.py                         every configuration of the catalogue
    python scripts/olive_check.py DIR FILE ID ID/VARIANT  those below a folder, a file, a recipe, a variant
    python scripts/olive_check.py --run ID/VARIANT        `olive run` as well, with a tiny twin in place of the model

Olive has an environment of its own, because it needs older versions than this project: `--venv DIR` makes it or completes
it, `--python FILE` takes one that is there. It is asked more strictly than it asks itself: options that it would drop with
a warning, and those that it looks at only when a pass runs, count as rejected. An option that this runner declares and
Olive lacks is told as ignored: Olive's result is the one without it. Exit codes: 0 all accepted, 1 not so, 2 bad usage.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runner.catalog.discover import catalog_root
from runner.catalog.find import find
from runner.errors import RecipeError, RunFailed
from runner.passes.table import options_of
from runner.recipe.config import PassConfig

ROOT = Path(__file__).resolve().parents[1]
INSIDE = Path(__file__).with_name("olive_inside.py")
# Versions that work together: Olive 0.13 neither names nor pins them, and fails with later ones.
PACKAGES = (
    "olive-ai==0.13.0",
    "torch==2.13.0",
    "transformers==4.57.6",
    "onnxruntime==1.26.0",
    "onnxruntime-genai==0.14.1",
    "accelerate==1.15.0",
    "datasets==5.0.1",
    "optimum==2.3.0",
    "requests==2.34.2",
    "tabulate==0.10.0",
)
CHECK_SECONDS, RUN_SECONDS = 600.0, 1800.0
NOT_CONFIGS = {"models", "cache", "results", "node_modules"}


@dataclass(frozen=True)
class Verdict:
    """What Olive says of one configuration.

    Attributes:
        config: the configuration.
        rejected: why Olive rejects it; empty where it accepts it.
        ignored: options that Olive does not know and this runner does, as ``step: Pass.option``.
        warnings: what Olive warns of.
    """

    config: Path
    rejected: tuple[str, ...]
    ignored: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """What came of `olive run` on a tiny twin.

    Attributes:
        config: the configuration.
        error: why it failed; None where a model came out and works.
        told: what the model does: the ids of the tokens that it generates, or the names of its outputs.
        seconds: wall time of `olive run`.
    """

    config: Path
    error: str | None
    told: str
    seconds: float


def configs_of(word: str) -> list[Path]:
    """Returns the configurations that a word names: a file, those below a folder, a recipe's, or a variant's.

    Raises:
        UsageError: nothing has that name.
    """
    path = Path(word).expanduser()
    if path.is_file():
        return [path.resolve()]
    if path.is_dir():
        return list(configs_below(path.resolve()))
    found = find(word)
    named_variant = found.variant is not None and word.rstrip("/").endswith(f"/{found.variant.name}")
    return [found.config.resolve()] if named_variant else list(configs_below(found.folder.resolve()))


def configs_below(folder: Path) -> Iterator[Path]:
    """Yields the JSON files with an input model and passes, and those that are named as such but hold no JSON."""
    for path in sorted(folder.rglob("*.json")):
        between = path.relative_to(folder).parts[:-1]
        if any(part in NOT_CONFIGS or part.startswith(".") for part in between):
            continue
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            data = {"input_model": {}, "passes": {}} if path.name.startswith("olive_config") else None
        if isinstance(data, dict) and isinstance(data.get("input_model"), dict) and "passes" in data:
            yield path


def verdict(answer: Mapping[str, Any]) -> Verdict:
    """Returns the verdict that follows from an answer of olive_inside.py."""
    ignored, rejected = [], []
    for problem in answer["problems"]:
        if "pass" in problem and is_ours(problem["pass"], problem["unknown"]):
            ignored.append(f"{problem['where']}: {problem['pass']}.{problem['unknown']}")
            continue
        nearest = f" (did you mean '{problem['nearest']}'?)" if problem.get("nearest") else ""
        rejected.append(": ".join(part for part in (problem["where"], f"{problem['cause']}{nearest}") if part))
    return Verdict(Path(answer["path"]), tuple(rejected), tuple(ignored), tuple(answer["warnings"]))


def is_ours(pass_name: str, option: str) -> bool:
    """Says whether this runner's pass of that name, or every step, declares the option."""
    declared = options_of(pass_name)[0]
    return declared is not None and (option in declared[1].model_fields or option in PassConfig.model_fields)


# --- Olive's environment ---------------------------------------------------------------------------------------------


def environment(venv: Path) -> Path:
    """Returns the Python of an environment with Olive, which is made or completed unless it has these very packages.

    Raises:
        SystemExit: pip fails; what it said stands above.
    """
    python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = venv / ".olive-packages"
    if stamp.is_file() and stamp.read_text(encoding="utf-8").split() == list(PACKAGES):
        return python
    print(f"making Olive's environment in {venv}", file=sys.stderr, flush=True)
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
    if subprocess.run(command, check=False).returncode:
        sys.exit("pip failed; what it said stands above")
    stamp.write_text("\n".join(PACKAGES), encoding="utf-8")
    return python


def ask(python: Path, configs: Sequence[Path], scratch: Path) -> tuple[str, list[Verdict]]:
    """Returns Olive's version and its verdicts, all from one process.

    Raises:
        SystemExit: that process fails.
    """
    question = scratch / "question.json"
    question.write_text(json.dumps([str(path) for path in configs]), encoding="utf-8")
    answer = _inside(python, "check", question, scratch)
    return answer["olive"], [verdict(one) for one in answer["configs"]]


def _inside(python: Path, verb: str, question: Path, scratch: Path) -> dict[str, Any]:
    answer = scratch / f"{verb}.json"
    answer.unlink(missing_ok=True)
    command = [str(python), str(INSIDE), verb, str(question), str(answer)]
    done = subprocess.run(
        command, cwd=scratch, env=_variables(), capture_output=True, text=True, timeout=CHECK_SECONDS, check=False
    )
    if not answer.is_file():
        sys.exit(f"{python} could not {verb}:\n{done.stderr[-2000:]}")
    told: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return told


def _variables() -> dict[str, str]:
    """The variables of Olive's process: the clone, for user scripts that take what recipes share; no telemetry, no network."""
    kept = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    return {**kept, "PYTHONPATH": str(ROOT), "OLIVE_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"}


# --- olive run -------------------------------------------------------------------------------------------------------


def run(python: Path, config: Path, scratch: Path) -> Run:
    """Runs a configuration with `olive run` in a copy of its folder, with a tiny twin in place of the model."""
    folder = scratch / "recipe"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(config.parent, folder, ignore=shutil.ignore_patterns("models", "results", "cache"))
    output = scratch / "output"
    shutil.rmtree(output, ignore_errors=True)
    started = time.monotonic()
    try:
        prepared = _with_twin(json.loads(config.read_text(encoding="utf-8")), scratch / "twins", output)
        (folder / config.name).write_text(json.dumps(prepared), encoding="utf-8")
        _olive_run(python, folder, config.name)
        error, told = None, _load(python, output, scratch)
    except RecipeError as problem:
        error, told = problem.problems[0].cause, ""
    return Run(config, error, told, time.monotonic() - started)


def _with_twin(config: dict[str, Any], twins: Path, output: Path) -> dict[str, Any]:
    """Returns the configuration for the tiny twin of its model, which is made once a model."""
    model = config["input_model"]
    inner = model.get("config", model)
    model_id = inner.get("model_path")
    if model.get("type", "").lower() != "hfmodel" or not model_id:
        raise RunFailed("no-tiny-twin", f"only an HfModel has a tiny twin, and this is a {model.get('type')}")
    folder = twins / model_id.replace("/", "--")
    if not folder.is_dir():
        make_twin(model_id, inner.get("task"), folder)
    inner["model_path"] = str(folder)
    return {**config, "output_dir": str(output), "cache_dir": str(output.with_name("olive-cache"))}


def make_twin(model_id: str, task: str | None, folder: Path) -> None:
    """Writes the tiny twin of a model in the form that transformers 4 reads."""
    from runner.models.twin import architecture_of
    from runner.passes.export import tiny_twin

    twin = architecture_of(model_id)
    tiny_twin.make_twin(twin, task or twin.task, folder)
    for name, older in (("config.json", older_config), ("tokenizer_config.json", older_tokenizer)):
        path = folder / name
        if path.is_file():
            facts = older(json.loads(path.read_text(encoding="utf-8")))
            path.write_text(json.dumps(facts, indent=2), encoding="utf-8")


def older_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config.json with the names that transformers 4 knows: rope_theta and rope_scaling beside rope_parameters."""
    facts = {**config, "torch_dtype": config.get("dtype", "float32")}
    rope = config.get("rope_parameters") or {}
    if "full_attention" in rope:  # one entry a kind of layer
        facts["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    if "rope_theta" in rope:
        facts["rope_theta"] = rope["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        facts["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    return facts


def older_tokenizer(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a tokenizer_config.json that names a class which transformers 4 has."""
    return {**config, "tokenizer_class": "PreTrainedTokenizerFast"}


def _olive_run(python: Path, folder: Path, name: str) -> None:
    """Runs Olive. Its exit code alone says little: it is 0 after a pass that raised.

    Raises:
        RunFailed: it ended with an error or without a model.
    """
    command = [str(python.with_name("olive")), "run", "--config", name]
    try:
        done = subprocess.run(
            command, cwd=folder, env=_variables(), capture_output=True, text=True, timeout=RUN_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise RunFailed("timeout", f"olive run was not done after {RUN_SECONDS:.0f} s") from None
    told = f"{done.stdout}\n{done.stderr}"
    if done.returncode == 0 and "No output model produced" not in told and "Failed to run Olive" not in told:
        return
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line or "error:" in line]
    why = (errors or lines or ["nothing told"])[-1]
    raise RunFailed("olive-failed", f"olive run ended with exit code {done.returncode}: {why}")


def _load(python: Path, output: Path, scratch: Path) -> str:
    """Returns what the model of a run does in Olive's environment."""
    try:
        told = _inside(python, "load", output, scratch)
    except SystemExit as problem:
        raise RunFailed("dead-model", f"the model that came out does not work: {str(problem).splitlines()[-1]}") from None
    return f"generates {told['tokens']}" if "tokens" in told else f"gives {told['outputs']}"


def is_cpu_language_model(config: Path) -> bool:
    """Says whether a configuration makes a language model for the CPU."""
    text = config.read_text(encoding="utf-8")
    return '"ModelBuilder"' in text and "CPUExecutionProvider" in text and "text-generation" in text


# --- the report ------------------------------------------------------------------------------------------------------


def show(version: str, verdicts: Sequence[Verdict], runs: Sequence[Run]) -> None:
    """Prints what is rejected, what is ignored and how often, what came of the runs, and the count."""
    for one in verdicts:
        for why in one.rejected:
            print(f"{_shown(one.config)}: rejected: {why}")
    for option, count in _counted(line for one in verdicts for line in one.ignored):
        print(f"ignored by Olive in {count} of {len(verdicts)}: {option}")
    for warning, count in _counted(line for one in verdicts for line in one.warnings):
        print(f"warned in {count} of {len(verdicts)}: {warning}")
    for made in runs:
        print(f"{_shown(made.config)}: {'failed: ' + made.error if made.error else made.told} ({made.seconds:.0f} s)")
    rejected = sum(bool(one.rejected) for one in verdicts)
    print(f"Olive {version} accepts {len(verdicts) - rejected} of {len(verdicts)} configurations")
    if runs:
        print(f"olive run: {sum(made.error is None for made in runs)} of {len(runs)} gave a model that works")


def _counted(lines: Iterable[str]) -> list[tuple[str, int]]:
    counts: dict[str, int] = {}
    for line in lines:
        counts[line] = counts.get(line, 0) + 1
    return sorted(counts.items(), key=lambda one: -one[1])


def _shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)


def report(version: str, verdicts: Sequence[Verdict], runs: Sequence[Run]) -> dict[str, Any]:
    """Returns the same as JSON values."""
    return {
        "olive": version,
        "configs": [{**asdict(one), "config": _shown(one.config), "accepted": not one.rejected} for one in verdicts],
        "runs": [{**asdict(one), "config": _shown(one.config)} for one in runs],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WHAT", help="folder, file, recipe or recipe/variant; the catalogue")
    parser.add_argument("--run", action="store_true", help="`olive run` too; of a whole folder the CPU's language models")
    parser.add_argument("--json", action="store_true", help="print JSON")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--venv", type=Path, default=ROOT / ".venv-olive", metavar="DIR", help="Olive's environment")
    where.add_argument("--python", type=Path, metavar="FILE", help="the Python of an environment with Olive")
    chosen = parser.parse_args(arguments)
    try:
        configs = [path for word in chosen.words or [str(catalog_root())] for path in configs_of(word)]
    except RecipeError as problem:
        parser.error(str(problem))
    if not configs:
        parser.error(f"no configuration in {', '.join(chosen.words) or 'the catalogue'}")
    if chosen.python and not chosen.python.is_file():
        parser.error(f"--python: there is no file '{chosen.python}'")
    python = chosen.python.absolute() if chosen.python else environment(chosen.venv.absolute())
    with tempfile.TemporaryDirectory(prefix="olive-check-") as name:
        scratch = Path(name)
        version, verdicts = ask(python, configs, scratch)
        wanted = [one.config for one in verdicts if not one.rejected and is_cpu_language_model(one.config)]
        runs = [run(python, config, scratch) for config in (wanted if chosen.run else [])]
    if chosen.json:
        print(json.dumps(report(version, verdicts, runs), indent=2))
    else:
        show(version, verdicts, runs)
    return int(any(one.rejected for one in verdicts) or any(one.error for one in runs))


if __name__ == "__main__":
    sys.exit(main())
