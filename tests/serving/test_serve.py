"""`recipe serve` as clients use it: a process of its own, tiny models, and OpenAI's own package."""

from __future__ import annotations

import base64
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
import openai
import pytest
import requests
from tokenizers import Tokenizer

from runner.cli import run_command
from runner.models.sound_windows import SAMPLE_RATE, wav_bytes
from runner.targets.target import TARGETS, device_missing

ROOT = Path(__file__).resolve().parents[2]
SOUND = next((ROOT / "recipes/whisper/whisper-tiny.en/sample_data/speech").glob("*.wav"))
HELLO = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A language model, a text encoder and two speech models, one for English: tiny twins with random weights."""
    at = tmp_path_factory.mktemp("served")
    recipes = {
        "llm": "smollm2-135m-instruct/cpu-fp32",
        "encoder": "all-minilm-l6-v2",
        "multi": "whisper-tiny",
    }
    for name, recipe in recipes.items():
        assert run_command(["run", recipe, "--smoke", "--offline", "--output-dir", str(at / name)]) == 0
    shutil.copytree(at / "multi", at / "speech")
    facts = at / "speech" / "generation_config.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text(encoding="utf-8")), "is_multilingual": False}), encoding="utf-8")
    return {name: at / name for name in (*recipes, "speech")}


def started(
    arguments: list[str], log: int | IO[str] = subprocess.DEVNULL, at: Path = ROOT
) -> tuple[subprocess.Popen[str], str]:
    """Starts a server in a folder and returns it with its address."""
    command = [sys.executable, "-m", "runner", "serve", "--port", "0", *arguments]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=at)
    assert server.stdout is not None
    found = re.search(r"http://\S+/v1", server.stdout.readline())
    assert found is not None
    return server, found[0]


def _embedded(folder: Path) -> int:
    """The tokens of a language model."""
    return int(json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]["vocab_size"])


def _known(folder: Path) -> int:
    """The tokens of a tokenizer."""
    return Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()


@pytest.fixture(scope="module")
def address(folders: dict[str, Path]) -> Iterator[str]:
    server, address = started([f"chat={folders['llm']}", *(str(folders[name]) for name in ("encoder", "speech", "multi"))])
    yield address
    server.send_signal(signal.SIGINT)
    assert server.wait(20) in (0, 130)


@pytest.fixture
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=address, api_key="none", max_retries=0)


def test_models_are_listed_under_their_names(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["chat", "encoder", "speech", "multi"]
    assert client.models.retrieve("speech").id == "speech"


def test_a_chat_is_answered_and_counted(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="chat", messages=HELLO, max_completion_tokens=5, temperature=0)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 5


def test_a_stream_tells_the_same_as_the_whole_answer(client: openai.OpenAI) -> None:
    asked = {"model": "chat", "messages": HELLO, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    parts = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == whole
    assert [part.choices[0].finish_reason for part in parts if part.choices][-1] == "length"
    assert parts[-1].usage is not None
    assert parts[-1].usage.completion_tokens == 12


def test_an_answer_ends_before_a_stop_text(client: openai.OpenAI) -> None:
    asked = {"model": "chat", "messages": HELLO, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    stop = whole[3:6]
    ended = client.chat.completions.create(**asked, stop=[stop]).choices[0]
    assert ended.message.content == whole[: whole.index(stop)]
    assert ended.finish_reason == "stop"


def test_a_seed_repeats_what_is_drawn(client: openai.OpenAI) -> None:
    def drawn(seed: int) -> str | None:
        asked = {"model": "chat", "messages": HELLO, "max_tokens": 12, "temperature": 1.5, "seed": seed}
        return client.chat.completions.create(**asked).choices[0].message.content

    assert drawn(1) == drawn(1)
    assert len({drawn(seed) for seed in range(1, 5)}) > 1


def test_a_text_is_continued(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="chat", prompt="Once", max_tokens=4, temperature=0)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4


def test_vectors_have_length_one_in_both_encodings(client: openai.OpenAI) -> None:
    texts = ["a red apple", "rain on the roof"]
    vectors = np.array([one.embedding for one in client.embeddings.create(model="encoder", input=texts).data])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    told = requests.post(
        f"{client.base_url}embeddings", json={"model": "encoder", "input": texts, "encoding_format": "base64"}, timeout=60
    ).json()
    packed = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in told["data"]]
    assert np.allclose(vectors, packed, atol=1e-6)


def test_speech_is_written_down_in_every_form(client: openai.OpenAI) -> None:
    plain = client.audio.transcriptions.create(model="speech", file=SOUND).text
    parts = list(client.audio.transcriptions.create(model="speech", file=SOUND, stream=True))
    assert parts[-1].text == plain
    assert client.audio.transcriptions.create(model="speech", file=SOUND, response_format="text").strip() == plain
    assert " --> " in client.audio.transcriptions.create(model="speech", file=SOUND, response_format="srt")
    assert client.audio.transcriptions.create(model="speech", file=SOUND, response_format="vtt").startswith("WEBVTT")
    assert client.audio.transcriptions.create(model="speech", file=SOUND, response_format="verbose_json").duration > 1


@pytest.mark.parametrize(
    ("path", "body", "status", "told"),
    [
        ("chat/completions", {"model": "chut", "messages": HELLO}, 404, "did you mean 'chat'"),
        ("chat/completions", {"model": "encoder", "messages": HELLO}, 400, "is for embeddings"),
        ("chat/completions", {"model": "chat", "messages": []}, 400, "messages"),
        ("chat/completions", {"model": "chat", "messages": HELLO, "n": 2}, 400, "'n' is not served"),
        ("chat/completions", {"model": "chat", "messages": HELLO, "tools": [{}]}, 400, "tools"),
        ("chat/completions", {"model": "chat", "messages": HELLO, "temperature": 9}, 400, "temperature"),
        ("chat/completions", {"model": "chat", "messages": [{"role": "user", "content": "x " * 30000}]}, 400, "has room for"),
        (
            "chat/completions",
            {"model": "chat", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            400,
            "text",
        ),
        ("embeddings", {"model": "encoder", "input": ""}, 400, "empty"),
        ("embeddings", {"model": "encoder", "input": "x", "dimensions": 3}, 400, "dimensions"),
        ("chat/completions", {"model": "chat", "messages": [{"role": "user", "content": "\ud800"}]}, 400, "is no text"),
        ("nothing", {}, 404, "nothing"),
    ],
)
def test_what_cannot_be_served_is_told_in_openais_form(
    client: openai.OpenAI, path: str, body: dict[str, object], status: int, told: str
) -> None:
    answer = requests.post(f"{client.base_url}{path}", json=body, timeout=60)
    assert answer.status_code == status
    assert told in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("given", "place"),
    [
        *((token, "[0]: tokens of this model are whole numbers from 0 to ") for token in (2**31, 2**70, -1, 10**9, True, 1.5)),
        ("vocabulary", "[0]: tokens of this model are whole numbers from 0 to "),
        ([3, None], "[0][1]: tokens of this model are whole numbers from 0 to "),
    ],
)
@pytest.mark.parametrize(("path", "field"), [("completions", "prompt"), ("embeddings", "input")])
def test_tokens_outside_the_vocabulary_are_refused(
    client: openai.OpenAI, folders: dict[str, Path], path: str, field: str, given: object, place: str
) -> None:
    model, size = ("chat", _embedded(folders["llm"])) if field == "prompt" else ("encoder", _known(folders["encoder"]))
    told = [size if given == "vocabulary" else given]
    answer = requests.post(f"{client.base_url}{path}", json={"model": model, field: told}, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field
    assert answer.json()["error"]["message"].startswith(f"{field}{place}{size - 1}, not ")
    last = requests.post(f"{client.base_url}{path}", json={"model": model, field: [size - 1]}, timeout=60)
    assert last.status_code == 200


def test_a_special_token_alone_has_a_vector(client: openai.OpenAI) -> None:
    for token in range(4):
        assert len(client.embeddings.create(model="encoder", input=[token]).data) == 1


@pytest.mark.parametrize(("path", "model", "field"), [("completions", "chat", "prompt"), ("embeddings", "encoder", "input")])
def test_tokens_among_texts_and_what_is_neither_are_told_apart(
    client: openai.OpenAI, path: str, model: str, field: str
) -> None:
    def told(given: object) -> str:
        answer = requests.post(f"{client.base_url}{path}", json={"model": model, field: given}, timeout=60)
        assert answer.status_code == 400
        return str(answer.json()["error"]["message"])

    assert told(["a", 7]).startswith(f"{field}[1] is a text or a list of tokens, not 7")
    assert told(["\ud800"]).startswith(f"{field}[0] is no text")
    assert told("\ud800").startswith(f"{field} is no text")
    assert "empty" in told([])


@pytest.mark.parametrize(
    ("model", "options", "told"),
    [
        ("speech", {"language": "xx"}, "does not know the language 'xx'; it knows en"),
        ("speech", {"language": "de"}, "it knows en"),
        ("multi", {"language": "xx"}, "'multi' does not know the language 'xx'; it knows de, en, fr"),
        ("multi", {"temperature": 3}, "temperature: Input should be less than or equal to 1"),
        ("multi", {"temperature": -1}, "temperature: Input should be greater than or equal to 0"),
    ],
)
def test_unknown_languages_and_temperatures_are_refused(
    client: openai.OpenAI, model: str, options: dict[str, object], told: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.audio.transcriptions.create(model=model, file=SOUND, **options)
    assert told in refused.value.message
    assert refused.value.param == next(iter(options))


def test_a_language_is_taken_by_code_or_name_and_decides_what_is_heard(client: openai.OpenAI) -> None:
    noise = np.random.default_rng(3).standard_normal(6 * SAMPLE_RATE).astype(np.float32) * 0.3
    sounds = [wav_bytes(noise[: seconds * SAMPLE_RATE]) for seconds in range(2, 7)]

    def heard(language: str) -> list[str]:
        asked = {"model": "multi", "language": language, "temperature": 0.5}
        return [client.audio.transcriptions.create(file=("noise.wav", sound), **asked).text for sound in sounds]

    assert heard("German") == heard("de")
    assert len({tuple(heard(language)) for language in ("de", "en", "fr")}) > 1
    assert client.audio.transcriptions.create(model="speech", file=SOUND, language="English").text is not None


def test_a_file_that_is_no_sound_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"'noise\.wav' is no sound"):
        client.audio.transcriptions.create(model="speech", file=("noise.wav", b"nothing of the kind"))


def test_clients_at_once_wait_for_one_another(client: openai.OpenAI) -> None:
    def ask(_: int) -> str | None:
        asked = {"model": "chat", "messages": HELLO, "max_tokens": 12, "temperature": 0}
        return client.chat.completions.create(**asked).choices[0].message.content

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(ask, range(4)))) == 1


def test_who_leaves_early_does_not_hold_up_others(client: openai.OpenAI) -> None:
    left = client.chat.completions.create(model="chat", messages=HELLO, max_tokens=3000, temperature=1, stream=True)
    next(iter(left))
    left.close()
    patient = client.with_options(timeout=15)
    assert patient.chat.completions.create(model="chat", messages=HELLO, max_tokens=1).choices


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_answers_at_once_and_without_a_trace(folders: dict[str, Path], times: int) -> None:
    server, address = started([f"chat={folders['llm']}"], subprocess.PIPE)
    asked = {"model": "chat", "messages": HELLO, "max_tokens": 7000, "temperature": 1, "stream": True}
    lines = requests.post(f"{address}/chat/completions", json=asked, stream=True, timeout=60).iter_lines()
    assert next(lines).startswith(b"data: ")
    for _ in range(times):
        server.send_signal(signal.SIGINT)
    told = b""
    with suppress(requests.RequestException):  # a second signal may cut the connection
        told = b"".join(lines)
    assert times > 1 or b"server-ends" in told
    _, log = server.communicate(timeout=20)
    assert server.returncode == 130
    assert "Traceback" not in log
    assert "CancelledError" not in log


def test_another_host_name_is_refused(address: str) -> None:
    assert requests.get(f"{address}/models", headers={"host": "elsewhere.example"}, timeout=60).status_code == 400


def test_a_key_is_asked_for(folders: dict[str, Path]) -> None:
    server, address = started([str(folders["encoder"]), "--api-key", "open sesame"])
    try:
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=address, api_key="wrong", max_retries=0).models.list()
        assert openai.OpenAI(base_url=address, api_key="open sesame").models.list().data[0].id == "encoder"
    finally:
        server.terminate()
        server.wait(20)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "there is no recipe, folder or file 'nowhere'"),
        (["{encoder}", "{encoder}"], "two models are called 'encoder'"),
        (["{encoder}", "--host", "0.0.0.0"], "open-to-all"),
        (["{empty}"], "holds no finished model"),
        (["{encoder}", "--host", "192.0.2.1", "--allow-remote"], "host-not-here: --host 192.0.2.1 cannot be listened at"),
        (["{encoder}", "--host", "no such host", "--allow-remote"], "host-not-here: --host no such host cannot be"),
    ],
)
def test_what_cannot_be_started_is_told(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    typed = [text.format(encoder=folders["encoder"], empty=tmp_path) for text in arguments]
    assert run_command(["serve", *typed]) == 2
    assert told in capsys.readouterr().err


def test_a_checkpoint_is_refused_before_any_model_is_loaded(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    receipt = json.loads((folders["encoder"] / "receipt.json").read_text(encoding="utf-8"))
    told = json.dumps({**receipt, "kind": "hf", "file": None, "task": "text-generation"})
    (tmp_path / "receipt.json").write_text(told, encoding="utf-8")
    for arguments in (["serve", str(folders["encoder"]), str(tmp_path)], ["try", str(tmp_path), "hello"]):
        assert run_command(arguments) == 2
        shown = capsys.readouterr().err
        assert f"recipe optimize -m {tmp_path}" in shown
        assert "loading" not in shown


def _made_for(provider: str, folder: Path, at: Path) -> Path:
    """A finished model as a run for another provider would have left it."""
    shutil.copytree(folder, at)
    receipt = json.loads((at / "receipt.json").read_text(encoding="utf-8"))
    (at / "receipt.json").write_text(json.dumps({**receipt, "provider": provider}), encoding="utf-8")
    return at


@pytest.mark.skipif(device_missing(TARGETS["directml"]) is None, reason="DirectML is here")
@pytest.mark.parametrize("name", ["encoder", "llm"])
def test_a_model_for_a_device_that_is_not_here_is_refused_before_any_is_loaded(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    foreign = _made_for("DmlExecutionProvider", folders[name], tmp_path / "foreign")
    served = ["serve", f"one={folders['encoder']}", str(foreign)]
    for arguments, instead in ((served, "serve a variant for the CPU"), (["try", str(foreign), "hello"], "--target cpu")):
        assert run_command(arguments) == 1
        told = capsys.readouterr().err
        assert told.startswith("target-unavailable: DmlExecutionProvider: DirectML exists on Windows only\n")
        assert f"run on a machine with {TARGETS['directml'].needs}, or " in told
        assert instead in told
        assert "loading" not in told
    if name == "encoder":
        for target in ("cpu", "auto"):
            assert run_command(["try", str(foreign), "hello", "--target", target]) == 0


@pytest.mark.skipif(device_missing(TARGETS["directml"]) is None, reason="DirectML is here")
def test_a_folder_without_a_receipt_is_for_the_provider_that_its_config_names(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(folders["llm"], bare)
    (bare / "receipt.json").unlink()
    assert run_command(["try", str(bare), "hello", "--max-new-tokens", "2"]) == 0
    config = json.loads((bare / "genai_config.json").read_text(encoding="utf-8"))
    config["model"]["decoder"].setdefault("session_options", {})["provider_options"] = [{"dml": {}}]
    (bare / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
    for verb in (["serve", str(bare)], ["try", str(bare), "hello"]):
        assert run_command(verb) == 1
        assert "DirectML exists on Windows only" in capsys.readouterr().err
    assert run_command(["try", str(bare), "hello", "--max-new-tokens", "2", "--target", "cpu"]) == 0


def test_a_recipe_is_made_first_and_served_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECIPE_CATALOG", str(ROOT / "recipes"))
    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    words = ["all-minilm-l6-v2/cpu-fp32", "short=smollm2-135m-instruct.cpu.fp32"]
    with (tmp_path / "log").open("w") as log:
        server, address = started([*words, "--smoke", "--offline"], log, at=tmp_path)
    try:
        client = openai.OpenAI(base_url=address, api_key="none", max_retries=0)
        assert [model.id for model in client.models.list()] == ["all-minilm-l6-v2-cpu-fp32-smoke", "short"]
        assert client.completions.create(model="short", prompt="Once", max_tokens=2).usage is not None
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(20)
    told = (tmp_path / "log").read_text(encoding="utf-8")
    assert "making all-minilm-l6-v2/cpu-fp32 first" in told
    assert (tmp_path / "models/smollm2-135m-instruct-cpu-fp32-smoke/receipt.json").is_file()


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("resnet-50", "cannot-serve: resnet-50/cpu-fp32: a model of kind 'onnx' for 'image-classification' cannot be served"),
        ("all-minilm-l6-v2/cpu-int9", "all-minilm-l6-v2 has no variant 'cpu-int9'"),
    ],
)
def test_a_recipe_that_cannot_be_served_is_refused_before_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], word: str, told: str
) -> None:
    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RECIPE_CATALOG", str(ROOT / "recipes"))
    monkeypatch.chdir(tmp_path)
    assert run_command(["serve", word, "--smoke", "--offline", "--port", "0"]) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.onnx"))


def test_a_port_in_use_is_told(address: str, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    port = address.rpartition(":")[2].removesuffix("/v1")
    assert run_command(["serve", str(folders["encoder"]), "--port", port]) == 2
    assert "port-taken" in capsys.readouterr().err
