import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runner.errors import RunFailed, UsageError
from runner.models.generation import GenerationSession, threads_overlay
from runner.models.handle import ModelHandle
from runner.models.torch_source import load_tokenizer, load_torch
from runner.models.twin import architecture_of
from runner.passes.declaration import PassContext
from runner.passes.export.tiny_twin import make_twin
from runner.passes.genai.builder_options import ModelBuilderOptions
from runner.passes.genai.model_builder import PASS
from runner.targets.target import TARGETS


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelHandle, ModelHandle]:
    """A tiny chat model and its fp32 graph with a pruned head."""
    folder = tmp_path_factory.mktemp("generation")
    twin = architecture_of("meta-llama/Llama-3.2-1B-Instruct")
    source = make_twin(twin, twin.task, folder / "source")
    for name in ("output", "scratch"):
        (folder / name).mkdir()
    context = PassContext(folder / "output", folder / "scratch", TARGETS["cpu"], 2, lambda _: iter(()), lambda _: None)
    return source, PASS.apply(source, ModelBuilderOptions(precision="fp32", prune_lm_head=True), context)


def torch_logits(source: ModelHandle, tokens: list[int]) -> np.ndarray:
    import torch

    with torch.inference_mode():
        return load_torch(source)(torch.tensor([tokens])).logits[0].numpy()


def test_tokens_are_those_of_the_tokenizer(pair):
    source, model = pair
    session, tokenizer = GenerationSession(model.folder, 2), load_tokenizer(source)
    text = "Write a short story about a robot, please: 25 words."
    assert session.text_tokens(text) == tokenizer(text)["input_ids"]
    assert session.encode(text) == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert session.decode(session.encode(text)) == text
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert session.prompt(messages) == tokenizer(expected, add_special_tokens=False)["input_ids"]


def test_streams_the_greedy_answer(pair):
    import torch

    source, model = pair
    session = GenerationSession(model.folder, 2)
    prompt = session.prompt("What is the capital of France?")
    answer = list(session.generate(prompt, 12))
    expected = (
        load_torch(source).generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :].tolist()
    )
    assert [token.id for token in answer] == expected[: len(answer)]
    assert "".join(token.text for token in answer) == session.decode([token.id for token in answer])


def test_sampling_settings_are_passed_on(pair):
    _, model = pair
    session = GenerationSession(model.folder, 2)
    prompt = session.prompt("Tell me a story.")
    answers = {
        tuple(token.id for token in session.generate(prompt, 8, do_sample=True, temperature=5.0, top_k=50, random_seed=seed))
        for seed in range(4)
    }
    assert len(answers) > 1


def test_logits_of_every_position_in_spite_of_pruning(pair):
    source, model = pair
    tokens = GenerationSession(model.folder, 2).text_tokens("Rain fell on the harbour, and the boats lay still.")
    expected = torch_logits(source, tokens)
    found = GenerationSession(model.folder, 2, every_position=True).all_logits(tokens)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-3)
    with pytest.raises(UsageError, match="last token only"):
        GenerationSession(model.folder, 2).all_logits(tokens)


def test_a_text_is_read_at_once_and_one_by_one_and_gone_on_with(pair):
    source, model = pair
    session = GenerationSession(model.folder, 2, every_position=True)
    tokens = session.text_tokens("Rain fell on the harbour, and the boats lay still.")
    found, written = session.read(tokens, 3, 4)
    np.testing.assert_allclose(found, torch_logits(source, tokens), atol=1e-3)
    assert written == list(session.generate_ids(tokens, 4, do_sample=False))
    with pytest.raises(UsageError, match="last token only"):
        GenerationSession(model.folder, 2).read(tokens, 3)


def test_a_prompt_longer_than_the_context_is_refused(pair):
    session = GenerationSession(pair[1].folder, 2)
    with pytest.raises(UsageError, match="room for 4096"):
        list(session.generate([5] * 4090, 10))


def test_a_short_answer_of_a_model_with_windows(tmp_path: Path):
    twin = architecture_of("google/gemma-3-1b-it")
    source = make_twin(twin, twin.task, tmp_path / "source")
    for name in ("output", "scratch"):
        (tmp_path / name).mkdir()
    context = PassContext(tmp_path / "output", tmp_path / "scratch", TARGETS["cpu"], 2, lambda _: iter(()), lambda _: None)
    model = PASS.apply(source, ModelBuilderOptions(precision="int4"), context)
    session = GenerationSession(model.folder, 2)
    assert 1 <= len(list(session.generate(session.prompt("Hi"), 3))) <= 3


def test_what_is_no_model_is_one_clear_error(tmp_path: Path, pair):
    with pytest.raises(RunFailed, match="bad-genai-config"):
        GenerationSession(tmp_path, 1)
    (tmp_path / "genai_config.json").write_text((pair[1].folder / "genai_config.json").read_text())
    with pytest.raises(RunFailed, match="model-does-not-load"):
        GenerationSession(tmp_path, 1)


def test_a_shadowing_module_is_an_error_and_not_an_abort(tmp_path: Path):
    (tmp_path / "onnxruntime_genai.py").write_text("raise SystemExit('shadowed')")
    code = "from runner.models.generation import import_genai; import_genai()"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "no-genai" in done.stderr
    assert done.returncode == 1


def test_generation_needs_no_torch(pair):
    code = (
        "import sys; from pathlib import Path; from runner.models.generation import GenerationSession; "
        f"session = GenerationSession(Path({str(pair[1].folder)!r}), 1); list(session.generate(session.prompt('Hi'), 2)); "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_threads_are_laid_over_sessions_on_the_cpu_only():
    cuda = {"session_options": {"provider_options": [{"cuda": {"enable_cuda_graph": "0"}}]}}
    cpu = {"session_options": {"provider_options": []}}
    config = {"model": {"type": "whisper", "encoder": cuda, "decoder": cpu}}
    threads = {"session_options": {"intra_op_num_threads": 3}}
    assert threads_overlay(config, 3, on_cpu=False) == {"model": {"decoder": threads}}
    assert threads_overlay(config, 3, on_cpu=True) == {"model": {"encoder": threads, "decoder": threads}}
