# SPDX-License-Identifier: Apache-2.0
import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from anomalib_uniad.report.comparison import Cell, Comparison, Table, compare
from anomalib_uniad.report.decisions import COUNTS, decision_notes, decision_table
from anomalib_uniad.report.runs import read_runs
from anomalib_uniad.report.text import show, to_csv, to_markdown
from runs import write_predictions, write_run


def labels(table: Table) -> list[str]:
    return [label for label, _, _ in table.rows()]


def values(table: Table, row: int) -> list[float | None]:
    return [cell.value for cell in cells(table, row)]


def best(table: Table, row: int) -> list[bool]:
    return [cell.best for cell in cells(table, row)]


def cells(table: Table, row: int) -> list[Cell]:
    return list(table.rows())[row][2]


def mean_labels(found: Comparison) -> list[str]:
    return [label for label, _, _ in found.means()]


def comparison(tmp_path: Path, *runs: Any, about: Any = (), **options: Any) -> Comparison:
    """Compare runs of category -> metric -> value, or category -> value of image_AUROC, named A, B, ..."""
    folders = []
    for number, values in enumerate(runs):
        full = {name: v if isinstance(v, dict) else {"image_AUROC": v} for name, v in values.items()}
        extra = about[number] if about else {}
        reasons = {n: {m: "no masks" for m, v in found.items() if v is None} for n, found in full.items()}
        folders.append(write_run(tmp_path / str(number), full, reasons=reasons, **extra))
    return compare(read_runs(folders, [chr(65 + number) for number in range(len(runs))]), **options)


def test_values_and_best(tmp_path: Path) -> None:
    found = comparison(tmp_path, {"a": 0.5, "b": 0.75}, {"a": 0.25, "b": 1.0}, {"a": 0.50001, "b": 0.0})
    (table,) = found.tables
    assert labels(table) == ["a", "b", "mean"]
    assert values(table, 0) == [0.5, 0.25, 0.50001]
    assert best(table, 0) == [True, False, True]  # equal with 4 decimals
    assert best(table, 1) == [False, True, False]
    assert values(table, 2) == pytest.approx([0.625, 0.625, 0.250005])
    assert best(table, 2) == [True, True, False]
    assert [cell.partial for cell in cells(table, 2)] == [False] * 3
    assert table.notes == table.mean_notes == found.warnings == []
    assert mean_labels(found) == ["image_AUROC"]


def test_nothing_is_best_without_a_second_value(tmp_path: Path) -> None:
    assert best(comparison(tmp_path / "x", {"a": 0.5}).tables[0], 0) == [False]
    found = comparison(tmp_path / "y", {"a": 0.5, "b": 0.5}, {"a": None, "b": 0.75})
    assert best(found.tables[0], 0) == [False, False]
    assert best(found.tables[0], 1) == [False, True]


def test_undefined_and_means_over_fewer_categories(tmp_path: Path) -> None:
    found = comparison(tmp_path, {"a": 0.5, "b": 0.9, "c": 0.1}, {"a": 1.0, "b": None, "c": 0.2}, {"a": 0.6, "b": 0.8})
    (table,) = found.tables
    assert values(table, 1) == [0.9, None, 0.8]
    assert labels(table)[3:] == ["mean", "mean of 1 in common"]
    assert values(table, 3) == pytest.approx([0.5, 0.6, 0.7])
    assert [cell.partial for cell in cells(table, 3)] == [False, True, True]
    assert best(table, 3) == [False] * 3  # the last is the largest, over other categories
    assert values(table, 4) == [0.5, 1.0, 0.6]
    assert best(table, 4) == [False, True, False]
    assert table.notes == ["b (B): no masks.", "c (C): not among its categories."]
    assert cells(table, 1)[1].reason == "no masks"
    assert table.mean_notes == [
        "† B: mean over 2 of 3 categories, without b.",
        "† C: mean over 2 of 3 categories, without c.",
        "Means over different categories are not compared: none is marked as best. In common are a.",
    ]
    assert mean_labels(found) == ["image_AUROC", "image_AUROC, mean of 1 in common"]
    assert "not compared" in found.means_note


def test_the_same_categories_without_a_value(tmp_path: Path) -> None:
    """Means over the same categories are compared, though they are not over all."""
    found = comparison(tmp_path, {"a": 0.5, "b": None}, {"a": 0.25, "b": None})
    (table,) = found.tables
    assert labels(table) == ["a", "b", "mean"]
    assert best(table, 2) == [True, False]
    assert table.mean_notes == ["† A, B: mean over 1 of 2 categories, without b."]
    assert "not compared" not in found.means_note


def test_a_metric_without_any_value(tmp_path: Path) -> None:
    (table,) = comparison(tmp_path, {"a": None}, {"a": None}).tables
    assert [values(table, row) for row in (0, 1)] == [[None, None]] * 2
    assert best(table, 1) == [False, False]
    assert table.notes == ["a (A, B): no masks."]


def test_a_category_with_the_name_of_a_mean(tmp_path: Path) -> None:
    (table,) = comparison(tmp_path, {"mean": 0.5, "b": 0.1}, {"mean": 0.25, "b": 0.2}).tables
    assert labels(table) == ["mean", "b", "mean of all"]
    assert [best(table, row) for row in range(3)] == [[True, False], [False, True], [True, False]]


def test_no_categories_in_common(tmp_path: Path) -> None:
    (table,) = comparison(tmp_path, {"a": 0.5}, {"b": 0.75}).tables
    assert labels(table) == ["a", "b", "mean"]
    assert best(table, 2) == [False, False]
    assert "there are no categories in common" in table.mean_notes[-1]


def test_a_metric_that_only_some_runs_have(tmp_path: Path) -> None:
    both = {"a": {"image_AUROC": 0.5, "pixel_AP": 0.25}}
    found = comparison(tmp_path, {"a": 0.5}, both, both)
    assert [table.metric for table in found.tables] == ["image_AUROC", "pixel_AP"]
    table = found.tables[1]
    assert table.notes == ["A: not measured."]
    assert values(table, -1) == [None, 0.25, 0.25]
    assert best(table, -1) == [False, True, True]


def test_metrics_are_chosen(tmp_path: Path) -> None:
    values = {"a": {"image_AUROC": 0.5, "image_AP": 0.5, "pixel_AP": 0.25}}
    found = comparison(tmp_path, values, metrics=["pixel_AP", "image_AUROC", "pixel_AP"])
    assert [table.metric for table in found.tables] == ["pixel_AP", "image_AUROC"]
    with pytest.raises(
        ValueError, match="No run has the metric image_F1, AP: choose from image_AUROC, image_AP, pixel_AP"
    ):
        comparison(tmp_path, values, metrics=["image_F1", "AP"])
    with pytest.raises(ValueError, match="metrics is empty: choose from"):
        comparison(tmp_path, values, metrics=[])


@pytest.mark.parametrize(
    ("about", "warning"),
    [
        ({"dataset": "other"}, "different data sets (A: line; B: other)"),
        ({"pixel_resolution": "original"}, "different resolutions (A: model 64 x 64; B: original)"),
        ({"thresholds": "none"}, "learned on different images (A: validation images; B: none)"),
        ({"thresholds": "test images (same_as_test)"}, "B: thresholds were learned on the test images"),
        ({"images": 9}, "different numbers of images: a (A 8, B 9)"),
    ],
)
def test_warnings(tmp_path: Path, about: dict[str, Any], warning: str) -> None:
    values = {"a": {"image_F1Score": 0.5, "pixel_AP": 0.5}}
    found = comparison(tmp_path, values, values, about=[{}, about])
    assert any(warning in text for text in found.warnings), found.warnings
    assert warning in to_markdown(found)


def test_warnings_only_where_they_concern_something(tmp_path: Path) -> None:
    about = [{}, {"pixel_resolution": "original", "thresholds": "none", "dataset": ""}]
    values = {"a": {"image_AUROC": 0.5}}
    assert comparison(tmp_path, values, values, about=about).warnings == []
    write_predictions(tmp_path / "0", [("a/test/good/0.png", "a", 0, 0)])
    assert len(comparison(tmp_path, values, values, about=about).warnings) == 1


def test_different_categories_are_a_warning(tmp_path: Path) -> None:
    (text,) = comparison(tmp_path, {"a": 0.5, "b": 0.5}, {"b": 0.5, "c": 0.5}).warnings
    assert "A lacks c; B lacks a" in text
    assert "not comparable" in text


def test_markdown(tmp_path: Path) -> None:
    text = to_markdown(comparison(tmp_path, {"a": 0.5, "b": 0.98765}, {"a": 0.25, "b": None}))
    assert "# Report: A, B" in text
    table = text.split("## image_AUROC\n\n")[1].split("\n\n")[0]
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]] == [
        ["a", "**0.5000**", "0.2500"],
        ["b", "0.9877", ""],
        ["mean", "0.7438", "0.2500 †"],
        ["mean of 1 in common", "**0.5000**", "0.2500"],
    ]
    assert "- b (B): no masks." in text
    assert "- command: anomalib" in text


def test_what_is_found_is_said_in_words(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """With fewer than 50 normal images, 2 % of them is none; with 19 of them, 5 % is none either."""
    values = {name: {"image_TPR@FPR2": 0.5, "image_TPR@FPR5": 0.75} for name in ("few", "some", "many", "unknown")}
    folder = write_run(tmp_path, values)
    document = json.loads((folder / "metrics.json").read_text())
    for name, normal in (("few", 19), ("some", 49), ("many", 50)):
        document["categories"][name]["counts"] = {"test_images": normal + 7, "defective": 7}
    (folder / "metrics.json").write_text(json.dumps(document))
    found = compare(read_runs([folder]))
    assert [table.notes for table in found.tables] == [
        ["Fewer than 50 normal test images, so found without any false alarm: few (19), some (49)."],
        ["Fewer than 20 normal test images, so found without any false alarm: few (19)."],
    ]
    text = to_markdown(found)
    assert "## image_TPR@FPR2, found at 2 % false alarms\n" in text
    assert "- Fewer than 20 normal test images" in text
    assert {row["metric"] for row in csv.DictReader(io.StringIO(to_csv(found)))} == {"image_TPR@FPR2", "image_TPR@FPR5"}
    show(found)
    assert "found at 5 % false alarms" in capsys.readouterr().out


def test_csv(tmp_path: Path) -> None:
    found = comparison(tmp_path, {"a": 1 / 3, "=1+1": 0.5}, {"a": 0.25, "=1+1": None})
    rows = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert list(rows[0]) == ["metric", "category", "A", "B", "best", "note", "kind"]
    assert rows[0] == {
        "metric": "image_AUROC",
        "category": "a",
        "A": repr(1 / 3),
        "B": "0.25",
        "best": "A",
        "note": "",
        "kind": "category",
    }
    assert rows[1]["category"] == "'=1+1"  # no formula in a spreadsheet
    assert (rows[1]["B"], rows[1]["best"], rows[1]["note"]) == ("", "", "B: no masks")
    assert (rows[2]["category"], rows[2]["kind"]) == ("mean", "mean")
    assert "† B: mean over 1 of 2 categories, without =1+1." in rows[2]["note"]
    assert [(row["category"], row["kind"]) for row in rows[3:]] == [("mean of 1 in common", "common")]


def test_names_are_safe_in_markdown(tmp_path: Path) -> None:
    found = comparison(tmp_path, {"<b>x</b>": 0.5, "a|b": 0.5, "*c*": 0.5, "[d](e)": 0.5, "metal_nut": 0.5, "_f_": 0.5})
    text = to_markdown(found)
    assert "<b>" not in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.replace("\\|", "").count("|") == 3, line
    for safe in (r"a\|b", r"\*c\*", r"\[d\](e)", "metal_nut", r"\_f\_", "&lt;b&gt;"):
        assert safe in text


def test_terminal(tmp_path: Path, monkeypatch, capsys) -> None:
    found = comparison(tmp_path, {"a": 0.5, "b": 0.5}, {"a": 0.25}, about=[{}, {"dataset": "[red]x"}])
    monkeypatch.setenv("COLUMNS", "100")
    show(found)
    text = capsys.readouterr().out
    assert "* 0.5000" in text
    assert "0.2500 †" in text
    assert "[red]x" in text
    assert "Warning: The runs have different categories: B lacks b." in text


def test_numbers_of_images(tmp_path: Path) -> None:
    found = comparison(tmp_path, {"a": 0.5, "b": 0.5}, {"a": 0.5})
    assert found.images.empty
    found.runs[0].counts = {"a": {"training_images": 8, "test_images": 5, "defective": 2}, "b": {}}
    found = compare(found.runs)
    assert found.images.to_dict() == {"A": {"a": "8 / ? / 5 (2 defective)", "b": "not known"}}
    text = to_markdown(found)
    assert "## Images" in text
    assert "8 / ? / 5 (2 defective)" in text


def test_decisions(tmp_path: Path) -> None:
    found = comparison(tmp_path, {"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.5}, {"a": 0.5, "b": 0.5})
    counts = pd.DataFrame({"a": [4, 1, 6, 2, 0], "b": [2, 2, 0, 0, 0], "c": [0, 0, 0, 0, 3]}, index=COUNTS).T
    decisions = decision_table({"A": counts, "B": counts.iloc[:0]}, found.categories)
    assert list(decisions.columns) == [("A", "missed"), ("A", "false alarms")]
    assert decisions.reset_index().to_numpy().tolist() == [
        ["a", "1 of 4", "2 of 6"],
        ["b", "2 of 2", "no normal images"],
        ["c", "no decisions", "no decisions"],
        ["d", "no images", "no images"],
        ["all", "3 of 6", "2 of 6"],
    ]
    notes = decision_notes({"A": counts, "B": counts.iloc[:0]})
    assert notes == ["A: 3 images without a label or a decision are left out."]
    text = to_markdown(replace(found, decisions=decisions, decision_notes=notes))
    assert "## Decisions" in text
    assert "1 of 4" in text
    assert notes[0] in text
    assert decision_table({"A": counts.iloc[:0]}, ["a"]).empty
    assert "## Decisions" not in to_markdown(found)
