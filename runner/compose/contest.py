"""From a run's outcome to its benchmark: which models meet, on which data, under which gates."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import GateMissed, InvalidRecipe, Problem
from runner.evaluation.torch_form import TorchForm
from runner.models.inputs import read_facts
from runner.passes.record import settings_digest
from runner.passes.table import options_of
from runner.recipe.document import read_document
from runner.recipe.info import Evaluation
from runner.recipe.load import LoadedConfig, load_config
from runner.targets.target import Target

if TYPE_CHECKING:
    from runner.bench.results import Results
    from runner.engine.run import Outcome

RANDOM_WEIGHTS = "random_weights"  # in config.json: the weights have the model's shapes, and nobody trained them
TURN_SECONDS, SMOKE_TURN_SECONDS = 1.0, 0.05


@dataclass(frozen=True)
class Judged:
    """What a model is judged by in place of its recipe's data, and the sizes by which its speed is measured.

    Attributes:
        images: folder of pictures; folders in it are named after what their pictures show.
        speech: folder of sounds with transcripts, or a data set of the hub.
        pairs: csv or tsv of sentence pairs with scores.
        batch: inputs at once.
        length: tokens of a text, or of a prompt.
        baselines: how PyTorch runs the original; the target's own choice where none are named.
    """

    images: Path | None = None
    speech: str | None = None
    pairs: Path | None = None
    batch: tuple[int, ...] = ()
    length: tuple[int, ...] = ()
    baselines: tuple[TorchForm, ...] = ()

    def data(self) -> dict[str, str]:
        """Returns the data by what info.yml calls it."""
        given = {"images": self.images, "pairs": self.pairs}
        files = {name: str(path.resolve()) for name, path in given.items() if path}
        return {**files, "speech": self.speech} if self.speech else files

    def typed(self) -> str:
        """Returns the options as they are typed; of paths the last name only."""
        numbers = {"batch": self.batch, "length": self.length}
        words = [f"--{name} {Path(told).name if Path(told).exists() else told}" for name, told in self.data().items()]
        words += [f"--{name} {','.join(map(str, values))}" for name, values in numbers.items() if values]
        words += [f"--baseline {form}" for form in self.baselines]
        return "".join(f" {word}" for word in words)


def measure(
    outcome: Outcome, rounds: int, judged: Judged, progress: Callable[[str, int, int], None] = lambda text, done, total: None
) -> Results:
    """Measures the model of a run against the model that it came from, and returns what was found.

    Args:
        outcome: the run.
        rounds: turns that each side gets; one for a smoke run.
        judged: data in place of the recipe's, and sizes.
        progress: told what is being done, and how many of how many actions are done.

    Raises:
        TargetUnavailable: the model was made for a target that cannot be used here.
        RecipeError: see `runner.bench.bench.bench`.
    """
    from runner.bench.bench import Contest, bench
    from runner.bench.inputs_record import Sizes
    from runner.engine.request import require_device

    plan, request = outcome.plan, outcome.plan.request
    require_device(request)
    info = request.info
    variant = info.variant(request.variant) if info else None
    log = plan.places.logs / f"{time.strftime('%Y%m%d-%H%M%S')}-bench-{request.name.replace('/', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    evaluation = info.evaluation if info else Evaluation()
    of_plan = outcome.receipt["fingerprint"] == plan.steps[-1].fingerprint  # not of a folder that something else made
    random_weights = bool(read_facts(outcome.source.folder).get(RANDOM_WEIGHTS))
    typed = judged.typed() + (" --model-path RANDOM_WEIGHTS" if random_weights else "") + (" --smoke" if request.smoke else "")
    contest = Contest(
        output=outcome.model,
        source=outcome.source,
        recipe=info.name if info else request.name,
        variant=request.variant,
        model_id=_without_place(request.config.input_model.model_path),
        evaluation=evaluation.model_copy(update=judged.data()),
        gates=variant.gates if variant else {},
        folder=request.loaded.folder,
        target=plan.target,
        threads=plan.threads,
        rounds=1 if request.smoke else rounds,
        turn_seconds=SMOKE_TURN_SECONDS if request.smoke else TURN_SECONDS,
        smoke=request.smoke,
        source_digest=plan.source.digest,
        fingerprint=outcome.receipt["fingerprint"],
        passes={step.pass_name: step.ingredients["pass_version"] for step in plan.steps} if of_plan else None,
        settings=_settings(request.loaded) if of_plan else None,
        command=f"recipe bench {request.name if of_plan else plan.output.name} --rounds {rounds}{typed}",
        sizes=Sizes(judged.batch, judged.length),
        baselines=judged.baselines or (_usual_baseline(plan.target, variant.precision if variant else None),),
        random_weights=random_weights,
        log=log,
    )
    return bench(contest, progress)


def _settings(loaded: LoadedConfig) -> str:
    """Returns the digest of the file's passes as they are written there, or of others where flags or fragments changed them."""
    used = settings_digest(loaded.tree.plain())
    try:
        changed = settings_digest(load_config(loaded.files[:1], options_of).tree.plain()) != used
    except InvalidRecipe:  # several values, of which a search took one
        changed = True
    return used if changed else settings_digest(read_document(loaded.files[0]).plain())


def _without_place(model_path: str | None) -> str | None:
    """Returns a model's id, and of a local folder the name alone: results name no place of this machine."""
    return Path(model_path).name if model_path and Path(model_path).is_dir() else model_path


def _usual_baseline(target: Target, precision: str | None) -> TorchForm:
    """The original as people run it: fp32 on a processor, half precision on CUDA, in the type of the optimised model.

    PyTorch has no DirectML: against that it runs on the processor.
    """
    if target.name != "cuda":
        return TorchForm()
    return TorchForm("bf16" if precision == "bf16" else "fp16")


def check_gates(name: str, results: Results) -> None:
    """Raises a `GateMissed` that names every gate that the results of `name` miss."""
    missed = [verdict for verdict in results.gates if not verdict.met]
    if missed:
        raise GateMissed(*(Problem("gate-missed", f"{name}: {verdict}") for verdict in missed))
