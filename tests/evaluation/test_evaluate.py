"""The evaluators section of a configuration on real, tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.evaluation.evaluate import check_evaluator, evaluate
from runner.evaluation.forward import open_forward, outputs_of
from runner.models.torch_source import load_tokenizer
from runner.models.twin import architecture_of
from runner.passes.export.tiny_twin import make_twin
from runner.recipe.config import RunConfig

SENTENCES = ("the cat sat on the mat", "a dog ran over the hill", "red ball", "the old house by the river")


def config(*metrics: dict[str, Any], **more: Any) -> RunConfig:
    return RunConfig.model_validate(
        {"input_model": {"type": "HfModel"}, "evaluators": {"e": {"metrics": metrics}}, "evaluator": "e", **more}
    )


def test_a_configuration_without_evaluator_has_no_problems():
    assert check_evaluator(RunConfig.model_validate({"input_model": {"type": "HfModel"}})) == []


@pytest.mark.parametrize("kind", ["LMEvaluator", "MTEBEvaluator"])
def test_evaluators_that_are_not_served_say_so_before_any_work(kind):
    asked = RunConfig.model_validate(
        {"input_model": {"type": "HfModel"}, "evaluators": {"e": {"type": kind, "tasks": ["arc"]}}, "evaluator": "e"}
    )
    (problem,) = check_evaluator(asked)
    assert problem.rule == "evaluator-not-served"
    assert kind in problem.cause
    assert "recipe bench" in str(problem.remedy)


def test_every_problem_of_the_metrics_is_told_at_once():
    problems = check_evaluator(
        config(
            {"name": "speed", "type": "latency", "sub_types": [{"name": "averge"}]},
            {"name": "right", "type": "accuracy", "sub_types": [{"name": "accuracy_score"}]},
            {"name": "mine", "type": "custom"},
        )
    )
    assert [one.rule for one in problems] == ["unknown-sub-type", "missing-key", "metric-not-served"]


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
