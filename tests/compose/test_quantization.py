"""Which passes quantise a model: every scheme gives a run that plans, and what there is none for is told with what there is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.compose.calibration import DataWish, calibration, located, reads_of
from runner.compose.known import Known, look_up
from runner.compose.quantization import quantization
from runner.compose.quantization_schemes import SCHEMES, Form, QuantizeWish, Scheme
from runner.compose.single_step import Wish, compose
from runner.compose.subject import Subject, subject_of
from runner.engine.run import plan_run
from runner.errors import InvalidRecipe, UsageError
from runner.models.handle import ModelHandle
from runner.targets.target import TARGETS
from runner.templating.clone import clone_of

ROOT = Path(__file__).resolve().parents[2]
CLONE = clone_of(ROOT / "recipes" / "recipe")
# Ids that the tables of architectures know.
MODELS: dict[Form, str] = {
    "generator": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "speech": "openai/whisper-base",
    "module": "sentence-transformers/all-MiniLM-L6-v2",
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def _known(word: str, wish: Wish) -> Known:
    return look_up(subject_of(word), wish.catalog, wish.offline)


def _wish(folder: Path, target: str = "cpu") -> Wish:
    return Wish(TARGETS[target], folder / "made", catalog=ROOT / "recipes", offline=True)


def _cases() -> Iterator[object]:
    for scheme in SCHEMES:
        for precision in scheme.precisions:
            for target in scheme.targets:
                name = f"{scheme.form}-{scheme.algorithm}-{scheme.implementation}-{precision}-{target}"
                yield pytest.param(scheme, precision, target, id=name)


@pytest.mark.parametrize(("scheme", "precision", "target"), [*_cases()])
def test_every_scheme_gives_a_run_that_plans(
    scheme: Scheme, precision: str, target: str, exported_bert: ModelHandle, tmp_path: Path
) -> None:
    wish = _wish(tmp_path, target)
    if scheme.form == "pipeline":
        known = Known(Subject("diffusers", "stable-diffusion-v1-5/stable-diffusion-v1-5", "text-to-image", {}))
    else:
        known = _known(MODELS.get(scheme.form, str(exported_bert.path)), wish)
    asked = QuantizeWish(scheme.algorithm, precision, scheme.implementation)
    chain = quantization(known, asked, wish.target, CLONE)
    composed, request = compose(known, chain, wish, "a title")
    plan = plan_run(request, lambda _: None, fetch=False)
    assert [step.pass_name for step in plan.steps if step.name != "source"] == [one["type"] for one in chain.steps.values()]
    assert (composed.folder / "README.md").is_file()
    assert plan.target.name == target


@pytest.mark.parametrize(
    ("word", "wish", "rule", "told"),
    [
        (MODELS["generator"], QuantizeWish("static"), "no-scheme", "gptq"),
        (MODELS["generator"], QuantizeWish("hqq", "int8"), "no-scheme", "hqq makes int4"),
        (MODELS["module"], QuantizeWish("gptq"), "no-scheme", "dynamic"),
        (MODELS["generator"], QuantizeWish("gpqt"), "unknown-algorithm", "'gptq'"),
        (MODELS["generator"], QuantizeWish(precision="int3"), "unknown-precision", "int4"),
        (MODELS["generator"], QuantizeWish(precision="fp16"), "not-quantized", "recipe export --precision fp16"),
        (MODELS["module"], QuantizeWish(implementation="bnb"), "unknown-implementation", "inc"),
        (MODELS["module"], QuantizeWish("dynamic", data=DataWish("some/data")), "data-unused", "static"),
        (MODELS["module"], QuantizeWish("static", act_precision="int32"), "unknown-precision", "int8"),
    ],
)
def test_what_there_is_no_scheme_for(word: str, wish: QuantizeWish, rule: str, told: str, tmp_path: Path) -> None:
    how = _wish(tmp_path)
    with pytest.raises(UsageError) as caught:
        quantization(_known(word, how), wish, how.target, CLONE)
    assert caught.value.problems[0].rule == rule
    assert told in str(caught.value)


def test_defaults_follow_the_model(exported_bert: ModelHandle, tmp_path: Path) -> None:
    how = _wish(tmp_path)
    usual = {
        word: quantization(_known(word, how), QuantizeWish(), how.target, CLONE).scheme
        for word in (MODELS["generator"], MODELS["module"], str(exported_bert.path))
    }
    assert list(usual.values()) == ["int4-kquant", "int8-dynamic", "int8-dynamic"]


def test_hqq_of_a_language_model_needs_no_graph_in_floating_point(tmp_path: Path) -> None:
    for target in ("cpu", "cuda"):
        how = _wish(tmp_path, target)
        steps = quantization(_known(MODELS["generator"], how), QuantizeWish("hqq"), how.target, CLONE).steps
        assert [(one["type"], one["int4_algo_config"]) for one in steps.values()] == [("ModelBuilder", "hqq")]


def test_an_embedding_that_is_not_the_head_is_quantised_by_itself(tiny_llama: ModelHandle, tmp_path: Path) -> None:
    how, wish = _wish(tmp_path), QuantizeWish("rtn", "int8")
    tied = quantization(_known(MODELS["generator"], how), wish, how.target, CLONE).steps
    assert tied["build"]["int4_tied_embeddings"] is True and "embedding_bits" not in tied["build"]
    for asked in (wish, QuantizeWish("kquant", "int4")):
        untied = quantization(_known(str(tiny_llama.folder), how), asked, how.target, CLONE).steps
        assert list(untied) == ["build"]  # in the step that writes the graph, not in another one behind it
        assert "int4_tied_embeddings" not in untied["build"] and untied["build"]["embedding_bits"] == 8


def test_directml_keeps_an_embedding_that_it_has_no_kernel_for(tiny_llama: ModelHandle, tmp_path: Path) -> None:
    how = _wish(tmp_path, "directml")
    steps = quantization(_known(str(tiny_llama.folder), how), QuantizeWish("rtn", "int4", "builder"), how.target, CLONE).steps
    assert list(steps) == ["build"] and "embedding_bits" not in steps["build"]


def test_a_checkpoint_can_be_kept(tmp_path: Path) -> None:
    how = _wish(tmp_path)
    chain = quantization(_known(MODELS["generator"], how), QuantizeWish(keep_checkpoint=True), how.target, CLONE)
    assert [step["type"] for step in chain.steps.values()] == ["Gptq", "Rtn"]


def test_a_catalogued_model_keeps_its_sources_and_what_judges_it(tmp_path: Path) -> None:
    how = _wish(tmp_path)
    known = _known(MODELS["generator"], how)
    composed, request = compose(known, quantization(known, QuantizeWish(), how.target, CLONE), how, "a title")
    assert request.info is not None and request.name == "made/cpu-int4-kquant"
    assert request.info.model.sources == (known.entry.info.model.sources if known.entry else [])
    assert (composed.folder / "sample_data/held_out.txt").is_file()


def test_overrides_stand_in_the_config(exported_bert: ModelHandle, tmp_path: Path) -> None:
    how = Wish(TARGETS["cpu"], tmp_path / "made", ["per_channel=false"], ROOT / "recipes", offline=True)
    known = _known(str(exported_bert.path), how)
    chain = quantization(known, QuantizeWish("dynamic"), how.target, CLONE)
    composed, _ = compose(known, chain, how, "a title")
    assert composed.config["passes"]["quantize"]["per_channel"] is False
    wrong = Wish(TARGETS["cpu"], tmp_path / "other", ["per_chanel=false"], ROOT / "recipes", offline=True)
    with pytest.raises(InvalidRecipe, match="did you mean 'per_channel'"):
        compose(known, chain, wrong, "a title")
    assert not (tmp_path / "other-recipe").exists()


def test_data_is_named_or_taken_from_the_catalogue(tmp_path: Path) -> None:
    sample = calibration("prose", DataWish(), CLONE)
    assert sample.config["load_dataset_config"]["data_files"] == "sample_data/calibration.txt"
    assert "sample_data/calibration.txt" in sample.files
    (tmp_path / "rows.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    own = DataWish(data_files=[str(tmp_path / "rows.jsonl")], text_template="{question}\n{answer}", max_samples=3)
    config = calibration("prose", own, CLONE).config
    assert config["load_dataset_config"]["data_name"] == "json"
    assert config["pre_process_data_config"]["text_template"] == "{question}\n{answer}"
    assert located(DataWish("Org/name")) == ("Org/name", [])
    assert located(DataWish(str(tmp_path)))[0] == str(tmp_path)
    with pytest.raises(UsageError, match="holds no pictures"):
        calibration("pictures", DataWish(str(tmp_path)), CLONE)
    (tmp_path / "one.png").touch()
    pictures = calibration("pictures", DataWish(str(tmp_path)), CLONE).config
    assert pictures["load_dataset_config"] == {"type": "images", "path": str(tmp_path)}
    with pytest.raises(InvalidRecipe, match=r"has no column 'query' \(--text_field\)"):
        calibration("prose", DataWish(data_files=[str(tmp_path / "rows.jsonl")], text_field="query"), CLONE)
    with pytest.raises(InvalidRecipe, match=r"has no column 'reply' \(--input_cols\)"):
        calibration("sentences", DataWish(data_files=[str(tmp_path / "rows.jsonl")], input_cols=["answer", "reply"]), CLONE)
    for wish, rule in (
        (DataWish(data_files=["nowhere.txt"]), "no-data"),
        (DataWish("/no/where.txt"), "no-data"),
        (DataWish(data_files=[str(ROOT / "pyproject.toml")]), "unknown-format"),
    ):
        with pytest.raises(UsageError) as caught:
            located(wish)
        assert caught.value.problems[0].rule == rule


def test_what_a_model_reads_is_told_by_its_task_or_its_folder(tiny_bert: ModelHandle, tiny_resnet: ModelHandle) -> None:
    assert reads_of("text-generation-with-past", None) == "prose"
    assert reads_of("image-classification", None) == "pictures"
    assert reads_of(None, tiny_bert.folder) == "sentences"
    assert reads_of(None, tiny_resnet.folder) == "pictures"
    assert reads_of(None, ROOT / "docs") is None
    with pytest.raises(UsageError, match="--task"):
        calibration(None, DataWish(), CLONE)
