"""Makes and measures CUDA recipes of every kind, piece by piece.

    python scripts/gpu_suite.py [--work FOLDER] [--seconds 520] [--only smollm2-fp16,machine]

A finished piece leaves FOLDER/done/NAME.json, and a second start skips it; a piece that brought no figures is not finished.
Without a GPU and the wheel for it nothing starts, exit 1; exit 3 says that nothing failed and the time did not suffice for all.
No piece is begun that is not likely to end within --seconds, so that a machine that is lent for minutes gets through the set in
several starts. No network is needed: real weights come from the wheels in $PIP_FIND_LINKS where they lie there, and models of
the real shapes with random weights are made for the rest (scripts/random_models.py), of which the results say so.
`recipe bench --save` writes results into the recipes' folders.
scripts/gpu_page.py makes docs/gpu.md of everything.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the runner of this clone, as for the pieces

from runner.targets.devices import nvidia_devices  # noqa: E402
from runner.targets.target import TARGETS, usable_cores, what_is_missing  # noqa: E402

EAGER, EAGER_BF16 = ("--baseline", "fp16"), ("--baseline", "bf16")
BOTH = (*EAGER, "--baseline", "fp16-compiled")
LENGTHS = ("--length", "128,1024,4096,16384", "--batch", "1,8")
TWO_LENGTHS = ("--length", "128,4096", "--batch", "1,8")
BATCHES = ("--batch", "1,8,32", "--length", "128")
PICTURES = ("--batch", "1,8,32")
LEFT = 3  # exit code where pieces wait for another start
MAKERS = 8  # models that --make makes at once


@dataclass(frozen=True)
class Piece:
    """One thing that is made and measured.

    Attributes:
        name: of its record.
        seconds: that it is likely to take on an H100 with 16 cores.
        making: seconds that making its model takes before, where it is not made yet.
        recipe: ID/VARIANT that `recipe bench` measures; empty where `script` is run instead.
        options: of `recipe bench`, or of the script.
        random: made of random weights of the model's shape, since no wheel brings the real ones.
        script: script below scripts/ that prints its figures as JSON in its last line.
    """

    name: str
    seconds: int
    recipe: str = ""
    options: tuple[str, ...] = ()
    random: bool = False
    script: str = ""
    making: int = 0


SMOL, LLAMA, MISTRAL = "smollm2-135m-instruct", "llama-3.2-1b-instruct", "mistral-7b-instruct-v0.3"
PIECES: Sequence[Piece] = (
    Piece("machine", 20, script="gpu_limits.py"),
    Piece("llama-1b-fp16", 110, f"{LLAMA}/cuda-fp16", (*BOTH, *LENGTHS), random=True),
    Piece("llama-1b-int4", 70, f"{LLAMA}/cuda-int4", (*EAGER, *LENGTHS), random=True),
    Piece("decode-1b", 40, options=("llama-1b-fp16", "llama-1b-int4"), script="gpu_decode.py"),
    Piece("mistral-7b-fp16", 170, f"{MISTRAL}/cuda-fp16", (*EAGER, *TWO_LENGTHS), random=True, making=160),
    Piece("mistral-7b-int4", 80, f"{MISTRAL}/cuda-int4", EAGER, random=True, making=300),
    Piece("decode-7b", 60, options=("mistral-7b-fp16", "mistral-7b-int4"), script="gpu_decode.py"),
    Piece("smollm2-fp16", 115, f"{SMOL}/cuda-fp16", (*EAGER, "--length", "128,1024,4096", "--batch", "1,8"), making=55),
    Piece("smollm2-int4", 80, f"{SMOL}/cuda-int4", EAGER, making=100),
    Piece("smollm2-bf16", 80, f"{SMOL}/cuda-bf16", EAGER_BF16, making=75),
    Piece("smollm2-int4-gptq", 80, f"{SMOL}/cuda-int4-gptq", EAGER, making=250),
    Piece("minilm-fp16", 70, "all-minilm-l6-v2/cuda-fp16", (*BOTH, *BATCHES)),
    Piece("minilm-int8", 40, "all-minilm-l6-v2/cuda-int8", (*EAGER, *BATCHES)),
    Piece("bert-base-fp16", 60, "bert-base-uncased/cuda-fp16", (*EAGER, *BATCHES), random=True, making=90),
    Piece("bert-base-kernels", 30, options=("bert-base-fp16",), script="gpu_kernels.py"),
    Piece("bert-base-int8", 40, "bert-base-uncased/cuda-int8", (*EAGER, *BATCHES), random=True),
    Piece("vit-base-fp16", 60, "vit-base-patch16-224/cuda-fp16", (*EAGER, *PICTURES), random=True, making=80),
    Piece("vit-base-kernels", 30, options=("vit-base-fp16",), script="gpu_kernels.py"),
    Piece("whisper-tiny.en-fp16", 50, "whisper-tiny.en/cuda-fp16", EAGER, making=30),
    Piece("whisper-base-fp16", 60, "whisper-base/cuda-fp16", EAGER, making=40),
    Piece("whisper-base-int8", 60, "whisper-base/cuda-int8", EAGER, making=60),
    Piece("clip-b32-fp16", 70, "clip-vit-base-patch32/cuda-fp16", (*EAGER, *PICTURES), random=True, making=80),
    Piece("resnet-50-fp16", 60, "resnet-50/cuda-fp16", (*EAGER, *PICTURES), random=True, making=50),
    Piece("qwen2.5-0.5b-int4", 80, "qwen2.5-0.5b-instruct/cuda-int4", EAGER, random=True, making=80),
    Piece("gemma-3-1b-bf16", 90, "gemma-3-1b-it/cuda-bf16", EAGER_BF16, random=True, making=90),
    Piece("dinov2-small-fp16", 70, "dinov2-small/cuda-fp16", (*EAGER, *PICTURES), random=True, making=70),
    Piece("lora-smollm2", 110, script="gpu_finetune.py"),
    Piece("stable-diffusion-fp16", 80, "stable-diffusion-v1-4/cuda-fp16", EAGER, random=True, making=300),
    Piece("stable-diffusion-kernels", 60, options=("stable-diffusion-fp16",), script="gpu_kernels.py"),
    # torch.compile takes minutes, so that it comes last: what it stands beside is in the results by then.
    Piece("bert-base-compiled", 180, "bert-base-uncased/cuda-fp16", (*BOTH, *BATCHES), random=True),
    Piece("vit-base-compiled", 180, "vit-base-patch16-224/cuda-fp16", (*BOTH, *PICTURES), random=True),
    Piece("stable-diffusion-compiled", 240, "stable-diffusion-v1-4/cuda-fp16", BOTH, random=True, making=300),
)


@dataclass(frozen=True)
class Suite:
    """One start.

    Attributes:
        work: folder of records, logs, models and the cache.
        until: second (of the monotonic clock) at which everything is over.
        target: `cuda`, or `cpu` to try the suite itself.
        smoke: tiny twins.
        rounds: turns that each side gets.
    """

    work: Path
    until: float
    target: str
    smoke: bool
    rounds: int

    def left(self) -> float:
        """Returns the seconds that are left."""
        return self.until - time.monotonic()

    def record(self, piece: Piece) -> Path:
        """Returns the file that a finished piece leaves."""
        return self.work / "done" / f"{piece.name}.json"

    def done_before(self, piece: Piece) -> bool:
        """Returns whether an earlier start left the piece's figures, at the sizes of this one."""
        record = self.record(piece)
        told = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
        return bool(told.get("figures")) and told.get("smoke", False) == self.small

    def need(self, piece: Piece) -> int:
        """Returns the seconds that a piece is likely to take now."""
        made = (self.work / "models" / piece.name / "receipt.json").is_file()
        return piece.seconds + (0 if made else piece.making)

    def make(self, pieces: Sequence[Piece]) -> None:
        """Makes the models of pieces, several at once, each with its share of the cores; measuring finds them in the cache.

        Making ends early enough for everything to be measured, or with half of the time; what is not made by then is made in a
        later start.
        """
        until = self.until - min(self.left() / 2, sum(piece.seconds for piece in pieces))
        models = [piece for piece in pieces if piece.recipe]
        threads = max(1, usable_cores() // max(1, min(MAKERS, len(models))))
        recipes = dict.fromkeys(piece.recipe.partition("/")[0] for piece in pieces if piece.random and not self.smoke)
        with ThreadPoolExecutor(MAKERS) as several:
            sources = {recipe: several.submit(self._make_source, recipe, until) for recipe in recipes}

            def make(piece: Piece) -> None:
                source = sources.get(piece.recipe.partition("/")[0])
                if source is not None:
                    source.result()
                self._make_model(piece, threads, until)

            list(several.map(make, models))

    def _make_source(self, recipe: str, until: float) -> None:
        source = self.work / "random" / recipe
        if not (source / "config.json").is_file():
            self._quietly(
                [sys.executable, str(ROOT / "scripts" / "random_models.py"), recipe, str(source)], f"source-{recipe}", until
            )

    def _make_model(self, piece: Piece, threads: int, until: float) -> None:
        *_, command = self._commands(piece)
        at = command.index("bench")
        command = [*command[:at], "run", command[at + 1], "--json", *_kept(command, ("--output-dir", "--model-path"))]
        command += ["--threads", str(threads)]
        command += ["--smoke"] if self.smoke else []
        self._quietly(command, f"make-{piece.name}", until)

    def _quietly(self, command: Sequence[str], name: str, until: float) -> None:
        """Runs a command with its output in logs/; what fails here is told where it is measured."""
        begun = time.monotonic()
        path = self.work / "logs" / f"{name}.log"
        with path.open("w", encoding="utf-8") as log:
            try:
                done = subprocess.run(
                    command, stdout=log, stderr=log, env=self._environment(), cwd=ROOT, check=False,
                    timeout=max(1.0, until - begun),
                )  # fmt: skip
                told = f"code {done.returncode}"
            except subprocess.TimeoutExpired:
                told = "stopped, since what is left is for measuring"
        print(f"{name}: {told}, {time.monotonic() - begun:.0f} s", flush=True)

    def log(self, piece: Piece) -> Path:
        """Returns the file that takes what a piece says."""
        return self.work / "logs" / f"{piece.name}.log"

    def run(self, piece: Piece) -> str | None:
        """Runs a piece; returns None where it is done and has left its record, and otherwise why it is not."""
        started = time.monotonic()
        with self.log(piece).open("w", encoding="utf-8") as log:
            codes, told = [], ""
            for command in self._commands(piece):
                log.write(f"$ {' '.join(command)}\n")
                log.flush()
                try:
                    done = subprocess.run(
                        command, stdout=subprocess.PIPE, stderr=log, text=True, env=self._environment(), cwd=ROOT,
                        check=False, timeout=max(1.0, self.left()),
                    )  # fmt: skip
                except subprocess.TimeoutExpired:
                    log.write("stopped: no time is left\n")
                    return "stopped: no time is left"
                codes.append(done.returncode)
                told = done.stdout
                log.write(told)
                log.flush()
                if done.returncode not in (0, 4):  # 4: measured, and a gate is missed, which the results tell
                    return f"exit {done.returncode}: {_last_line(self.log(piece))}"
        figures = _figures(told, last_line=bool(piece.script))
        if not figures:
            return f"it brought no figures: {_last_line(self.log(piece))}"
        record = {"piece": piece.name, "seconds": round(time.monotonic() - started, 1), "code": codes[-1],
                  "random_weights": _of_random_weights(piece),
                  "smoke": self.small, "card": self._card(), "figures": figures}  # fmt: skip
        self.record(piece).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        return None

    @property
    def small(self) -> bool:
        """Whether scripts take their small sizes: for tiny twins, and for a try on a CPU."""
        return self.smoke or self.target == "cpu"

    def _card(self) -> str | None:
        """The name of the card that computes; None on a CPU."""
        found = nvidia_devices().devices if self.target == "cuda" else ()
        return found[0].name if found else None

    def _commands(self, piece: Piece) -> Iterator[list[str]]:
        if piece.script:
            options = [*piece.options, *(("--smoke",) if self.small else ())]
            yield [sys.executable, str(ROOT / "scripts" / piece.script), "--work", str(self.work), *options]
            return
        recipe = piece.recipe if self.target == "cuda" else piece.recipe.partition("/")[0]
        command = [sys.executable, "-m", "runner", "bench", recipe, "--json", "--save", "--rounds", str(self.rounds)]
        command += ["--output-dir", str(self.work / "models" / piece.name), *piece.options]
        if self.smoke:
            command.append("--smoke")
        elif piece.random:
            source = self.work / "random" / recipe.partition("/")[0]
            if not (source / "config.json").is_file():  # written last
                yield [sys.executable, str(ROOT / "scripts" / "random_models.py"), source.name, str(source)]
            command += ["--model-path", str(source)]
        yield command

    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        return {"RECIPE_CACHE": str(self.work / "cache"), "HF_HUB_OFFLINE": "1", **os.environ, "PYTHONPATH": path}


def _of_random_weights(piece: Piece) -> bool:
    """Whether a piece's model, or one of those that its script measures, has random weights."""
    return piece.random or any(other.random for other in PIECES if other.name in piece.options)


def _figures(told: str, *, last_line: bool) -> Any:
    """Returns the figures that a piece printed as JSON, in its last line or as a whole; None where it printed none."""
    lines = told.strip().splitlines()
    try:
        return json.loads(lines[-1] if last_line and lines else told)
    except ValueError:
        return None


def _last_line(log: Path) -> str:
    """Returns the last line of a log that says something; not an indented one, which is a remedy or a place in the code."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    last = next((line.rstrip() for line in reversed(lines) if line.strip() and not line[0].isspace()), "it said nothing")
    if not last.startswith('{"error": '):
        return last
    message: str = json.loads(last)["error"]["message"]  # as `recipe --json` tells it
    return message.partition("\n")[0]


def _kept(command: Sequence[str], names: Sequence[str]) -> list[str]:
    """Returns those options of a command, with their values."""
    return [word for name, value in pairwise(command) if name in names for word in (name, value)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is not done yet, as far as the time suffices.

    Returns:
        1 where a piece failed or nothing can be measured, `LEFT` where pieces wait for another start, and else 0.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "models" / "gpu-suite", help="folder of records and models")
    parser.add_argument("--seconds", type=float, default=520, help="no piece is begun that would end later")
    parser.add_argument("--only", help="names of pieces, separated by commas")
    parser.add_argument("--rounds", type=int, default=3, help="turns that each side gets")
    parser.add_argument("--target", choices=("cuda", "cpu"), default="cuda", help="cpu tries the suite itself, at small sizes")
    parser.add_argument("--smoke", action="store_true", help="tiny twins in place of the models")
    parser.add_argument("--make", action="store_true", help="make the models first, several at once, and measure then")
    asked = parser.parse_args(arguments)
    known = {piece.name: piece for piece in PIECES}
    names = asked.only.split(",") if asked.only else list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"there is no piece '{unknown[0]}'; there are {', '.join(known)}")
    if asked.target == "cuda" and (missing := what_is_missing(TARGETS["cuda"])):
        cause, remedy = missing
        print(f"nothing is measured: {cause}\n    {remedy}; --target cpu --smoke tries the suite itself", file=sys.stderr)
        return 1
    suite = Suite(asked.work.absolute(), time.monotonic() + asked.seconds, asked.target, asked.smoke, asked.rounds)
    for folder in ("done", "logs", "models"):
        (suite.work / folder).mkdir(parents=True, exist_ok=True)
    if asked.make:
        suite.make([known[name] for name in names if not suite.done_before(known[name])])
    failed, left = [], []
    for piece in (known[name] for name in names):
        if suite.done_before(piece):
            print(f"{piece.name}: done before", flush=True)
        elif suite.need(piece) > suite.left() and not asked.smoke:
            print(f"{piece.name}: {suite.need(piece)} s are not left; start again for it", flush=True)
            left.append(piece.name)
        else:
            begun = time.monotonic()
            reason = suite.run(piece)
            print(f"{piece.name}: {'FAILED' if reason else 'done'} in {time.monotonic() - begun:.0f} s", flush=True)
            if reason:
                print(f"    {reason}\n    log: {suite.log(piece)}", flush=True)
                failed.append(piece.name)
    return 1 if failed else LEFT if left else 0


if __name__ == "__main__":
    sys.exit(main())
