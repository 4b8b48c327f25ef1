# SPDX-License-Identifier: Apache-2.0
import json
import os
from pathlib import Path

import pandas as pd
import pytest

from anomalib_uniad.report.decisions import COUNTS, count
from anomalib_uniad.report.runs import find_metrics, read_runs, unique
from anomalib_uniad.report.write import write_report
from runs import write_predictions, write_run

VALUES = {
    "bottle": {"image_AUROC": 0.75, "pixel_AUPRO": None},
    "cable": {"image_AUROC": 1.0, "pixel_AUPRO": 0.5},
}
REASONS = {"bottle": {"pixel_AUPRO": "no masks"}}


def age(path: Path, seconds: int) -> None:
    os.utime(path, (seconds, seconds))


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_values_of_both_kinds_of_file(tmp_path: Path, suffix: str) -> None:
    folder = write_run(tmp_path, VALUES, reasons=REASONS, images=7)
    (run,) = read_runs([folder / f"metrics.{suffix}"])
    assert run.metrics == ["image_AUROC", "pixel_AUPRO"]
    assert run.categories == ["bottle", "cable"]
    expected = {("image_AUROC", "bottle"): 0.75, ("image_AUROC", "cable"): 1.0, ("pixel_AUPRO", "cable"): 0.5}
    assert run.values == expected
    assert run.reasons == {("pixel_AUPRO", "bottle"): "no masks"}
    assert run.name == "UniAD"
    assert run.about["seed"] == "0"
    assert run.about["command"] == "anomalib"
    assert run.images == ({"bottle": 7, "cable": 7} if suffix == "json" else {})
    assert run.thresholds.get("bottle") == ({"image": 1.25, "pixel": 3.5} if suffix == "json" else None)


def test_reasons_of_several_metrics_in_a_note(tmp_path: Path) -> None:
    note = "pixel_AP, pixel_AUPRO: no masks; image_AP: only normal images"
    text = f'category,image_AP,pixel_AP,pixel_AUPRO,note\na,,,,"{note}"\nmean,,,,\n'
    (tmp_path / "metrics.csv").write_text(text)
    (run,) = read_runs([tmp_path])
    assert run.reasons == {
        ("pixel_AP", "a"): "no masks",
        ("pixel_AUPRO", "a"): "no masks",
        ("image_AP", "a"): "only normal images",
    }
    assert run.values == {}
    assert run.name == tmp_path.name  # nobody says which model it was


def test_the_newest_file_is_found(tmp_path: Path) -> None:
    write_run(tmp_path / "v0", VALUES)
    write_run(tmp_path / "v0", VALUES, number="-1")
    write_run(tmp_path / "v1", VALUES)
    for name, seconds in (("v0/metrics", 10), ("v0/metrics-1", 20), ("v1/metrics", 15)):
        age(tmp_path / f"{name}.json", seconds)
    (tmp_path / "weights").mkdir()
    assert find_metrics(tmp_path / "v0") == tmp_path / "v0" / "metrics-1.json"
    assert find_metrics(tmp_path) == tmp_path / "v0" / "metrics-1.json"
    age(tmp_path / "v1" / "metrics.json", 30)
    assert find_metrics(tmp_path) == tmp_path / "v1" / "metrics.json"
    (tmp_path / "v1" / "metrics.json").unlink()
    assert find_metrics(tmp_path / "v1") == tmp_path / "v1" / "metrics.csv"


def test_numbers_decide_between_equally_old_files(tmp_path: Path) -> None:
    for name in ("v9", "v10"):
        write_run(tmp_path / name, VALUES, number="-10")
        write_run(tmp_path / name, VALUES, number="-9")
        for file in (tmp_path / name).iterdir():
            age(file, 10)
    assert find_metrics(tmp_path) == tmp_path / "v10" / "metrics-10.json"


def test_equal_names_are_told_apart(tmp_path: Path) -> None:
    folder = write_run(tmp_path, VALUES, model="Padim")
    assert [run.name for run in read_runs([folder, folder, folder])] == ["Padim", "Padim (2)", "Padim (3)"]
    assert [run.name for run in read_runs([folder, folder], ["A", "A"])] == ["A", "A (2)"]
    assert unique(["A", "A (2)", "A", ""]) == ["A", "A (2)", "A (3)", "run"]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", r"metrics.json is damaged: Expecting property name"),
        ("[1]", r"metrics.json is not the metrics.json of a run: the file is \[1\], not a mapping"),
        ("{}", r"metrics is missing, not a list of names"),
        ('{"metrics": ["a"]}', r"categories is missing, not a mapping"),
        ('{"metrics": ["a"], "categories": {}}', r"metrics.json has no categories"),
        ('{"metrics": ["a"], "categories": {"x": {}}}', r"categories\['x'\].values is missing"),
        ('{"metrics": ["a"], "categories": {"x": {"values": {"a": "1"}}}}', r"values\['a'\] is '1', not a number"),
        ('{"metrics": ["a"], "categories": {"x": {"values": {"a": true}}}}', r"values\['a'\] is True, not a number"),
        ('{"metrics": ["a"], "categories": {"x": {"values": {"a": Infinity}}}}', r"is inf, not a number"),
        ('{"metrics": ["a"], "categories": {"x": {"values": {"b": 1}}}}', r"is not one of its metrics \(a\)"),
        ('{"metrics": ["a"], "run": 3, "categories": {}}', r"run is 3, not a mapping"),
        (b"\xff", r"metrics.json is damaged: 'utf-8' codec"),
    ],
)
def test_damaged_json(tmp_path: Path, content: str | bytes, match: str) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "metrics.json").write_bytes(data)
    with pytest.raises(ValueError, match=match):
        read_runs([tmp_path])


def test_not_a_number_is_undefined(tmp_path: Path) -> None:
    write_run(tmp_path, {"a": {"image_AP": float("nan")}})
    assert read_runs([tmp_path])[0].values == {}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", "is not the metrics.csv of a run"),
        ("path,label\n", "is not the metrics.csv of a run"),
        ("category,a,note\nx,0.5,\n", "metrics.csv is damaged: its last row has to be the mean"),
        ("category,a,note,seed\nx,0.5,,1\nmean,0.5\n", "metrics.csv is damaged: its last row has to be the mean"),
        ("category,a,note\nx,high,\nmean,,\n", "row 2, a is 'high', not a number"),
        ("category,a,note\nmean,,\n", "has no categories"),
        ("category,note\nx,\nmean,\n", "has no metrics"),
    ],
)
def test_damaged_csv(tmp_path: Path, content: str, match: str) -> None:
    (tmp_path / "metrics.csv").write_text(content)
    with pytest.raises(ValueError, match=match):
        read_runs([tmp_path])


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is not there: give the folder of a run"):
        read_runs([tmp_path / "nowhere"])
    with pytest.raises(FileNotFoundError, match=r"neither it nor a folder in it has metrics.json or metrics.csv"):
        read_runs([tmp_path])
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(ValueError, match=r"model.ckpt is not the metrics.json or metrics.csv of a run"):
        read_runs([tmp_path / "model.ckpt"])
    with pytest.raises(ValueError, match="at least one folder"):
        read_runs([])


def test_number_of_names(tmp_path: Path) -> None:
    folder = write_run(tmp_path, VALUES)
    with pytest.raises(ValueError, match=r"names has 1 names \(A\) for 2 runs"):
        read_runs([folder, folder], ["A"])


@pytest.mark.parametrize("number", ["", "-1"])
def test_decisions(tmp_path: Path, number: str) -> None:
    write_run(tmp_path, VALUES, number=number)
    rows = [
        ("d/bottle/test/good/0.png", "bottle", "normal", "normal"),
        ("d/bottle/test/good/1.png", "bottle", "normal", "anomalous"),
        ("d/bottle/test/crack/0.png", "bottle", "anomalous", "normal"),
        ("d/bottle/test/crack/1.png", "bottle", "anomalous", "anomalous"),
        ("d/bottle/test/crack/2.png", "bottle", "anomalous", "anomalous"),
        ("d/cable/test/cut/0.png", "cable", 1, 0),
        ("d/cable/test/cut/1.png", "cable", "", 0),
        ("d/cable/test/cut/2.png", "cable", "True", ""),
    ]
    write_predictions(tmp_path, rows, number)
    (run,) = read_runs([tmp_path])
    predictions = run.predictions
    counts = count(predictions)
    assert list(counts.columns) == COUNTS
    assert counts.loc["bottle"].tolist() == [3, 1, 2, 1, 0]
    assert counts.loc["cable"].tolist() == [1, 1, 0, 0, 2]
    assert counts.sum().tolist() == [4, 2, 2, 1, 2]
    assert predictions.loc[[0, 2], "path"].tolist() == ["d/bottle/test/good/0.png", "d/bottle/test/crack/0.png"]
    assert predictions["label"].tolist()[1:7] == [False, True, True, True, True, None]


def test_no_decisions(tmp_path: Path) -> None:
    write_run(tmp_path, VALUES, number="-1")
    write_predictions(tmp_path, [("a.png", "bottle", 1, 1)])  # of another test
    (run,) = read_runs([tmp_path])
    assert run.predictions.empty
    assert count(run.predictions).empty


def test_damaged_predictions(tmp_path: Path) -> None:
    write_run(tmp_path, VALUES)
    write_predictions(tmp_path, [("a.png", "bottle", "normal", "normal"), ("b.png", "bottle", "odd", "normal")])
    with pytest.raises(ValueError, match=r"predictions.csv is damaged: label in line 3 is 'odd'"):
        read_runs([tmp_path])
    write_predictions(tmp_path, [], header="path,category,label")
    with pytest.raises(ValueError, match=r"predictions.csv is damaged: it has no column decision"):
        read_runs([tmp_path])
    (tmp_path / "predictions.csv").write_text("category,label,decision\nbottle,normal\n")
    with pytest.raises(ValueError, match="line 2 has no decision"):
        read_runs([tmp_path])


def test_files_of_an_evaluation(tmp_path: Path) -> None:
    """What evaluations write is what is read here."""
    from anomalib_uniad.metrics.category_metrics import Results
    from anomalib_uniad.metrics.run_files import RunFiles, count

    results = Results(["image_AUROC"], ["a/b", "a|b"], {("image_AUROC", "a/b"): 0.5})
    results.reasons["image_AUROC", "a|b"] = "only normal images"
    about = {"model": "UniAD", "epochs": 3, "seed": ""}
    counts = count(results.categories, {"a/b": {"training_images": 5, "test_images": 2}})
    RunFiles(tmp_path).write_metrics(results, about, {"a/b": {"image": 0.5}}, counts)
    for suffix in ("json", "csv"):
        (run,) = read_runs([tmp_path / f"metrics.{suffix}"])
        assert run.values == {("image_AUROC", "a/b"): 0.5}
        assert run.reasons == {("image_AUROC", "a|b"): "only normal images"}
        assert run.about == {"model": "UniAD", "epochs": "3", "seed": ""}
        assert run.counts == {"a/b": {"training_images": 5, "test_images": 2}, "a|b": {}}
    assert json.loads((tmp_path / "metrics.json").read_text())["categories"]["a/b"]["thresholds"] == {"image": 0.5}


ODD_NAMES = [
    *("mean", "Mean", "mean of all", "all", "a/b", "a\\b", "a,b", 'a "b"', "a; b: c", "[red]x", "<b>", "a|b", "=1+1"),
    *("Blister Packung Größe 1", "零件", "a\nb", " a ", "x" * 300, "nan", "1.5"),
]


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_any_name_of_a_product_survives(tmp_path: Path, suffix: str) -> None:
    """Evaluation, its files, reader, report: each product keeps its value, and the mean stays the mean."""
    from anomalib_uniad.metrics.category_metrics import Results
    from anomalib_uniad.metrics.run_files import RunFiles, count

    values = {("image_AP", name): round(0.5 + number / 100, 2) for number, name in enumerate(ODD_NAMES)}
    results = Results(["image_AP", "pixel_AP"], ODD_NAMES, values)
    results.reasons = {("pixel_AP", name): "no masks" for name in ODD_NAMES}
    label = [(name, "normal", "anomalous") for name in ODD_NAMES]
    predictions = pd.DataFrame(label, columns=["category", "label", "decision"]).assign(path="x.png")
    counts = count(ODD_NAMES, {name: {"test_images": 1} for name in ODD_NAMES}, predictions)
    files = RunFiles(tmp_path)
    files.write_metrics(results, {"model": "UniAD"}, {}, counts)
    files.write_predictions(predictions)

    table = pd.read_csv(tmp_path / "metrics.csv", keep_default_na=False).set_index("category")
    assert table.image_AP["mean"] == 0.5
    assert table.image_AP[table.kind == "mean"].tolist() == pytest.approx([results.mean("image_AP")])
    assert table.index.is_unique

    file = tmp_path / f"metrics.{suffix}"
    _, (written, *_) = write_report([file], tmp_path / "report")
    (run,) = read_runs([file])
    assert run.categories == ODD_NAMES
    assert run.values == values
    assert run.reasons == results.reasons
    assert {name: of["false_alarms"] for name, of in run.counts.items()} == dict.fromkeys(ODD_NAMES, 1)
    assert list(run.predictions.category) == ODD_NAMES
    lines = written.read_text().splitlines()
    rows = [line for line in lines if line.startswith("| mean of all of all ")]
    assert f"{results.mean('image_AP'):.4f}" in rows[0]
    assert len([line for line in lines if line.startswith("| mean ") and "0.5000" in line]) == 1
