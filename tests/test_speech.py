"""Speech from end to end on a tiny Whisper: built, quantised by part, transcribing, benchmarked, tried."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from runner.bench.bench import Contest, bench
from runner.cli import run_command
from runner.errors import InvalidRecipe, RunFailed
from runner.evaluation.transcribers import open_transcriber
from runner.models.files import read_graph
from runner.models.handle import ModelHandle
from runner.models.sound_windows import SAMPLE_RATE, wav_bytes
from runner.models.torch_source import load_torch
from runner.models.transcription import TranscriptionSession, hears
from runner.models.twin import architecture_of
from runner.passes import table
from runner.passes.declaration import PassContext
from runner.passes.export.tiny_twin import make_twin
from runner.recipe.info import Evaluation
from runner.targets.target import TARGETS

TASK = "automatic-speech-recognition"
ENCODER_ONLY = {"op_types_to_quantize": ["MatMul", "Attention"], "reduce_range": True, "nodes_to_exclude": ["decoder.onnx:*"]}


def applied(name: str, model: ModelHandle, folder: Path, **options: Any) -> ModelHandle:
    output, scratch = folder / name / "output", folder / name / "scratch"
    output.mkdir(parents=True)
    scratch.mkdir()
    pass_ = table.get(name)
    context = PassContext(output, scratch, TARGETS["cpu"], 2, lambda _: iter(()), lambda _: None)
    return pass_.apply(model, pass_.options.model_validate(options), context)


def operators(model: ModelHandle, file: str) -> Counter[str]:
    return Counter(node.op_type for node in read_graph(model.folder / file, weights=False).graph.node)


def noise(seconds: float, seed: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(int(seconds * SAMPLE_RATE))).astype(np.float32)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return make_twin(architecture_of("openai/whisper-tiny"), TASK, tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def built(source: ModelHandle, tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return applied("ModelBuilder", source, tmp_path_factory.mktemp("built"), precision="fp32")


def test_encoder_and_decoder_are_quantised_differently(built: ModelHandle, tmp_path: Path) -> None:
    halfway = applied("OnnxDynamicQuantization", built, tmp_path, **ENCODER_ONLY)
    assert operators(halfway, "encoder.onnx")["MatMulInteger"] > 0
    assert operators(halfway, "encoder.onnx")["QAttention"] == operators(built, "encoder.onnx")["Attention"] > 0
    assert operators(halfway, "decoder.onnx") == operators(built, "decoder.onnx")
    whole = applied("OnnxKQuantQuantization", halfway, tmp_path, bits=8)
    assert operators(whole, "encoder.onnx") == operators(halfway, "encoder.onnx")
    assert operators(whole, "decoder.onnx")["MatMulNBits"] > 0
    assert isinstance(open_transcriber(whole, 2).text(noise(1, 1)), str)


def test_block_quantisation_keeps_to_the_graph_that_is_named(built: ModelHandle, tmp_path: Path) -> None:
    made = applied("OnnxBlockWiseRtnQuantization", built, tmp_path, nodes_to_include=["encoder.onnx:*/mlp/*"], block_size=16)
    assert operators(made, "encoder.onnx")["MatMulNBits"] == 4
    assert operators(made, "decoder.onnx")["MatMulNBits"] == 0


def test_a_name_that_no_graph_has_is_an_error(built: ModelHandle, tmp_path: Path) -> None:
    real = replace(built, attributes={key: value for key, value in built.attributes.items() if key != "twin_of"})
    with pytest.raises(InvalidRecipe, match=r"no node 'decoder\.onnx:\*/nothing'"):
        applied("OnnxDynamicQuantization", real, tmp_path, nodes_to_exclude=["decoder.onnx:*/nothing"])


def test_weights_with_several_hard_links_are_quantised(built: ModelHandle, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in built.folder.iterdir():
        os.link(file, linked / file.name)
    for name in ("encoder", "decoder"):  # weights in files of their own, as large models have them
        graph = read_graph(linked / f"{name}.onnx")
        (linked / f"{name}.onnx").unlink()
        (linked / f"{name}.onnx.data").unlink(missing_ok=True)
        onnx.save(graph, linked / f"{name}.onnx", save_as_external_data=True, location=f"{name}.onnx.data", size_threshold=256)
        os.link(linked / f"{name}.onnx.data", tmp_path / f"{name}.again")
    made = applied("OnnxDynamicQuantization", replace(built, folder=linked), tmp_path, op_types_to_quantize=["MatMul"])
    assert operators(made, "decoder.onnx")["MatMulInteger"] > 0


def test_both_sides_hear_the_same(source: ModelHandle, built: ModelHandle) -> None:
    assert hears(built.folder)
    texts = [open_transcriber(model, 2).text(noise(2, 1)) for model in (source, built)]
    assert isinstance(texts[0], str)
    assert all(isinstance(text, str) for text in texts)


@pytest.mark.parametrize("suppressed", [(), (453, 237, 392)])
def test_the_likeliest_tokens_that_are_allowed_are_written(
    source: ModelHandle, built: ModelHandle, tmp_path: Path, suppressed: tuple[int, ...]
) -> None:
    import torch
    from transformers import WhisperFeatureExtractor

    sound, module, folder = noise(2, 1), load_torch(source), tmp_path / "told"
    features = WhisperFeatureExtractor.from_pretrained(source.folder)(sound, sampling_rate=SAMPLE_RATE, return_tensors="pt")
    shutil.copytree(built.folder, folder)
    told = {"lang_to_id": {"<|de|>": 3}, "suppress_tokens": suppressed, "begin_suppress_tokens": [0]}
    (folder / "generation_config.json").write_text(json.dumps(told))
    written = [1, 3, 6, 10]  # start, language, task, no timestamps
    for _ in range(4):
        with torch.inference_mode():
            logits = module(**features, decoder_input_ids=torch.tensor([written])).logits[0, -1].numpy().copy()
        logits[[*range(1, 11), *suppressed]] = -np.inf
        written.append(int(logits.argmax()))
    assert TranscriptionSession(folder, 2).tokens(sound, 4) == written[4:]


def test_a_longer_sound_is_heard_in_passages_and_silence_is_not(built: ModelHandle) -> None:
    sound = np.concatenate([noise(25, 1), np.zeros(60 * SAMPLE_RATE, np.float32), noise(3, 2)])
    passages = list(TranscriptionSession(built.folder, 2).transcribe(sound))
    assert passages[0].start == 0
    assert passages[-1].end == 88
    assert all(one.end == other.start for one, other in pairwise(passages))
    assert any(not passage.text for passage in passages)
    assert list(TranscriptionSession(built.folder, 2).transcribe(np.zeros(0, np.float32))) == []


def test_no_more_tokens_are_heard_than_asked_for(built: ModelHandle) -> None:
    session, sound = TranscriptionSession(built.folder, 2), np.concatenate([noise(25, 1), noise(25, 2)])
    (one,), (four,) = session.transcribe(sound, 1), session.transcribe(sound, 4)
    assert one.end == four.end < 50
    assert one.text
    assert four.text.startswith(one.text)
    assert len(one.text) < len(four.text)


def test_a_fine_tune_without_a_tokenizer_is_one_error(built: ModelHandle, tmp_path: Path) -> None:
    folder = tmp_path / "untold"
    shutil.copytree(built.folder, folder)
    told = json.loads((folder / "tokenizer.json").read_text())
    told["added_tokens"] = []
    told["model"]["vocab"] = {name: number for name, number in told["model"]["vocab"].items() if not name.startswith("<|")}
    (folder / "tokenizer.json").write_text(json.dumps(told))
    with pytest.raises(RunFailed, match="a fine-tune needs the tokenizer of the model it comes from"):
        TranscriptionSession(folder, 2)


def test_pytorch_hears_without_a_description_of_the_encoders_input(source: ModelHandle, tmp_path: Path) -> None:
    folder = tmp_path / "fine-tune"
    shutil.copytree(source.folder, folder, ignore=shutil.ignore_patterns("*processor_config.json"))
    found = [open_transcriber(replace(source, folder=one), 2).text(noise(2, 1)) for one in (source.folder, folder)]
    assert found[0] == found[1]


def test_a_benchmark_tells_word_errors_and_real_time_factor(source: ModelHandle, built: ModelHandle, tmp_path: Path) -> None:
    clips = tmp_path / "speech"
    clips.mkdir()
    (clips / "one.wav").write_bytes(wav_bytes(noise(2, 1)))
    (clips / "transcripts.txt").write_text("one.wav the first clip\n")
    contest = Contest(
        output=built, source=source, recipe="tiny", variant=None, model_id=None, evaluation=Evaluation(speech="speech"),
        gates={}, folder=tmp_path, target=TARGETS["cpu"], threads=2, rounds=1,
    )  # fmt: skip
    found = {row.name: row for row in bench(contest).rows}
    assert list(found) == ["rtf", "wer", "size", "load", "peak_rss"]
    assert found["rtf"].about == "1 clips, 2 s, greedy"
    assert found["wer"].about == "1 clips, 3 words"
    assert found["wer"].baseline is not None


class TestTry:
    def test_a_sound_is_written_down(self, built: ModelHandle, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "sound.wav").write_bytes(wav_bytes(noise(31, 3)))
        assert run_command(["try", str(built.folder), str(tmp_path / "sound.wav"), "--json"]) == 0
        (told,) = json.loads(capfd.readouterr().out)
        assert told["sound_s"] == pytest.approx(31)
        assert set(told) == {"input", "text", "passages", "sound_s", "seconds"}
        assert told["text"] == " ".join(passage["text"] for passage in told["passages"])

    def test_a_text_called_wav_is_one_error(
        self, built: ModelHandle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "text.wav").write_text("nobody speaks")
        assert run_command(["try", str(built.folder), str(tmp_path / "text.wav")]) == 1
        assert "is no readable sound file" in capfd.readouterr().err
