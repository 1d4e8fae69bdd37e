"""Measures a Whisper recipe's CPU variants against PyTorch and the builder's own int8 and int4: word errors, speed, size.

    python scripts/whisper_table.py whisper-base [--speech FOLDER ...] [--rounds 5]

All of them hear the same clips in turn, each in a process of its own, round after round; a ratio is taken within each round.
A folder of speech holds wav files and transcripts.txt; the recipe's own is always heard.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console

from runner.catalog.find import find
from runner.data.sound import read_sound, speech
from runner.engine.request import Request
from runner.engine.run import Outcome, execute, plan_run
from runner.evaluation.subject_process import SubjectProcess
from runner.evaluation.word_errors import word_error_rate
from runner.models.handle import ModelHandle
from runner.models.sound_windows import SAMPLE_RATE
from runner.passes.table import options_of
from runner.recipe.load import load_config
from runner.targets.target import TARGETS, session_threads

CATALOG = Path(__file__).resolve().parents[1] / "recipes"
VARIANTS = ("cpu-fp32", "cpu-int8", "cpu-int4")
BUILDERS = ("int8", "int4")
BASELINE = "PyTorch fp32"


def main() -> None:
    """Makes the models, measures, and prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipe", help="id of a Whisper recipe")
    parser.add_argument("--speech", action="append", type=Path, default=[], metavar="FOLDER", help="heard as well")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every model")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="whisper-table-") as scratch:
        models = dict(_models(asked.recipe, Path(scratch)))
        own = find(asked.recipe, CATALOG).folder / "sample_data" / "speech"
        print("\n".join(_table(models, [own, *asked.speech], asked.rounds, Path(scratch))))


def _models(recipe: str, scratch: Path) -> Iterator[tuple[str, ModelHandle]]:
    """Yields the source, the recipe's variants, and what the builder alone makes of the source."""
    source: ModelHandle | None = None
    for variant in VARIANTS:
        found = find(recipe, CATALOG, variant)
        made = _made(Request(load_config([found.config], options_of), found.info, variant, output_dir=scratch / variant))
        if source is None:
            source = made.source
            yield BASELINE, source
        yield variant, made.model
    assert source is not None
    for precision in BUILDERS:
        config = scratch / f"builder-{precision}.json"
        document = {
            "input_model": {"type": "HfModel", "model_path": str(source.folder), "task": source.task},
            "passes": {"build": {"type": "ModelBuilder", "precision": precision}},
            "output_dir": str(scratch / config.stem),
        }
        config.write_text(json.dumps(document), encoding="utf-8")
        yield f"builder's own {precision}", _made(Request(load_config([config], options_of))).model


def _made(request: Request) -> Outcome:
    return execute(plan_run(request, lambda _: None), lambda _: None)


def _table(models: dict[str, ModelHandle], folders: Sequence[Path], rounds: int, scratch: Path) -> Iterator[str]:
    console = Console(stderr=True)
    clips = [[*speech(folder)] for folder in folders]
    sounds = [read_sound(clip.path) for listed in clips for clip in listed]
    length = sum(len(sound) for sound in sounds) / SAMPLE_RATE
    np.savez(scratch / "sounds.npz", **{f"{at:04}": sound for at, sound in enumerate(sounds)})  # type: ignore[arg-type]
    factors: dict[str, list[float]] = {name: [] for name in models}
    texts: dict[str, list[str]] = {}
    for number in range(rounds):
        for name, model in models.items():
            console.print(f"round {number + 1} of {rounds}: {name}")
            with SubjectProcess(model, name) as process:
                process.load(session_threads(), TARGETS["cpu"].provider, generates=True)
                process.ask("transcribe", sounds=str(scratch / "sounds.npz"))
                answer = process.ask("transcribe", sounds=str(scratch / "sounds.npz"))
            factors[name].append(answer["seconds"] / length)
            texts[name] = answer["texts"]
    counts = [sum(len(clip.text.split()) for clip in listed) for listed in clips]
    yield f"{len(sounds)} clips, {length:.0f} s, {rounds} rounds, {session_threads()} threads"
    yield ""
    heads = [f"WER {folder.name} ({count} words)" for folder, count in zip(folders, counts, strict=True)]
    yield f"| model | real-time factor, s/s | speed of {BASELINE} | {' | '.join(heads)} | MB |"
    yield "|---|---:|---:|" + "---:|" * (len(heads) + 1)
    for name, model in models.items():
        gain = median(theirs / ours for theirs, ours in zip(factors[BASELINE], factors[name], strict=True))
        heard, rates = iter(texts[name]), []
        for listed in clips:
            rates.append(word_error_rate([clip.text for clip in listed], [next(heard) for _ in listed]).value)
        size = sum(path.stat().st_size for path in model.folder.rglob("*") if path.is_file()) / 1e6
        told = " | ".join(f"{rate:.1%}" for rate in rates)
        yield f"| {name} | {median(factors[name]):.3f} | {gain:.2f}x | {told} | {size:.0f} |"


if __name__ == "__main__":
    main()
