"""The runner from Python: `from runner import load_recipe, run, optimize, benchmark, finetune`.

Everything here starts worker processes for what is heavy and imports no ML library itself. What goes wrong is raised as a
`runner.errors.RecipeError`, whose problems have a rule, a place, a cause and a remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.compose.arguments import check_count, check_is, check_threads, check_timeout, memory_bytes, override_texts
from runner.compose.contest import Judged, measure
from runner.compose.finetune import FineTuned, finetune
from runner.compose.finished import check_same_source, finished_request
from runner.compose.optimise import Decided, Wish, decide
from runner.compose.request import make_request
from runner.compose.subject import subject_of
from runner.engine.ahead import of_request
from runner.engine.events import Event
from runner.engine.limits import Limits
from runner.engine.plan import Plan
from runner.engine.request import Request, require_device
from runner.engine.run import Outcome, as_it_lies, execute, plan_run
from runner.errors import UsageError
from runner.recipe.config import RunConfig
from runner.targets.target import target_named

if TYPE_CHECKING:
    from runner.bench.results import Results
    from runner.catalog.scaffold import Decision
    from runner.compose.choices import Trade

__all__ = [
    "Benchmark",
    "FineTuned",
    "Optimized",
    "Recipe",
    "RunResult",
    "benchmark",
    "finetune",
    "load_recipe",
    "optimize",
    "run",
]

Say = Callable[[str], None]


def _silent(_: str) -> None:
    """Says nothing."""


@dataclass(frozen=True)
class Recipe:
    """A checked configuration that can be run.

    Attributes:
        request: the configuration with how it is to be run.
    """

    request: Request

    @property
    def name(self) -> str:
        """Returns its id and variant, or the configuration's file name."""
        return self.request.name

    @property
    def folder(self) -> Path:
        """Returns the folder of its configuration."""
        return self.request.loaded.folder

    @property
    def config(self) -> RunConfig:
        """Returns the typed configuration, defaults filled in."""
        return self.request.config

    @property
    def variants(self) -> tuple[str, ...]:
        """Returns the names of the variants of its recipe; none for a lone configuration."""
        return tuple(variant.name for variant in self.request.info.recipes) if self.request.info else ()

    def plan(self, say: Say = _silent) -> Plan:
        """Returns what a run would do, fetching nothing: steps, which of them are cached, notes."""
        return plan_run(self.request, say, fetch=False)


@dataclass(frozen=True)
class RunResult:
    """A model that was made.

    Attributes:
        outcome: the run, as the engine tells it.
    """

    outcome: Outcome

    @property
    def folder(self) -> Path:
        """Returns the folder of the model."""
        return self.outcome.plan.output

    @property
    def receipt(self) -> Mapping[str, Any]:
        """Returns what receipt.json says: inputs, options, versions, digests, timings, metrics."""
        return self.outcome.receipt

    @property
    def metrics(self) -> Mapping[str, float]:
        """Returns the figures of the configuration's evaluator by name; none without an evaluator."""
        return {metric["name"]: metric["value"] for metric in self.outcome.receipt["metrics"]}

    @property
    def bytes(self) -> int:
        """Returns the size of the model's files."""
        return sum(int(known["size"]) for known in self.outcome.receipt["files"].values())

    @property
    def seconds(self) -> float:
        """Returns the wall time of the run."""
        return self.outcome.seconds

    @property
    def cached(self) -> bool:
        """Returns whether every step was in the store already."""
        return self.outcome.log is None


@dataclass(frozen=True)
class Optimized(RunResult):
    """A model that was optimised, and what was decided for it.

    Attributes:
        decided: the recipe beside the output, and why it is that one.
    """

    decided: Decided

    @property
    def recipe_folder(self) -> Path:
        """Returns the folder of the recipe that was used: run it again, change it, offer it to the catalogue."""
        return self.decided.composed.folder

    @property
    def recipe_name(self) -> str | None:
        """Returns the catalogue's recipe that it is from; None where the model has none."""
        return self.decided.recipe

    @property
    def decisions(self) -> Sequence[Decision]:
        """Returns what was decided, and why."""
        return self.decided.composed.decisions


@dataclass(frozen=True)
class Benchmark:
    """Figures of a model against the model it came from, measured in one sitting.

    Attributes:
        results: all rows, with samples, units, gates and the environment.
        run: the model.
    """

    results: Results
    run: RunResult

    @property
    def values(self) -> Mapping[str, float]:
        """Returns the optimised model's figures by name, each in the unit of its row."""
        return {row.name: row.optimised.value for row in self.results.rows}

    @property
    def ratios(self) -> Mapping[str, float]:
        """Returns the figures as multiples of the original model's, where both were measured."""
        return {row.name: row.ratio.value for row in self.results.rows if row.ratio is not None}

    @property
    def passed(self) -> bool:
        """Returns whether every gate of the recipe is met."""
        return all(verdict.met for verdict in self.results.gates)


def load_recipe(
    word: str | Path,
    *,
    variant: str | None = None,
    target: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    model: str | Path | None = None,
    output: str | Path | None = None,
    smoke: bool = False,
    offline: bool = False,
    trust: bool = False,
    threads: int | None = None,
    use_cache: bool = True,
    catalog: str | Path | None = None,
) -> Recipe:
    """Returns a recipe of the catalogue, of a folder, or of a configuration file.

    Args:
        word: a name, `name/variant`, the model's Hugging Face id, a recipe folder, or a config file.
        variant: name of the variant; the recipe's first when None.
        target: ``cpu``, ``cuda`` or ``directml``: the recipe's first variant for it.
        overrides: dotted path to value, such as ``{"passes.build.int4_block_size": 64}``.
        model: a local folder in place of the recipe's source model.
        output: folder for the model; models/ID-VARIANT when None.
        smoke: a tiny random-weight twin and synthetic data in place of the real ones.
        offline: no network.
        trust: allow code that comes with the model or from outside the catalogue.
        threads: threads to compute with; one a core when None.
        use_cache: take finished steps from the store.
        catalog: folder of recipes; $RECIPE_CATALOG or the nearest recipes/ when None.

    Raises:
        UsageError: nothing has that name, or an argument is none that is taken.
        InvalidRecipe: the configuration has problems; all of them are told.
    """
    check_threads(threads)
    request = make_request(
        str(word),
        catalog=Path(catalog) if catalog else None,
        variant=variant,
        target=target_named(target) if target else None,
        overrides=override_texts(overrides),
        model_path=str(model) if model else None,
        smoke=smoke,
        offline=offline,
        trust=trust,
        threads=threads,
        output_dir=Path(output) if output else None,
        no_cache=not use_cache,
    )
    return Recipe(request)


def run(
    recipe: Recipe | str | Path,
    *,
    max_memory: int | str | None = None,
    timeout: float | None = None,
    say: Say = _silent,
    **options: Any,
) -> RunResult:
    """Makes the model that a recipe describes and returns where it is and what came of it.

    Args:
        recipe: a loaded recipe, or what `load_recipe` takes; then `options` are its further arguments.
        max_memory: bytes that the worker may hold, or a text such as ``8GB``.
        timeout: seconds that it may take.
        say: told what is being done.
        options: see `load_recipe`.

    Raises:
        UsageError: an argument is none that is taken, or the configuration describes a search, which `recipe run` and
            `recipe search` carry out.
        GateMissed: the model was made, but a goal of its evaluator is not met.
        RecipeError: whatever else stands in the way. Finished steps are kept.
    """
    check_timeout(timeout)
    limits = Limits(memory_bytes(max_memory), timeout)
    return RunResult(_execute(_loaded(recipe, options).request, limits, say))


def optimize(
    model: str | Path | None,
    *,
    output: str | Path | None = None,
    target: str | None = None,
    precision: str | None = None,
    trade: Trade | None = None,
    task: str | None = None,
    adapter: str | Path | None = None,
    model_script: str | Path | None = None,
    script_dir: str | Path | None = None,
    max_memory: int | str | None = None,
    overrides: Mapping[str, Any] | None = None,
    smoke: bool = False,
    offline: bool = False,
    trust: bool = False,
    threads: int | None = None,
    use_cache: bool = True,
    catalog: str | Path | None = None,
    say: Say = _silent,
) -> Optimized:
    """Makes a small, fast ONNX model of any model, by the catalogue's recipe or that of the nearest architecture.

    Args:
        model: Hugging Face id, model folder, ONNX file, or a PyTorch model's weights; None where `model_script` needs none.
        output: folder for the result; the recipe goes to OUTPUT-recipe.
        target: ``cpu`` (the default), ``cuda`` or ``directml``.
        precision: ``int4``, ``int8``, ``fp16``, ``fp32``, or a scheme such as ``int4-gptq``; decided when None.
        trade: ``size``, ``speed`` or ``quality``: what matters most.
        task: Hugging Face task; what the architecture is for when None.
        adapter: folder of an adapter in peft's format, to be merged in.
        model_script: Python file with the functions of a PyTorch model.
        script_dir: folder of modules that it imports.
        max_memory: bytes that the run may use, or a text such as ``8GB``; a pipeline that needs less is chosen where there
            is one.
        overrides: dotted path to value, laid over the configuration.
        smoke, offline, trust, threads, use_cache, catalog: see `load_recipe`.
        say: told what is being done.

    Raises:
        UsageError: something that was asked for does not exist, or does not go together.
        RecipeError: whatever else stands in the way. Finished steps are kept.
    """
    check_threads(threads)
    limits, texts = Limits(memory_bytes(max_memory)), override_texts(overrides)
    subject = subject_of(
        str(model) if model else None,
        task=task,
        model_script=Path(model_script) if model_script else None,
        script_dir=Path(script_dir) if script_dir else None,
        adapter=str(adapter) if adapter else None,
    )
    wish = Wish(
        subject,
        Path(output) if output else None,
        target_named(target) if target else None,
        precision,
        trade,
        limits.memory,
        texts,
        Path(catalog) if catalog else None,
        offline=offline,
        trust=trust,
        smoke=smoke,
        threads=threads,
        no_cache=not use_cache,
    )
    decided = decide(wish, say)
    return Optimized(_execute(decided.request, limits, say), decided)


def benchmark(
    subject: Recipe | RunResult | str | Path,
    *,
    rounds: int = 5,
    judged: Judged | None = None,
    say: Say = _silent,
    **options: Any,
) -> Benchmark:
    """Measures an optimised model against the PyTorch model it came from, in one sitting, in turns.

    Args:
        subject: what `run` or `optimize` returned, a recipe, which is made first, or the folder of a finished model, which is
            measured as it lies.
        rounds: turns that each side gets.
        judged: data in place of the recipe's, and sizes by which the speed is measured.
        say: told what is being done.
        options: see `load_recipe`; `max_memory` and `timeout` as for `run`.

    Raises:
        UsageError: an argument is none that is taken.
        TargetUnavailable: its target cannot be used here; nothing was made.
        RecipeError: a model cannot be made or measured. Gates are told by `Benchmark.passed`, not raised.
    """
    check_count("rounds", rounds)
    check_is("judged", judged, Judged, "judged=Judged(batch=(1, 8))")
    if isinstance(subject, RunResult) and options:
        raise TypeError(f"a finished run takes no further options: give {', '.join(options)} to run")
    if isinstance(subject, RunResult):
        made = subject
    else:
        limits = {name: options.pop(name) for name in ("max_memory", "timeout") if name in options}
        finished = None if isinstance(subject, Recipe) else _finished(subject, options)
        recipe = Recipe(finished) if finished else _loaded(subject, options)
        require_device(recipe.request)
        made = _lying(recipe.request, say) if finished else run(recipe, say=say, **limits)
    results = measure(made.outcome, rounds, judged or Judged(), lambda text, done, total: say(text))
    return Benchmark(results, made)


def _loaded(recipe: Recipe | str | Path, options: Mapping[str, Any]) -> Recipe:
    if not isinstance(recipe, Recipe):
        return load_recipe(recipe, **options)
    if options:
        raise TypeError(f"a loaded recipe takes no further options: give {', '.join(options)} to load_recipe")
    return recipe


def _finished(folder: str | Path, options: Mapping[str, Any]) -> Request | None:
    """Returns the request that led to the finished model in a folder; None where there is none."""
    catalog, threads = options.get("catalog"), options.get("threads")
    check_threads(threads)
    told = {
        "model_path": options.get("model"),
        "output_dir": options.get("output"),
        "no_cache": not options.get("use_cache", True),
    }
    beside = {name: value for name, value in options.items() if name not in ("catalog", "model", "output", "use_cache")}
    return finished_request(str(folder), Path(catalog) if catalog else None, {**beside, **told})


def _lying(request: Request, say: Say) -> RunResult:
    plan = plan_run(request, say, force=True)
    check_same_source(plan)
    return RunResult(as_it_lies(plan, _telling(say)))


def _telling(say: Say) -> Callable[[Event], None]:
    def listen(event: Event) -> None:
        if event.text:
            say(f"{event.step}: {event.text}" if event.step else event.text)

    return listen


def _execute(request: Request, limits: Limits, say: Say) -> Outcome:
    if request.loaded.varies:
        axes = ", ".join(axis.name for axis in request.loaded.axes)
        raise UsageError(
            "describes-a-search",
            f"{request.name}: {axes} can have several values, and this makes one model",
            "search on the command line, with 'recipe search' or 'recipe run', or choose one value by overrides",
        )

    with of_request(request) as ahead:
        plan = plan_run(request, say, max_memory=limits.memory, ahead=ahead)
        for step in plan.steps:
            if step.state != "to do":
                say(f"{step.name}: {step.state}")
        return execute(plan, _telling(say), limits, ahead)
