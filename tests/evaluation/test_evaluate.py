"""The evaluators section of a configuration on real, tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from runner.errors import ModelUnavailable
from runner.evaluation.check import check_evaluator, evaluation_files, missing_packages
from runner.evaluation.evaluate import evaluate
from runner.evaluation.forward import open_forward, outputs_of
from runner.models.handle import ModelHandle
from runner.models.torch_source import load_tokenizer
from runner.models.twin import architecture_of
from runner.passes.export.tiny_twin import make_twin
from runner.recipe.config import RunConfig
from runner.targets.target import TARGETS

SENTENCES = ("the cat sat on the mat", "a dog ran over the hill", "red ball", "the old house by the river")


def config(*metrics: dict[str, Any], **more: Any) -> RunConfig:
    return RunConfig.model_validate(
        {"input_model": {"type": "HfModel"}, "evaluators": {"e": {"metrics": metrics}}, "evaluator": "e", **more}
    )


def test_a_configuration_without_evaluator_has_no_problems():
    assert check_evaluator(RunConfig.model_validate({"input_model": {"type": "HfModel"}})) == []


def evaluator(**keys: Any) -> RunConfig:
    return RunConfig.model_validate({"input_model": {"type": "HfModel"}, "evaluators": {"e": keys}, "evaluator": "e"})


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"type": "LMEvaluator"}, "'tasks' must list the tasks"),
        ({"type": "LMEvaluator", "tasks": ["arc"], "batchsize": 2}, "unknown key 'batchsize'"),
        ({"type": "LMEvaluator", "tasks": ["arc"], "model_class": "ortgenia"}, "model_class ortgenia does not exist"),
        ({"type": "MTEBEvaluator", "tasks": ["STS17"], "limit": 3}, "unknown key 'limit'"),
        ({"type": "LMEvaluater", "tasks": ["arc"]}, "type LMEvaluater does not exist"),
    ],
)
def test_what_is_wrong_with_an_evaluator_is_told_before_any_work(keys, told):
    (problem,) = check_evaluator(evaluator(**keys))
    assert told in problem.cause


@pytest.mark.parametrize("kind", ["LMEvaluator", "MTEBEvaluator"])
def test_evaluators_of_benchmark_tasks_are_right(kind):
    assert check_evaluator(evaluator(type=kind, tasks=["one"], batch_size=2, type_args={"max_length": 9})) == []


def test_a_missing_package_is_no_mistake_of_the_configuration(monkeypatch):
    monkeypatch.setattr("runner.evaluation.check.find_spec", lambda name: None)
    asked = evaluator(type="MTEBEvaluator", tasks=["STS17"])
    assert check_evaluator(asked) == []
    (problem,) = missing_packages(asked)
    assert (problem.rule, problem.remedy) == ("package-missing", "pip install mteb")
    assert missing_packages(asked, smoke=True) == []
    metric = {
        "name": "right",
        "type": "accuracy",
        "data_config": "d",
        "backend": "torch_metrics",
        "sub_types": [{"name": "wer"}],
    }
    (problem,) = missing_packages(config(metric))
    assert problem.remedy == "pip install torchmetrics"
    own = {"name": "right", "type": "accuracy", "data_config": "d", "sub_types": [{"name": "accuracy_score"}]}
    assert missing_packages(config(own)) == []


def test_every_problem_of_the_metrics_is_told_at_once():
    problems = check_evaluator(
        config(
            {"name": "speed", "type": "latency", "sub_types": [{"name": "averge"}], "user_config": {"warmup": 3}},
            {"name": "right", "type": "accuracy", "sub_types": [{"name": "accuracy_score"}], "backend": "tensor_metrics"},
            {"name": "mine", "type": "custom", "sub_types": [{"name": "a"}], "user_config": {"user_script": "s.py"}},
        )
    )
    assert [one.rule for one in problems] == ["unknown-key", "unknown-sub-type", "bad-value", "missing-key", "missing-key"]


def test_latency_throughput_and_size_of_both_models(tiny_bert, exported_bert, tmp_path):
    asked = config(
        {
            "name": "speed",
            "type": "latency",
            "sub_types": [{"name": "avg"}, {"name": "p99"}],
            "user_config": {"warmup_num": 1, "repeat_test_num": 4, "sleep_num": 0},
        },
        {"name": "rate", "type": "throughput", "user_config": {"warmup_num": 0, "repeat_test_num": 2}},
        {"name": "size", "type": "size_on_disk"},
    )
    found = evaluate(exported_bert, tiny_bert, asked, tmp_path, 2, smoke=False)
    by_name = {metric.name: metric for metric in found.metrics}
    assert set(by_name) == {
        f"{prefix}{name}" for prefix in ("", "source.") for name in ("speed-avg", "speed-p99", "rate-avg", "size-bytes")
    }
    assert len(by_name["speed-avg"].samples) == 4
    assert by_name["speed-p99"].value >= by_name["speed-avg"].value > 0
    assert by_name["size-bytes"].unit == "bytes"
    assert found.missed == ()
    assert json.loads(json.dumps(found.to_json()))["metrics"][0]["name"] == "speed-avg"


def test_goals_are_held_against_the_source_model(tiny_bert, exported_bert, tmp_path):
    def asked(kind: str, value: float) -> RunConfig:
        goal = {"name": "bytes", "goal": {"type": kind, "value": value}}
        return config({"name": "size", "type": "size_on_disk", "sub_types": [goal]}, evaluate_input_model=False)

    missed = evaluate(exported_bert, tiny_bert, asked("percent-min-improvement", 99), tmp_path, 2, smoke=False).missed
    assert len(missed) == 1
    assert "percent-min-improvement 99" in missed[0]
    reached = evaluate(exported_bert, tiny_bert, asked("percent-max-degradation", 900), tmp_path, 2, smoke=False)
    assert reached.missed == ()
    smoke = evaluate(exported_bert, tiny_bert, asked("percent-min-improvement", 99), tmp_path, 2, smoke=True)
    assert smoke.missed == ()


def test_a_smoke_run_measures_on_the_cpu_in_place_of_an_absent_device(tiny_bert, exported_bert, tmp_path):
    metric = {"name": "speed", "type": "latency", "user_config": {"warmup_num": 0, "repeat_test_num": 1}}
    asked = config(metric, evaluate_input_model=False)
    found = evaluate(exported_bert, tiny_bert, asked, tmp_path, 2, smoke=True, made_for=TARGETS["directml"])
    assert [one.name for one in found.metrics] == ["speed-avg"]
    written = ModelHandle("onnx", tmp_path, "model.onnx")
    gpu_only = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>'
        "g (float[1,4,4,4] x, float[4,1,1,4] w) => (float[1,4,4,4] y) { y = com.microsoft.NhwcConv(x, w) }"
    )
    onnx.save(gpu_only, written.path)
    found = evaluate(written, tiny_bert, asked, tmp_path, 2, smoke=True, made_for=TARGETS["directml"])
    assert found.metrics == ()
    assert "directml is not on this machine" in found.notes[0]
    written.path.write_bytes(b"no graph")
    with pytest.raises(ModelUnavailable, match="cannot be read"):
        evaluate(written, tiny_bert, asked, tmp_path, 2, smoke=True, made_for=TARGETS["directml"])


def test_scripts_and_task_files_count_for_the_evaluation(tmp_path):
    for name in ("metric.py", "mine.yaml", "questions.jsonl", "other.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "mine.yaml").write_text("task: mine\ndata_files: questions.jsonl\n")
    metric = {"name": "a", "type": "custom", "user_config": {"user_script": "metric.py", "evaluate_func": "f"}}
    assert [file.name for file in evaluation_files(config(metric), tmp_path)] == ["metric.py"]
    found = evaluation_files(evaluator(type="LMEvaluator", tasks=["mine", "mmlu"]), tmp_path)
    assert [file.name for file in found] == ["mine.yaml", "questions.jsonl"]


def test_accuracy_comes_from_the_recipes_labelled_data(tiny_classifier, apply_pass, tmp_path: Path):
    tokenizer, model = load_tokenizer(tiny_classifier), open_forward(tiny_classifier, 2)
    truth = []
    for text in SENTENCES:
        encoded = {name: np.asarray(array) for name, array in tokenizer([text], return_tensors="np").items()}
        truth.append(int(next(iter(outputs_of(model, encoded).values())).argmax()))
    labels = [*truth[:-1], (truth[-1] + 1) % 3]  # the last label is one that the model does not choose
    (tmp_path / "sentences.txt").write_text("\n".join(SENTENCES))
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    data = {
        "name": "labelled",
        "load_dataset_config": {"type": "sentences", "path": "sentences.txt", "labels": "labels.json"},
        "pre_process_data_config": {"type": "tokenize", "max_length": 16},
        "dataloader_config": {"batch_size": 3},
    }
    metric = {
        "name": "right",
        "type": "accuracy",
        "sub_types": [{"name": "accuracy_score", "goal": {"type": "max-degradation", "value": 0.01}}],
        "data_config": "labelled",
    }
    exported = apply_pass("OnnxConversion", tiny_classifier)
    found = evaluate(exported, tiny_classifier, config(metric, data_configs=[data]), tmp_path, 2, smoke=False)
    assert {metric.name: metric.value for metric in found.metrics} == {
        "right-accuracy_score": 0.75,
        "source.right-accuracy_score": 0.75,
    }
    assert found.missed == ()


def test_a_language_models_latency_is_that_of_its_first_token(apply_pass, tmp_path):
    twin = architecture_of("meta-llama/Llama-3.2-1B-Instruct")
    source = make_twin(twin, twin.task, tmp_path / "source")
    built = apply_pass("ModelBuilder", source, precision="fp32")
    asked = config({"name": "latency", "type": "latency", "sub_types": [{"name": "avg"}]})
    found = evaluate(built, source, asked, tmp_path, 2, smoke=True)
    ours, theirs = found.metrics
    assert (ours.name, theirs.name) == ("latency-avg", "source.latency-avg")
    assert "first new one" in str(ours.note)
