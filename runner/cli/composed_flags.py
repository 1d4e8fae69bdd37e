"""Flags and first steps that the verbs of one step share: the subject, the wish, data to calibrate on."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from runner.cli.flags import (
    device_flag,
    dry_run_flag,
    flag,
    log_level_flag,
    max_memory_flag,
    model_flag,
    offline_flag,
    output_flag,
    provider_flag,
    script_flags,
    set_flag,
    smoke_flag,
    task_flag,
    threads_flag,
    trust_flag,
)
from runner.cli.options import catalog, catalog_option, json_option, no_cache_option

if TYPE_CHECKING:
    from runner.compose.calibration import DataWish
    from runner.compose.single_step import Wish
    from runner.compose.subject import Subject
    from runner.targets.target import Target


def _words(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple((value or "").replace(",", " ").split())


def _lines(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    r"""A backslash and n, as they are typed between quotes in a shell, mean a line break."""
    return None if value is None else value.replace("\\n", "\n").replace("\\t", "\t")


# Flags that take several values behind one another, as Olive's do.
_LISTS = (
    "input_cols", "intra_thread_num_list", "inter_thread_num_list", "execution_mode_list", "opt_level_list", "providers_list",
)  # fmt: skip


class ListsCommand(click.Command):
    """A command whose list options take all values up to the next option: --opt_level_list 1 2 99."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Joins the values of list options by commas, and goes on as usual."""
        spelt = {f"--{spelling}" for name in _LISTS for spelling in (name, name.replace("_", "-"))}
        joined: list[str] = []
        open_ = False
        for arg in args:
            if arg.startswith("-"):
                open_ = arg in spelt
                joined += [arg, ""] if open_ else [arg]
            elif open_:
                joined[-1] = ",".join(part for part in (joined[-1], arg) if part)
            else:
                joined.append(arg)
        return super().parse_args(ctx, joined)


subject_flags = (model_flag, output_flag, task_flag, *script_flags)
run_flags = (
    device_flag, provider_flag, max_memory_flag, threads_flag, set_flag, trust_flag, offline_flag, smoke_flag, no_cache_option,
    flag("force", "--force", is_flag=True, help="Run even where memory or disk will not suffice by the estimate."),
    flag("save_config", "--save_config_file", is_flag=True, hidden=True, help="The config is always saved."),
    dry_run_flag, log_level_flag, json_option, catalog_option,
)  # fmt: skip
data_flags = (
    flag("data_name", "--data_name", "-d", metavar="NAME", help="Data to calibrate on: an id of the hub, a file or a folder."),
    flag("data_files", "--data_files", metavar="FILES", help="Its files, separated by commas: txt, json, jsonl, csv, parquet."),
    flag("subset", "--subset", metavar="NAME", help="Part of the data set."),
    flag("split", "--split", metavar="NAME", help="Its split; train by default."),
    flag("text_field", "--text_field", metavar="COLUMN", help="Column of text."),
    flag("text_template", "--text_template", metavar="TEXT", callback=_lines, help="Text with {column} in it."),
    flag("use_chat_template", "--use_chat_template", is_flag=True, help="Rows are chat messages."),
    flag("input_cols", "--input_cols", callback=_words, metavar="COLUMN ...", help="Columns of sentences."),
    flag("max_seq_len", "--max_seq_len", type=click.IntRange(min=2), metavar="N", help="Tokens of a sample."),
    flag("max_samples", "--max_samples", type=click.IntRange(min=1), metavar="N", help="Samples at most."),
    flag("batch_size", "--batch_size", type=click.IntRange(min=1), metavar="N", help="Samples at a time."),
)  # fmt: skip


def data_wish(given: dict[str, Any]) -> DataWish:
    """Returns the data that the flags ask for, and takes them out of what was given."""
    from runner.compose.calibration import DataWish

    taken = {name: given.pop(name) for name in DataWish.__dataclass_fields__}
    files = [part.strip() for part in (taken.pop("data_files") or "").split(",") if part.strip()]
    return DataWish(data_files=files, **taken)


def subject_and_target(given: dict[str, Any]) -> tuple[Subject, Target | None]:
    """Returns the model and the target, None where none was named, and takes their flags out of what was given.

    Raises:
        UsageError: there is no such model, or flags do not go together.
        InvalidRecipe: there is no such provider.
    """
    from runner.compose.subject import subject_of

    given.pop("save_config", None)  # it always is saved
    subject = subject_of(
        given.pop("model"),
        task=given.pop("task", None),
        model_script=given.pop("model_script", None),
        script_dir=given.pop("script_dir", None),
        adapter=given.pop("adapter", None),
    )
    return subject, _target(given.pop("device"), given.pop("provider"))


def _target(device: str | None, provider: str | None) -> Target | None:
    from runner.errors import UsageError
    from runner.targets.target import target_named

    if provider is None:
        return target_named(device) if device else None
    target = target_named(provider)
    if device is not None and target.device != device:
        raise UsageError(
            "wrong-device",
            f"--device {device} and --provider {provider} do not go together",
            f"{target.provider} runs on {target.device}",
        )
    return target


def subject_and_wish(given: dict[str, Any]) -> tuple[Subject, Wish]:
    """Returns the model and what the run was told, and takes their flags out of what was given.

    Raises:
        RecipeError: see `subject_and_target`.
    """
    from runner.compose.single_step import Wish
    from runner.targets.target import TARGETS

    subject, target = subject_and_target(given)
    names = ("output", "overrides", "offline", "trust", "smoke", "threads", "no_cache")
    told = {name: given.pop(name) for name in names}
    command = shlex.join(["recipe", *sys.argv[1:]])
    return subject, Wish(target or TARGETS["cpu"], catalog=catalog(), command=command, **told)
