"""`recipe tune`: the session parameters that make an ONNX model fast on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from runner.cli.composed_flags import ListsCommand, run_flags
from runner.cli.flags import flag, flags, model_flag, output_flag
from runner.errors import UsageError

if TYPE_CHECKING:
    from runner.engine.run import Outcome

_UNUSED = (
    "io_bind",
    "enable_cuda_graph",
    "trt_fp16_enable",
    "enable_profiling",
    "disable_force_evaluate_other_eps",
    "predict_with_kv_cache",
)


def _values(kind: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str | None], list[Any] | None]:
    def read(_: click.Context, parameter: click.Parameter, value: str | None) -> list[Any] | None:
        if value is None:
            return None
        try:
            found = [kind(part) for part in value.replace(",", " ").split()]
        except ValueError:
            raise UsageError(
                "bad-value", f"{parameter.opts[0]} {value}: these are no whole numbers", "for example 1 2 4"
            ) from None
        if not found:
            raise UsageError("bad-value", f"{parameter.opts[0]} needs at least one value", "for example 1 2 4")
        return found

    return read


def _entries(_: click.Context, parameter: click.Parameter, value: str | None) -> dict[str, str] | None:
    if value is None:
        return None
    try:
        told = json.loads(value)
        return {str(key): str(entry) for key, entry in told.items()}
    except (ValueError, AttributeError):
        raise UsageError(
            "bad-value",
            f"{parameter.opts[0]}: this is no JSON object",
            """for example '{"session.use_env_allocators": "1"}' """,
        ) from None


@click.command(cls=ListsCommand)
@flags(
    model_flag,
    output_flag,
    flag("cpu_cores", "--cpu_cores", type=click.IntRange(min=1), metavar="N", help="Most threads to try."),
    flag("intra_thread_num_list", "--intra_thread_num_list", callback=_values(int), metavar="N ...", help="Threads to try."),
    flag(
        "inter_thread_num_list", "--inter_thread_num_list", callback=_values(int), metavar="N ...",
        help="Operators at a time to try.",
    ),
    flag(
        "execution_mode_list", "--execution_mode_list", callback=_values(str), metavar="MODE ...",
        help="sequential (0), parallel (1).",
    ),
    flag("opt_level_list", "--opt_level_list", callback=_values(int), metavar="N ...", help="Levels to try: 0, 1, 2, 99."),
    flag("extra_session_config", "--extra_session_config", callback=_entries, metavar="JSON", help="For every trial."),
    flag("batch_size", "--batch_size", "--batch", type=click.IntRange(min=1), help="Inputs at a time; 1 by default."),
    flag("sequence_length", "--sequence_length", "--seq_len", type=click.IntRange(min=1), help="Tokens of a text."),
    flag("seconds", "--seconds", type=click.FloatRange(min=0, min_open=True, max=60), help="Of a trial; 1 by default."),
    flag("providers_list", "--providers_list", callback=_values(str), metavar="NAME ...", hidden=True),
    *(flag(name, f"--{name}", is_flag=True, hidden=True) for name in _UNUSED),
    *run_flags,
)  # fmt: skip
def tune(dry_run: bool, force: bool, as_json: bool, log_level: int, max_memory: float | None, **given: Any) -> None:
    """Find the session parameters that make an ONNX model fast on this machine.

    MODEL is an ONNX file, or a folder of onnxruntime-genai. The model goes to the output with what was found beside it;
    'recipe try', 'recipe serve' and 'recipe bench' use it on machines with as many cores.
    """
    from runner.cli.carry_out import Way, limits_of
    from runner.cli.composed_flags import subject_and_wish
    from runner.cli.composed_run import run_composed, say_at
    from runner.compose.known import look_up
    from runner.compose.single_step import compose
    from runner.compose.tuning import tuning
    from runner.engine.request import require_device

    given["provider"] = given["provider"] or next(iter(given.pop("providers_list") or ()), None)
    subject, wish = subject_and_wish(given)
    for name in _UNUSED:
        if given.pop(name):
            say_at(log_level, f"note: --{name} does nothing here: 'recipe passes show OrtSessionParamsTuning' says why")
    known = look_up(subject, wish.catalog, wish.offline)
    chain = tuning(known, {name: value for name, value in given.items() if value is not None}, wish.target)
    composed, request = compose(known, chain, wish, f"{subject.name}, tuned for this machine")
    if not dry_run:
        require_device(request)
    outcome = run_composed(composed, request, Way(dry_run, force, as_json, limits_of(max_memory)), log_level)
    if outcome is not None and not as_json:
        _show(outcome)


def _show(outcome: Outcome) -> None:
    """Prints what was tried, and the winner against the default."""
    from runner.cli.tables import print_table
    from runner.models.session import TUNED_FILE

    told = json.loads((outcome.model.folder / TUNED_FILE).read_text(encoding="utf-8"))
    default, tuned = told["latency_ms"]["default"], told["latency_ms"]["tuned"]
    rows = []
    for number, trial in enumerate(told["trials"]):
        marks = ("the default" if number == 0 else "", "the winner" if trial["options"] == told["options"] else "")
        ratio = f"{default / trial['latency_ms']:.2f}x"
        rows.append((_plainly(trial["options"]), f"{trial['latency_ms']:.3f}", ratio, ", ".join(filter(None, marks))))
    click.echo()
    print_table(("session options", "ms", "speed", ""), rows, right=("ms", "speed"))
    ratio = f"{default / tuned:.2f}x the speed of the default"
    what = "nothing is clearly faster" if default == tuned else f"{ratio} ({default:.3f} ms)"
    click.echo(f"\n{_plainly(told['options'])}: {tuned:.3f} ms {told['measured']}, {what}")


def _plainly(options: dict[str, Any]) -> str:
    entries: Sequence[tuple[str, Any]] = [(key, value) for key, value in options.items() if key != "config"]
    return (
        "nothing set"
        if not options
        else ", ".join(f"{key}={value}" for key, value in (*entries, *options.get("config", {}).items()))
    )
