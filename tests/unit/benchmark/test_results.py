# SPDX-License-Identifier: Apache-2.0
"""results.csv and epochs.csv are those of the trainings that are finished."""

from pathlib import Path

import pandas as pd
import pytest

import render_tables
from anomalib_uniad.benchmark import speed
from anomalib_uniad.benchmark.results import write
from anomalib_uniad.benchmark.trainings import RESULT, SPEED, write_json
from anomalib_uniad.report.benchmark import read_benchmark
from anomalib_uniad.report.columns import COST, KEYS
from benchmark_folders import write_training


def read(output: Path) -> pd.DataFrame:
    return pd.read_csv(output / "results.csv", dtype={"category": str})


def test_rows_of_cells(tmp_path: Path) -> None:
    courses = [{"epoch": 2, "seconds": 4.0, "image_AUROC": 0.5}, {"epoch": 4, "seconds": 8.0, "image_AUROC": 0.75}]
    unified = write_training(
        tmp_path, ("d", "A", "unified", 0), {"01": (0.5, 0.25), "nut": (1.0, 0.75)}, validations=courses
    )
    trainings = [
        unified,
        write_training(tmp_path, ("d", "A", "separate", 0), {"01": (0.5, None)}, peak_memory=3000),
        write_training(tmp_path, ("d", "A", "separate", 0), {"nut": (0.75, 0.5)}, train_seconds=2.5),
    ]
    write(trainings, tmp_path, "anomalib-uniad benchmark x.yaml")
    table = read(tmp_path)
    assert tuple(table.columns[:6]) == KEYS
    assert table["category"].tolist() == ["01", "nut", "mean", "01", "nut", "mean"]
    assert table["image_AUROC"].tolist() == [0.5, 1.0, 0.75, 0.5, 0.75, 0.625]
    assert table["pixel_AUROC"].tolist()[3:] == [pytest.approx(float("nan"), nan_ok=True), 0.5, 0.5]
    assert table["note"].tolist()[-1] == "pixel_AUROC: over 1 of 2 categories"
    costs = table[list(COST)].astype(object).where(table[list(COST)].notna(), None).to_numpy().tolist()
    assert costs[0] == costs[1] == [None] * len(COST)
    assert costs[2] == [1, 10.0, 20.0, 1000, None, 500, 5.0, 200.0]
    assert costs[4] == [1, 2.5, 20.0, 1000, None, 500, 5.0, 200.0]
    assert costs[5] == [2, 12.5, 40.0, 3000, None, 1000, 5.0, 200.0]
    assert table["test_images"].tolist() == [4, 4, 4, 4, 4, 8]
    assert set(table["device"]) == {"processor"}
    assert set(table["command"]) == {"anomalib-uniad benchmark x.yaml"}
    epochs = pd.read_csv(tmp_path / "epochs.csv")
    assert epochs[["method", "mode", "epoch", "seconds", "image_AUROC", "versions"]].to_numpy().tolist() == [
        ["A", "unified", 2, 4.0, 0.5, "v"],
        ["A", "unified", 4, 8.0, 0.75, "v"],
    ]


def test_cells_that_are_not_complete(tmp_path: Path) -> None:
    trainings = [
        write_training(tmp_path, ("d", "A", mode, seed), {name: (0.5, 0.5)})
        for seed in (0, 1)
        for mode, name in (("unified", "nut"), ("separate", "nut"), ("separate", "bolt"))
    ]
    (trainings[2].folder / RESULT).unlink()
    (trainings[3].folder / RESULT).unlink()
    write(trainings, tmp_path, "command")
    table = read(tmp_path)
    found = table[["seed", "mode", "category", "kind"]].to_numpy().tolist()
    assert found == [
        [0, "unified", "nut", "category"],
        [0, "unified", "mean", "mean"],
        [0, "separate", "nut", "category"],
        [1, "separate", "nut", "category"],
        [1, "separate", "bolt", "category"],
        [1, "separate", "mean", "mean"],
    ]


def test_categories_that_are_called_as_what_is_missing(tmp_path: Path) -> None:
    names = ["NA", "null", "None"]
    trainings = [write_training(tmp_path, ("d", "A", "unified", 0), dict.fromkeys(names, (0.5, None)))]
    trainings += [write_training(tmp_path, ("d", "A", "separate", 0), {name: (0.5, 0.5)}) for name in names]
    write(trainings, tmp_path, "command")
    rows = read_benchmark(tmp_path).categories("d")
    assert rows["category"].tolist() == names * 2
    assert rows["pixel_AUROC"].isna().tolist() == [True] * 3 + [False] * 3
    assert render_tables.read(tmp_path, "results").query("kind == 'category'")["category"].tolist() == names * 2


def test_a_model_that_cannot_be_exported(tmp_path: Path) -> None:
    missing = {"exported": "", "size_on_disk": None, "export_error": "no operator"}
    training = write_training(tmp_path, ("d", "A", "unified", 0), {"nut": (0.5, 0.5)}, **missing)
    (training.folder / SPEED).unlink()
    write([training], tmp_path, "command")
    table = read(tmp_path)
    assert table["note"].fillna("").tolist() == ["", "not exported: no operator"]
    assert table[["size_on_disk", "latency_ms"]].isna().all(axis=None)
    assert table["image_AUROC"].notna().all()
    assert list(speed.groups([training])) == []


def test_files_that_are_compared_are_measured_together(tmp_path: Path) -> None:
    trainings = [
        write_training(tmp_path, ("d", method, mode, seed), {name: (0.5, 0.5)})
        for seed in (0, 1)
        for mode, name in (("separate", "bolt"), ("unified", "x"))
        for method in "ABC"
    ]
    first, second = speed.groups(trainings)
    assert [(t.method, t.mode, t.seed) for t in first] == [(m, o, 0) for o in ("unified", "separate") for m in "ABC"]
    for training in second:
        write_json(training.folder / SPEED, {"latency_ms": 1.0, "beside": speed.names(second)})
    assert list(speed.groups(trainings)) == [first]
    (second[0].folder / RESULT).unlink()  # trained again: measured again beside the others
    assert len(list(speed.groups(trainings))) == 2
