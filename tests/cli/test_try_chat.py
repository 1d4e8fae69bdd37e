"""`recipe try` as a conversation in a pseudo-terminal, and pictures and sounds by flags, with tiny twins."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.cli import run_command

pexpect = pytest.importorskip("pexpect", reason="needs a pseudo-terminal")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "llm"
    assert run_command(["run", "smollm2-135m-instruct/cpu-fp32", "--smoke", "--offline", "--output-dir", str(folder)]) == 0
    return folder


@pytest.fixture
def talk(llm: Path) -> Iterator[object]:
    arguments = ["-m", "runner", "try", str(llm), "--max-new-tokens", "2000", "--system", "Be brief."]
    child = pexpect.spawn(sys.executable, arguments, cwd=str(ROOT), encoding="utf-8", timeout=60)
    yield child
    child.close(force=True)


def test_a_conversation_goes_on_over_stopped_answers_until_the_input_ends(talk: object) -> None:
    talk.expect("/exit ends")
    talk.expect("> ")
    talk.sendline("Tell me everything")
    talk.expect("Tell me everything\r\n.")  # the answer has begun
    talk.sendintr()
    talk.expect(r"\[stopped\]")
    talk.expect("> ")
    talk.sendintr()  # at the prompt it only helps
    talk.expect("/reset forgets")
    talk.expect("> ")
    talk.sendline("/reset")
    talk.expect("forgotten")
    talk.expect("> ")
    talk.sendeof()
    talk.expect(pexpect.EOF)
    talk.wait()
    assert talk.exitstatus == 0


def test_the_oldest_turns_make_room(llm: Path) -> None:
    from runner.cli.try_chat import Conversation
    from runner.models.generation import GenerationSession

    session = GenerationSession(llm, 1)
    said = "word " * (session.context_length // 4)
    turns = [{"role": role, "content": said} for _ in range(4) for role in ("user", "assistant")]
    conversation = Conversation(session, "Be brief.", [*turns, {"role": "user", "content": "And now?"}])
    tokens, dropped = conversation.prompt()
    assert dropped > 0
    assert len(tokens) < session.context_length
    assert conversation.turns[-1]["content"] == "And now?"


def test_a_seed_repeats_what_is_drawn(llm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def drawn(*flags: str) -> str:
        assert run_command(["try", str(llm), "Hello", "--temperature", "1.5", "--max-new-tokens", "12", *flags]) == 0
        return capsys.readouterr().out

    assert drawn("--seed", "1") == drawn("--seed", "1")
    assert len({drawn() for _ in range(4)}) > 1
    greedy = {drawn("--top-p", "0.00001", "--seed", str(seed)) for seed in range(3)}
    assert len(greedy) == 1


@pytest.mark.parametrize("flag", ["--image", "--audio"])
def test_what_a_model_does_not_take_is_refused(llm: Path, capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert run_command(["try", str(llm), flag, "some.file"]) == 2
    assert "takes text" in capsys.readouterr().err


def test_a_picture_and_a_sound_are_taken_by_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound = next((ROOT / "recipes/whisper/whisper-tiny.en/sample_data/speech").glob("*.wav"))
    picture = next((ROOT / "recipes/resnet/resnet-50/sample_data/images").rglob("*.png"))
    for recipe, flag, file in (("whisper-tiny.en", "--audio", sound), ("resnet-50", "--image", picture)):
        folder = str(tmp_path / recipe)
        assert run_command(["run", recipe, "--smoke", "--offline", "--output-dir", folder]) == 0
        capsys.readouterr()
        assert run_command(["try", folder, flag, str(file)]) == 0
        assert capsys.readouterr().out.strip()
