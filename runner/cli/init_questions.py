"""The questions of `recipe init`: what each answer means for a model, and what follows from all of them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runner.cli.init_training import chat_column, check_template, proposed_template
from runner.cli.options import catalog
from runner.cli.wizard import Answers, Option, Question, Wizard, choose, is_back
from runner.data.row_files import columns_of
from runner.engine.publish import check_writable
from runner.errors import Interrupted, RecipeError, UsageError

if TYPE_CHECKING:
    from runner.compose.known import Known
    from runner.compose.offers import Offers
    from runner.compose.optimise import Decided, Wish
    from runner.targets.target import Target

_OPEN = "decide"  # the answer that leaves a question to the runner
TRADES = {
    _OPEN: "nothing in particular: what the recipe does by default",
    "size": "size: as small as it gets",
    "speed": "speed: as fast as it gets",
    "quality": "quality: the smallest that keeps the answers",
}
_TARGETS = {"cpu": "CPU", "cuda": "NVIDIA GPU, with CUDA", "directml": "any GPU on Windows, with DirectML"}


class Interview:
    """What is asked, what each answer means, and what follows from all of them."""

    def __init__(self, max_memory: float | None, how: dict[str, Any], tell: Callable[[RecipeError], None]) -> None:
        self._max_memory, self._how, self._tell = max_memory, how, tell
        self._found: dict[tuple[str, str | None], Known] = {}

    @cached_property
    def questions(self) -> Sequence[Question]:
        """The questions, in order."""
        return (
            Question(
                "model", "Which model?", "a Hugging Face id, a folder, an ONNX file, or a PyTorch script",
                check=self._check_model,
            ),
            Question(
                "task", "What is it for?", options=self._tasks, default=lambda answers: self._known(answers).subject.task or "",
                applies=self._unsure_of_task, check=lambda answer, answers: self._check_task(answer),
            ),
            Question(
                "target", "What should it run on?", options=self._targets, default=lambda _: "cpu", check=self._check_target,
            ),
            Question(
                "precision", "How precise should its weights be?", options=self._precisions, default=lambda _: _OPEN,
                check=self._check_precision,
            ),
            Question(
                "trade", "What matters most?", options=lambda _: [Option(*one) for one in TRADES.items()],
                default=lambda _: _OPEN, applies=self._has_ways,
            ),
            Question(
                "data", "Which text should it be calibrated on?", "a text file; empty for the catalogue's own",
                applies=self._calibrates, check=self._check_data,
            ),
            Question(
                "train", "Should it be trained on data of your own first?", "a json, jsonl, csv or parquet file; empty for no",
                applies=self._trains, check=lambda answer, _: self._check_rows(answer),
            ),
            Question(
                "template", "How does a row of it read as text?", "columns in braces, \\n for a line break",
                default=lambda answers: proposed_template(columns_of(Path(answers["train"]).expanduser())),
                applies=self._needs_template,
                check=lambda answer, answers: check_template(answer, columns_of(Path(answers["train"]).expanduser())),
            ),
            Question("output", "Where should the model go?", "a folder", default=self._usual_output, check=self._check_output),
        )  # fmt: skip

    # --- the model

    def _check_model(self, answer: str, answers: Answers) -> None:
        known = self._known({**answers, "model": answer})
        if known.subject.kind == "hf" and known.twin is None:
            raise UsageError(
                "unknown-architecture",
                f"nothing here says what architecture {known.subject.word} has",
                "name a folder with its config.json, or go online",
            )

    def _known(self, answers: Answers) -> Known:
        from runner.cli.composed_run import say_at
        from runner.compose.known import look_up
        from runner.compose.single_step import Wish
        from runner.compose.subject import subject_of
        from runner.targets.target import TARGETS

        word, task = answers["model"], answers.get("task")
        if (word, task) not in self._found:
            word_or_id = self._of_catalogue(word)
            scripted = word.endswith(".py")
            subject = subject_of(None if scripted else word_or_id, task=task, model_script=Path(word) if scripted else None)
            wish = Wish(TARGETS["cpu"], catalog=catalog(), offline=self._how["offline"])
            self._found[word, task] = look_up(subject, wish.catalog, wish.offline, lambda text: say_at(1, text))
        return self._found[word, task]

    def _of_catalogue(self, word: str) -> str:
        """The id of the model whose recipe is called so; the word itself where there is none."""
        from runner.catalog.discover import catalog_root, list_entries

        entries = list_entries(catalog_root(catalog())).entries
        named = (one.info.model.id for one in entries if word.lower() in (one.info.name, *one.info.aliases))
        return next(named, word)

    def _unsure_of_task(self, answers: Answers) -> bool:
        if "task" in answers:
            return True
        known = self._known(answers)
        return known.subject.kind == "hf" and known.entry is None and known.twin is not None and known.twin.stands_in

    def _tasks(self, _: Answers) -> Sequence[Option]:
        from runner.models.tasks import TASKS

        return [Option(task, task) for task in TASKS]

    def _check_task(self, answer: str) -> None:
        from runner.errors import did_you_mean
        from runner.models.tasks import TASKS, WITH_PAST

        if answer.removesuffix(WITH_PAST) not in TASKS:
            raise UsageError("unknown-task", f"there is no task '{answer}'", did_you_mean(answer, TASKS))

    # --- target, precision, trade

    def _targets(self, _: Answers) -> Sequence[Option]:
        from runner.targets.target import TARGETS, what_is_missing

        found = []
        for name, target in TARGETS.items():
            missing = what_is_missing(target)
            found.append(Option(name, _TARGETS[name] + (f" (not here: {missing[0]})" if missing else "")))
        return found

    def _check_target(self, answer: str, answers: Answers) -> None:
        offered = self._offers({**answers, "target": answer})
        if not offered.precisions:
            raise UsageError("not-for-target", f"nothing makes this model for {offered.target.name}", "choose another target")

    def _target(self, answers: Answers) -> Target:
        from runner.targets.target import target_named

        return target_named(answers["target"])

    def _offers(self, answers: Answers) -> Offers:
        from runner.catalog.discover import catalog_root
        from runner.compose.offers import offers
        from runner.templating.clone import clone_of

        return offers(self._known(answers), self._target(answers), clone_of(catalog_root(catalog()) / "recipe"))

    def _precisions(self, answers: Answers) -> Sequence[Option]:
        told = [Option(name, f"{name:5} {about}") for name, about in self._offers(answers).precisions.items()]
        return [Option(_OPEN, "decide for me"), *told]

    def _check_precision(self, answer: str, answers: Answers) -> None:
        if answer != _OPEN:
            self._offers(answers).best(answer.lower(), None)

    def _has_ways(self, answers: Answers) -> bool:
        """Whether there is anything left to trade: more than one way to the precision."""
        if "trade" in answers:
            return True
        if "precision" not in answers or "target" not in answers:
            return False
        offered, precision = self._offers(answers), _asked(answers, "precision")
        ways = [one for one in offered.choices if precision in (None, one.precision, one.scheme)]
        return len(ways) > 1 or (not offered.choices and precision is None)

    def _calibrates(self, answers: Answers) -> bool:
        if "data" in answers:
            return True
        if "precision" not in answers or "target" not in answers:
            return False
        known = self._known(answers)
        best = self._offers(answers).best(_asked(answers, "precision"), _trade(answers))
        return best is not None and "gptq" in str(best.variant.pipeline) and known.subject.task == "text-generation"

    def _check_data(self, answer: str, answers: Answers) -> None:
        from runner.compose.calibration import DataWish, located

        if not answer:
            return
        if not self._calibrates({key: value for key, value in answers.items() if key != "data"}):
            raise UsageError(
                "data-unused", "nothing of this way is calibrated", "leave the data out, or choose another precision"
            )
        located(DataWish(data_name=answer))

    def _trains(self, answers: Answers) -> bool:
        """Whether it can be trained here: a language model from its checkpoint."""
        if "train" in answers:
            return True
        known = self._known(answers)
        return known.subject.kind == "hf" and known.kind is not None and known.kind.name == "genai" and not self._how["smoke"]

    def _check_rows(self, answer: str) -> None:
        if answer:
            columns_of(Path(answer).expanduser())

    def _needs_template(self, answers: Answers) -> bool:
        return bool(answers.get("train")) and chat_column(columns_of(Path(answers["train"]).expanduser())) is None

    # --- the output

    def _usual_output(self, answers: Answers) -> str:
        from runner.targets.target import target_name

        best = self._offers(answers).best(_asked(answers, "precision"), _trade(answers))
        scheme = best.scheme if best else _asked(answers, "precision") or "int8"
        return f"models/{self._known(answers).subject.name}-{target_name(self._target(answers).provider)}-{scheme}"

    def _check_output(self, answer: str, _: Answers) -> None:
        path = Path(answer).expanduser()
        if not answer:
            raise UsageError("no-output", "the model needs a folder to go to", "name one, for example models/mine")
        in_the_way = next((one for one in (path, *path.parents) if one.exists() and not one.is_dir()), None)
        if in_the_way is not None:
            raise UsageError("cannot-write", f"{in_the_way} is a file", "name another folder")
        check_writable(path)

    # --- the end

    def go(self, wizard: Wizard, action: str | None) -> Decided | None:
        """Asks until there is something to do, and returns the run; None where nothing is left to run."""
        while True:
            wizard.run()
            self._summarise(wizard.answers)
            chosen = action or choose("What now?", self._actions(wizard.answers), back=True)
            action = None
            if is_back(chosen):
                wizard.back()
            elif chosen == "change":
                wizard.change()
            else:
                try:
                    return self.do(wizard.answers, chosen)
                except Interrupted:
                    raise
                except RecipeError as error:
                    self._tell(error)

    def do(self, answers: Answers, action: str) -> Decided | None:
        """Does what was chosen with what was answered, and returns the run; None where nothing is left to run.

        Raises:
            RecipeError: it cannot be done.
        """
        from runner.cli.composed_run import show_decisions
        from runner.compose.optimise import decide

        wish = self._wish(answers)
        if answers.get("train"):
            self._train(wish, action)
            return None
        if action == "command":
            click.echo(wish.command)
            return None
        decided = decide(wish)
        show_decisions(decided.composed)
        if action == "run":
            return decided
        command = shlex.join(["recipe", "run", str(decided.composed.folder)])
        click.echo(f"recipe in {decided.composed.folder}: run it with {command}")
        return None

    def _train(self, wish: Wish, action: str) -> None:
        """Prints the command that trains, merges and makes the ONNX model, or runs it; `write` stops before the training."""
        from runner.cli import cli

        words = shlex.split(wish.command)[1:]
        if action == "command":
            click.echo(shlex.join(["recipe", *words]))
        else:
            cli.main([*words, *(["--dry-run"] if action == "write" else [])], prog_name="recipe", standalone_mode=False)

    def _actions(self, answers: Answers) -> Sequence[Option]:
        from runner.targets.target import what_is_missing

        missing = what_is_missing(self._target(answers))
        return (
            Option("run", "Run it now", missing[0] if missing and not self._how["smoke"] else None),
            Option("write", "Write the recipe, and run nothing"),
            Option("command", "Print the command"),
            Option("change", "Change an answer"),
        )

    def _summarise(self, answers: Answers) -> None:
        from runner.cli.tables import print_table

        known, precision = self._known(answers), _asked(answers, "precision")
        best = self._offers(answers).best(precision, _trade(answers))
        rows = [("model", known.subject.word or answers["model"], _about(known))]
        if known.entry is not None:
            rows.append(("recipe", known.entry.info.name, "the catalogue knows this model"))
        rows.append(("target", self._target(answers).name, self._target(answers).provider))
        if best is not None:
            rows.append(("precision", best.precision, best.why_measured() if best.of_recipe else "the usual one for its kind"))
            rows.append(("pipeline", str(best.variant.pipeline), TRADES[answers.get("trade", _OPEN)]))
        else:
            rows.append(("precision", precision or _OPEN, "no pipeline of the catalogue serves such a model"))
        if answers.get("train"):
            rows.append(("training", answers["train"], answers.get("template", "the model's chat template")))
        rows.append(("output", answers["output"], "the recipe goes beside it"))
        click.echo()
        print_table(("", "decided", "why"), rows)
        click.echo()

    def _wish(self, answers: Answers) -> Wish:
        from runner.compose.calibration import DataWish, located
        from runner.compose.optimise import Wish

        target = self._target({"target": "cpu", **answers})
        precision, trade = _asked(answers, "precision"), _trade(answers)
        overrides: tuple[str, ...] = ()
        if answers.get("data"):
            name, files = located(DataWish(data_name=answers["data"]))
            load = "data_configs.0.load_dataset_config"
            overrides = (f"{load}.data_name={name}", f"{load}.data_files={files[0] if files else 'null'}")
        wish = Wish(
            self._known(answers).subject, Path(answers["output"]) if answers.get("output") else None, target, precision, trade,
            int(self._max_memory * 1e9) if self._max_memory else None, overrides, catalog(),
            offline=self._how["offline"], trust=self._how["trust"], smoke=self._how["smoke"], threads=self._how["threads"],
        )  # fmt: skip
        return replace(wish, command=self._command(wish, answers))

    def _command(self, wish: Wish, answers: Answers) -> str:
        """The command that does the same without questions."""
        if answers.get("train"):
            return self._training_command(wish, answers)
        subject = wish.subject
        words = ["recipe", "optimize"]
        script = subject.details.get("model_script")
        for name, value in (
            ("--model_name_or_path", subject.word), ("--model_script", script), ("--task", answers.get("task")),
            ("--provider", wish.target.provider if wish.target else None), ("--precision", wish.precision),
            ("--trade", wish.trade), ("--output_path", wish.output), ("--max_memory", self._max_memory),
            ("--threads", wish.threads),
        ):  # fmt: skip
            words += [name, str(value)] if value else []
        for text in wish.overrides:
            words += ["--set", text]
        words += [f"--{name}" for name in ("offline", "trust", "smoke") if self._how[name]]
        return shlex.join(words)

    def _training_command(self, wish: Wish, answers: Answers) -> str:
        """The command that trains first. Its last step makes the ONNX model, in the precision that was chosen."""
        best = self._offers({"target": "cpu", **answers}).best(wish.precision, wish.trade)
        precision = best.precision if best else wish.precision
        words = ["recipe", "finetune", "--model_name_or_path", wish.subject.word, "--data_files", answers["train"]]
        if answers.get("template"):
            words += ["--text_template", answers["template"]]
        else:
            column = chat_column(columns_of(Path(answers["train"]).expanduser())) or "messages"
            words += ["--chat_template", *(["--messages", column] if column != "messages" else [])]
        words += ["--precision", precision] if precision else []
        words += ["--output_path", str(wish.output)] if wish.output else []
        words += [f"--{name}" for name in ("offline", "trust") if self._how[name]]
        return shlex.join(words)


def _asked(answers: Answers, key: str) -> str | None:
    value = answers.get(key, _OPEN).lower()
    return None if value == _OPEN else value


def _trade(answers: Answers) -> Any:
    return _asked(answers, "trade")


def _about(known: Known) -> str:
    if known.subject.kind == "hf":
        return f"a {known.architecture}, for {known.subject.task}"
    return {"onnx": "an ONNX graph", "pytorch": "a PyTorch module of a script"}.get(known.subject.kind, "a pipeline that draws")
