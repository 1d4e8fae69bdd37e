"""`recipe init` in a terminal, forward and back, and without one."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from runner.models.handle import ModelHandle

pexpect = pytest.importorskip("pexpect")

ROOT = Path(__file__).resolve().parents[2]
DOWN, UP, ENTER, CTRL_C, CLEAR = "\x1b[B", "\x1b[A", "\r", "\x03", "\x15"


class Terminal:
    """`recipe init` in a pseudo-terminal."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        environment = {
            "PATH": "/usr/bin:/bin", "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "HOME": str(folder),
            "PYTHONPATH": str(ROOT), "RECIPE_CACHE": str(folder / "cache"), "RECIPE_CATALOG": str(ROOT / "recipes"),
        }  # fmt: skip
        self._child = pexpect.spawn(
            sys.executable, ["-m", "runner", "init", "--offline", *arguments], cwd=str(folder), dimensions=(50, 160),
            encoding="utf-8", timeout=60, env=environment,
        )  # fmt: skip

    def expect(self, text: str) -> None:
        self._child.expect_exact(text)

    def answer(self, question: str, keys: str = "") -> None:
        """Waits for a question and answers it; keys alone move the arrow, no keys take what stands there."""
        self.expect(question)
        self._child.send(keys + ENTER)

    def press(self, key: str) -> None:
        self._child.send(key)

    def close(self) -> tuple[int, str]:
        """Returns the exit status, and what was shown since the last question, without colours."""
        self._child.expect(pexpect.EOF)
        shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self._child.before)
        self._child.close()
        return self._child.exitstatus, shown


def _passes(folder: Path) -> dict[str, dict[str, object]]:
    passes: dict[str, dict[str, object]] = json.loads((folder / "olive_config.json").read_text())["passes"]
    return passes


def test_forward_and_back_keeps_the_answers(tiny_llama: ModelHandle, tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    terminal.answer("Which model?", "no/where")
    terminal.expect("unknown-architecture")
    terminal.answer("Which model?", CLEAR + str(tiny_llama.folder))
    terminal.answer("What should it run on?")
    terminal.answer("How precise", UP)  # from the first answer up to the last: back
    terminal.answer("What should it run on?", UP)
    terminal.expect("Which model?")
    terminal.expect(str(tiny_llama.folder))  # the answer stands there
    terminal.press(ENTER)
    terminal.answer("What should it run on?")
    terminal.answer("How precise", DOWN)  # int4
    terminal.answer("What matters most?")
    terminal.answer("Should it be trained")
    terminal.answer("Where should the model go?", CLEAR + "<")
    terminal.answer("Should it be trained", "<")
    terminal.answer("What matters most?")
    terminal.answer("Should it be trained")
    terminal.answer("Where should the model go?", CLEAR + "made/mine")
    terminal.answer("What now?", DOWN * 3)  # change an answer
    terminal.answer("Which answer?", DOWN * 2)
    terminal.answer("How precise", DOWN)  # from int4, which was kept, to int8
    terminal.expect("genai-cpu-int8")
    terminal.expect("made/mine")
    terminal.answer("What now?", DOWN)  # write the recipe
    code, shown = terminal.close()
    assert code == 0
    assert "run it with recipe run" in shown
    assert _passes(tmp_path / "made/mine-recipe")["build"]["precision"] == "int8"
    assert not (tmp_path / "made/mine").exists()


def test_a_flag_answers_its_question_and_a_bad_one_is_asked_for(exported_bert: ModelHandle, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    terminal = Terminal(tmp_path, "--model", str(exported_bert.path), "--precision", "int3", "--trade", "size")
    terminal.answer("What should it run on?")
    terminal.expect("unknown-precision")
    terminal.answer("How precise", DOWN)
    terminal.answer("Where should the model go?", CLEAR + "taken/model")
    terminal.expect("is a file")
    terminal.answer("Where should the model go?", CLEAR + "made")
    terminal.answer("What now?", DOWN * 2)  # print the command
    code, shown = terminal.close()
    assert code == 0
    assert "recipe optimize" in shown and "--trade size" in shown and "--precision int4" in shown
    assert not (tmp_path / "made-recipe").exists()


def test_an_output_that_was_not_chosen_follows_the_answers(tiny_llama: ModelHandle, tmp_path: Path) -> None:
    terminal = Terminal(
        tmp_path, "--model", str(tiny_llama.folder), "--target", "cpu", "--precision", "int4", "--trade", "decide"
    )
    terminal.answer("Should it be trained")
    terminal.expect("-cpu-int4")
    terminal.press(ENTER)
    terminal.answer("What now?", DOWN * 3)
    terminal.answer("Which answer?", DOWN * 2)
    terminal.answer("How precise", DOWN)
    terminal.expect("-cpu-int8")
    terminal.expect("What now?")
    terminal.press(CTRL_C)
    assert terminal.close()[0] == 130
    assert not (tmp_path / "models").exists()


def _init(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "runner", "init", "--offline", *arguments], cwd=folder, capture_output=True, text=True,
        stdin=subprocess.DEVNULL, check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(folder), "RECIPE_CACHE": str(folder / "cache"),
             "RECIPE_CATALOG": str(ROOT / "recipes")},
    )  # fmt: skip


def test_without_a_terminal_it_says_which_flags_are_missing(tmp_path: Path) -> None:
    done = _init(tmp_path, "--target", "cpu")
    assert done.returncode == 2
    assert "missing: --model, --precision, --trade, --output" in done.stderr and "--yes" in done.stderr
    assert _init(tmp_path, "--yes").returncode == 2


def test_flags_alone_make_the_model(exported_bert: ModelHandle, tmp_path: Path) -> None:
    done = _init(tmp_path, "--model", str(exported_bert.path), "--precision", "int8", "--output", "made", "--yes")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "made/model.onnx").is_file() and (tmp_path / "made/receipt.json").is_file()
    assert "quantize" in _passes(tmp_path / "made-recipe")


def test_data_to_train_on_leads_to_finetune(tiny_llama: ModelHandle, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "Who?", "answer": "You."}\n')
    asked = ["--model", str(tiny_llama.folder), "--train", "rows.jsonl", "--output", "made", "--action", "command", "--yes"]
    done = _init(tmp_path, *asked)
    assert done.returncode == 0, done.stderr
    words = shlex.split(done.stdout)
    assert words[:2] == ["recipe", "finetune"]
    assert words[words.index("--text_template") + 1] == "### Question: {question}\\n### Answer: {answer}"
    assert words[words.index("--precision") + 1] == "int4"
    wrong = _init(tmp_path, *asked, "--template", "{anser}")
    assert wrong.returncode == 2
    assert "did you mean 'answer'" in wrong.stderr
    (tmp_path / "rows.jsonl").write_text('{"conversations": [{"from": "human", "value": "Who?"}]}\n')
    words = shlex.split(_init(tmp_path, *asked).stdout)
    assert words[words.index("--chat_template") :][:3] == ["--chat_template", "--messages", "conversations"]


def test_a_recipe_of_the_catalogue_and_text_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("Some text of my own.\n")
    done = _init(
        tmp_path, "--model", "smollm2-135m-instruct", "--data", "mine.txt", "--output", "made", "--action", "command", "--yes"
    )
    assert done.returncode == 0, done.stderr
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in done.stdout
    assert str(tmp_path / "mine.txt") in done.stdout
