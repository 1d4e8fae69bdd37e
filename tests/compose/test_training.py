"""Which rows a training takes, which are held out, and what is refused of local files before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runner.compose.calibration import DataWish
from runner.compose.row_survey import Rows
from runner.compose.training import Training, data_configs, survey_rows
from runner.data.hub import hub_dataset
from runner.errors import DataUnavailable, InvalidRecipe, UsageError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Fifty numbered rows of text; one has a column that the others lack."""
    rows: list[dict[str, Any]] = [{"text": f"row {at}"} for at in range(50)]
    rows[40]["note"] = "late"
    made = tmp_path / "rows.jsonl"
    made.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return made


def _rows(config: dict[str, Any]) -> list[str]:
    return [row["text"] for row in hub_dataset(**config["load_dataset_config"])]


@pytest.mark.parametrize(("how", "count"), [({}, 5), ({"eval_share": 0.25}, 13), ({"eval_rows": 7}, 7)])
def test_held_out_rows_are_drawn_by_the_seed_and_never_trained_on(file: Path, how: dict[str, Any], count: int) -> None:
    wish = DataWish(str(file))
    train, held_out = (_rows(one) for one in data_configs(wish, Training(**how)))
    assert len(held_out) == count
    assert sorted(train + held_out) == sorted(f"row {at}" for at in range(50))
    assert held_out != [f"row {at}" for at in range(50 - count, 50)]
    assert _rows(data_configs(wish, Training(**how))[1]) == held_out
    assert set(_rows(data_configs(wish, Training(**how, seed=1))[1])) != set(held_out)


def test_rows_of_a_named_split_are_held_out(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        lines = [json.dumps({"text": f"{split} {at}"}) for at in range(9)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    train, held_out = data_configs(DataWish(str(tmp_path)), Training(eval_split="validation", eval_rows=3))
    assert len(_rows(train)) == 9
    assert len(_rows(held_out)) == 3
    assert all(text.startswith("validation") for text in _rows(held_out))
    assert len(data_configs(DataWish(str(tmp_path)), Training(eval_share=0))) == 1


def test_holding_out_everything_is_refused(file: Path) -> None:
    with pytest.raises(DataUnavailable, match="50 of 50 rows are held out"):
        _rows(data_configs(DataWish(str(file)), Training(eval_rows=50))[0])
    load = {"data_name": "json", "data_files": str(file), "train_test_split": {"test_size": 0, "take": "tset"}}
    with pytest.raises(InvalidRecipe) as caught:
        hub_dataset(**load)
    assert len(caught.value.problems) >= 2


def test_columns_and_splits_of_local_files_are_checked_at_once(file: Path) -> None:
    assert survey_rows(DataWish(str(file), text_template="{text}: {note}"), Training()) == Rows(50, 49)
    wish = DataWish(str(file), text_template="{txt}: {notes[0]}", split="tran[:10]+train")
    with pytest.raises(InvalidRecipe) as caught:
        survey_rows(wish, Training(eval_split="validation"))
    told = [(one.rule, one.remedy) for one in caught.value.problems]
    assert [rule for rule, _ in told] == ["unknown-column", "unknown-column", "unknown-split", "unknown-split"]
    assert told[0][1] == "did you mean 'text'?"


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet", "rows.json"])
def test_every_format_of_rows_is_checked(tmp_path: Path, name: str) -> None:
    import pandas

    table, made = pandas.DataFrame({"ask": ["a", "b"], "say": ["c", "d"]}), tmp_path / name
    if name.endswith("csv"):
        table.to_csv(made, index=False, encoding="utf-8-sig")
    elif name.endswith("parquet"):
        table.to_parquet(made)
    else:
        table.to_json(made, orient="records", indent=2)
    assert survey_rows(DataWish(str(made), text_template="{ask} {say}"), Training()) == Rows(2, 0)
    with pytest.raises(InvalidRecipe, match="has no column 'said'"):
        survey_rows(DataWish(str(made), text_template="{ask} {said}"), Training())
    made.write_text("{", encoding="utf-8")
    with pytest.raises((UsageError, InvalidRecipe), match=name):
        survey_rows(DataWish(str(made), text_template="{ask} {say}"), Training())


def test_rows_without_a_value_are_counted(tmp_path: Path) -> None:
    rows = [{"ask": "a", "say": "b"}, {"ask": "a"}, {"ask": "a", "say": None}]
    (tmp_path / "rows.jsonl").write_text("\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "rows.csv").write_text("ask,say\na,b\nc,\nd,NA\n", encoding="utf-8")
    found = [
        survey_rows(DataWish(str(tmp_path / name), text_template="{ask} {say}"), Training())
        for name in ("rows.jsonl", "rows.csv")
    ]
    assert found == [Rows(3, 2), Rows(3, 2)]


@pytest.mark.parametrize(
    ("files", "training", "told"),
    [
        ({"a.jsonl": '{"text": "x"}\n\n{"text": "y"}\n{"text"'}, {}, "a.jsonl, line 4: "),
        ({"a.json": '[{"text": "x"},\n{"text": ]'}, {}, "a.json, line 2: "),
        ({"a.jsonl": '{"text": "x"}', "b.csv": "text\ny\n"}, {}, "b.csv is none of .json"),
        ({"a.jsonl": '{"text": "x"}'}, {}, "1 of 1 rows are held out"),
        ({"a.csv": "text\nx\ny\n"}, {"eval_rows": 2}, "2 of 2 rows are held out"),
        ({"a.csv": "text\n"}, {}, "no row has a value in 'text'"),
        ({"a.csv": "text\nGr\xfc\xdfe\n"}, {}, "a.csv is not text in UTF-8"),
        ({"a.parquet": "PAR1"}, {}, "no rows can be read from it"),
    ],
)
def test_what_would_stop_the_training_is_told_by_its_place(
    tmp_path: Path, files: dict[str, str], training: dict[str, Any], told: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="latin-1")
    wish = DataWish(data_files=tuple(str(tmp_path / name) for name in files), text_field="text")
    with pytest.raises((UsageError, InvalidRecipe), match=told):
        survey_rows(wish, Training(**training))


def test_rows_that_are_no_conversations_are_told(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "a"}]}, {"messages": "text"}, {"messages": [{"rule": "user"}]}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(InvalidRecipe) as caught:
        survey_rows(DataWish(str(tmp_path / "rows.jsonl"), use_chat_template=True), Training())
    told = [one.cause for one in caught.value.problems]
    assert ["line 2: the column" in told[0], "line 3: a message has no role" in told[1], len(told)] == [True, True, 2]
