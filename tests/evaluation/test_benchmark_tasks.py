"""lm-eval's tasks on tiny language models, and embeddings for mteb."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from runner.errors import InvalidRecipe, NotTrusted, RunFailed
from runner.evaluation.language_tasks import language_tasks
from runner.evaluation.text_embedding import Embedder, text_embedding_tasks
from runner.models.handle import ModelHandle
from runner.models.twin import architecture_of
from runner.passes import table
from runner.passes.declaration import PassContext
from runner.passes.export.tiny_twin import make_twin
from runner.targets.target import TARGETS

CPU = "CPUExecutionProvider"


@pytest.fixture(scope="module")
def language_model(tmp_path_factory) -> tuple[ModelHandle, ModelHandle]:
    """A tiny Llama with a tokenizer that onnxruntime-genai reads, and what ModelBuilder makes of it."""
    architecture = architecture_of("meta-llama/Llama-3.2-1B-Instruct")
    source = make_twin(architecture, architecture.task, tmp_path_factory.mktemp("source"))
    output, scratch = tmp_path_factory.mktemp("built"), tmp_path_factory.mktemp("scratch")
    builder = table.get("ModelBuilder")
    context = PassContext(output, scratch, TARGETS["cpu"], 2, lambda _: iter(()), lambda _: None)
    options = builder.options.model_validate({"precision": "fp32", "extra_options": {"include_hidden_states": True}})
    return source, builder.apply(source, options, context)


@pytest.fixture
def folder(tmp_path):
    rows = [{"question": f"the cat sat {at}", "choices": ["on the mat", "over the hill"], "answer": at % 2} for at in range(4)]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\ndataset_kwargs:\n  data_files: questions.jsonl\ntest_split: train\n"
        "output_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: '{{choices}}'\ndoc_to_target: answer\n"
        "metric_list:\n  - metric: acc\n"
    )
    return tmp_path


def figures(model, folder, smoke=False, script_allowed=False, **asked: Any) -> dict[str, Any]:
    found = language_tasks(model, asked, folder, 2, CPU, smoke, script_allowed)
    return {one.name: one for one in found}


def test_a_local_task_runs_on_all_back_ends_alike(folder, language_model):
    source, built = language_model
    theirs = figures(source, folder, tasks=["mine", "size_on_disk"], batch_size=2)
    assert set(theirs) == {"mine-acc", "size_on_disk-bytes"}
    for more in ({}, {"model_class": "ort", "limit": 4}):
        ours = figures(built, folder, tasks=["mine.yaml"], **more)
        assert ours["mine-acc"].value == theirs["mine-acc"].value
        assert "4 questions" in str(ours["mine-acc"].note)


def test_text_is_generated(folder, language_model):
    task = {
        "task": "continued", "dataset_path": "json", "dataset_kwargs": {"data_files": "questions.jsonl"}, "test_split": "train",
        "output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "x",
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 3},
    }  # fmt: skip
    assert figures(language_model[1], folder, tasks=[task], limit=2, bootstrap_iters=0)["continued-exact_match"].value == 0.0


def test_smoke_asks_questions_of_our_own(folder, language_model):
    found = figures(language_model[0], folder, smoke=True, tasks=["mmlu", {"task": "wmt18"}])
    assert list(found) == ["smoke_questions-acc"]
    assert "made-up questions in place of mmlu, wmt18" in str(found["smoke_questions-acc"].note)


def test_a_task_with_python_code_needs_trust(folder, tiny_llama):
    with (folder / "mine.yaml").open("a") as stream:
        stream.write("process_docs: !function code.process\n")
    with pytest.raises(NotTrusted, match=r"mine\.yaml"):
        figures(tiny_llama, folder, tasks=["mine"])


def test_a_task_file_that_is_not_there(folder, tiny_llama):
    with pytest.raises(InvalidRecipe, match=r"there is no task file 'absent\.yaml'"):
        figures(tiny_llama, folder, tasks=["absent.yaml"])


def test_embeddings_of_encoders_and_decoders(tiny_bert, exported_bert, language_model):
    texts = ["the cat sat", "a dog ran over the hill and then it was very sad"]
    theirs = Embedder(tiny_bert, 2, CPU).embed(texts, 2)
    assert theirs.shape == (2, 32)
    np.testing.assert_allclose(np.linalg.norm(theirs, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(Embedder(exported_bert, 2, CPU).embed(texts, 1), theirs, atol=1e-3)
    source, built = language_model
    np.testing.assert_allclose(Embedder(built, 2, CPU).embed(texts, 2), Embedder(source, 2, CPU).embed(texts, 1), atol=1e-3)


def test_a_model_without_hidden_states_says_how_to_get_them(tmp_path, language_model, apply_pass):
    built = apply_pass("ModelBuilder", language_model[0], precision="fp32")
    with pytest.raises(RunFailed, match="include_hidden_states"):
        text_embedding_tasks(built, {"tasks": ["STS17"]}, tmp_path, 2, CPU, smoke=True)


def test_smoke_compares_pairs_of_our_own(tmp_path, tiny_bert):
    (found,) = text_embedding_tasks(tiny_bert, {"tasks": ["STS17"]}, tmp_path, 2, CPU, smoke=True)
    assert found.name == "smoke_sts-main_score"
    assert -1 <= found.value <= 1
    assert "in place of STS17" in str(found.note)
