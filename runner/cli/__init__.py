"""The command `recipe`: a group whose verbs are imported when they are called, and the one place where errors become text."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import click

from runner.cli.options import catalog_option
from runner.errors import Problem, RecipeError, UsageError, did_you_mean

BUG_OF_OURS = 3
INTERRUPTED = 130

# Section -> verb -> (module:command, what it does).
SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Look": {
        "ls": ("runner.cli.listing:ls", "List the recipes of the catalogue."),
        "show": ("runner.cli.show:show", "Show a recipe, its resolved config and where each value comes from."),
        "passes": ("runner.cli.passes:passes", "List the passes and show their options."),
        "doctor": ("runner.cli.doctor:doctor", "Tell what this machine can run, and what mends what it cannot."),
    },
    "Work": {
        "run": ("runner.cli.run:run", "Run a recipe: from its source model to an optimised ONNX model."),
        "bench": ("runner.cli.bench:bench", "Measure a recipe's model against the model it came from."),
        "try": ("runner.cli.try_model:try_model", "Ask a model something, or show it an input."),
        "serve": ("runner.cli.serve:serve", "Offer a model on this machine by OpenAI's protocol."),
        "bisect": ("runner.cli.bisect:bisect", "Name the first step of a run that breaks the numbers, and the tensors."),
        "cache": ("runner.cli.cache:cache", "Look into the store of finished steps, and clean it."),
    },
    "From a model": {
        "optimize": ("runner.cli.optimize:optimize", "Make a small, fast ONNX model of any model (also: auto-opt)."),
        "init": ("runner.cli.init:init", "Ask what is wanted, step by step, and do it."),
        "finetune": ("runner.cli.finetune:finetune", "Train an adapter, merge it, and write the recipe to ONNX."),
        "search": ("runner.cli.search:search", "Try the options of a recipe, and keep the best model."),
        "quantize": ("runner.cli.quantize:quantize", "Quantise a model by one algorithm."),
        "export": ("runner.cli.export:export", "Capture the ONNX graph of a model."),
        "tune": ("runner.cli.tune:tune", "Find the session parameters that make an ONNX model fast here."),
        "run-pass": ("runner.cli.run_pass:run_pass", "Apply one pass to a model."),
        "convert-adapters": ("runner.cli.convert_adapters:convert_adapters", "Turn adapters into files that GenAI loads."),
    },
    "Write": {
        "new": ("runner.cli.new:new", "Scaffold a recipe for a model: a folder that lints and smokes at once."),
        "copy": ("runner.cli.copies:copy", "Copy a recipe under a name of your own; it remembers its origin."),
        "diff": ("runner.cli.copies:diff", "Show what a copy changed against its origin, or how two recipes differ."),
        "check": ("runner.cli.check:check", "Lint and smoke-run what changed, or the recipes that are named."),
        "lock": ("runner.cli.lock:lock", "Record revision and digests of a recipe's source model."),
        "render": ("runner.cli.upkeep:render", "Render configs, READMEs and requirements from the templates."),
        "lint": ("runner.cli.lint:lint", "Check recipes against the rules of the catalogue."),
        "schema": ("runner.cli.upkeep:schema", "Write the JSON Schemas of olive_config.json and info.yml."),
    },
}
_VERBS = {verb: entry for verbs in SECTIONS.values() for verb, entry in verbs.items()}
ALIASES = {"auto-opt": "optimize", "capture-onnx-graph": "export", "tune-session-params": "tune"}


class LazyGroup(click.Group):
    """A group that imports a verb's module when the verb is called; its help needs none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the verbs in the order of the help."""
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Returns the verb's command, or None."""
        verb = ALIASES.get(cmd_name, cmd_name)
        if verb not in _VERBS:
            return None
        module, _, attribute = _VERBS[verb][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Returns the verb's name, its command and what follows; says the nearest verb where there is none of that name."""
        if args and args[0] not in _VERBS and args[0] not in ALIASES and not args[0].startswith("-"):
            raise UsageError("unknown-verb", f"there is no verb '{args[0]}'", did_you_mean(args[0], _VERBS))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the verbs by section."""
        for section, verbs in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl([(verb, summary) for verb, (_, summary) in verbs.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="onnx-recipes", prog_name="recipe")
@catalog_option
def cli() -> None:
    """Recipes that turn a model into a small, fast ONNX model, and measure what was gained and lost.

    Exit codes: 0 done, 1 the run failed, 2 usage or invalid recipe, 3 a bug of ours, 4 a quality gate missed,
    130 interrupted.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with its code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # it looks for them in every installed package
    signal.signal(signal.SIGTERM, _as_interrupt)
    sys.exit(run_command(arguments))


def _as_interrupt(*_: object) -> None:
    """A termination signal cleans up like Ctrl-C."""
    raise KeyboardInterrupt


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; errors are told on stderr, as JSON where JSON was asked for."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        code = cli.main(args=words, prog_name="recipe", standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except RecipeError as error:
        if wants_json(words):
            _tell_json(error.problems, error.exit_code)
        else:
            tell(error)
        return error.exit_code
    except click.ClickException as error:
        if wants_json(words):
            shown = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "recipe"
            _tell_json([Problem("bad-usage", error.format_message(), remedy=f"{shown} --help")], error.exit_code)
        else:
            error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        if wants_json(words):
            _tell_json([Problem("interrupted", "interrupted")], INTERRUPTED)
        else:
            click.echo("interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception:
        _tell_bug(traceback.format_exc(), as_json=wants_json(words))
        return BUG_OF_OURS


def wants_json(words: Sequence[str]) -> bool:
    """Says whether a command line asks for JSON, whether or not it can be carried out; `check` writes its JSON to a file."""
    ahead = list(words[: words.index("--")]) if "--" in words else list(words)
    if "--json" not in ahead:
        return False
    command: click.Command = cli
    for word in ahead:
        if isinstance(command, click.Group) and not word.startswith("-"):
            command = command.get_command(click.Context(command), word) or command
    return all(option.is_flag for option in command.params if isinstance(option, click.Option) and "--json" in option.opts)


def tell(error: RecipeError, file: IO[str] | None = None) -> None:
    """Writes the problems of an error, each with its place, cause and remedy, to stderr or `file`."""
    for problem in error.problems:
        place = click.style(f"{problem.place}: ", bold=True) if problem.place else ""
        click.echo(f"{place}{click.style(problem.rule, fg='red')}: {problem.cause}", file=file, err=file is None)
        if problem.remedy:
            click.echo(f"    {problem.remedy}", file=file, err=file is None)


def _tell_json(problems: Sequence[Problem], exit_code: int) -> None:
    """Writes problems to stderr as one line of JSON."""
    message = "\n".join(str(problem) for problem in problems)
    told = {"exit_code": exit_code, "message": message, "problems": [problem.to_json() for problem in problems]}
    click.echo(json.dumps({"error": told}), err=True)


def _tell_bug(trace: str, *, as_json: bool) -> None:
    cause = f"this is a bug of ours: {trace.rstrip().splitlines()[-1]}"
    try:
        log = _write_log(f"recipe {' '.join(sys.argv[1:])}\n\n{trace}")
        remedy = f"the traceback is in {log}; please report it with that file"
    except OSError:
        remedy = trace
    if as_json:
        _tell_json([Problem("bug", cause, remedy=remedy)], BUG_OF_OURS)
    else:
        tell(RecipeError(Problem("bug", cause, remedy=remedy)))


def _write_log(text: str) -> Path:
    from runner.engine.places import places

    folder = places().logs
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"bug-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    log.write_text(text, encoding="utf-8")
    return log
