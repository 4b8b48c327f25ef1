# SPDX-License-Identifier: Apache-2.0
"""Names that spreadsheets take for formulas: no cell of a table begins with one, and what reads it gets the name."""

import csv
from pathlib import Path, PurePath

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomalib_uniad.benchmark.results import write
from anomalib_uniad.check.command import Checked
from anomalib_uniad.check.command import write as write_check
from anomalib_uniad.check.findings import Finding
from anomalib_uniad.check.source import Source
from anomalib_uniad.drift.command import report_drift
from anomalib_uniad.drift.predictions import read_predictions
from anomalib_uniad.files import FORMULA, original, plain, plain_path, plain_table
from anomalib_uniad.inference.images import ImageFile
from anomalib_uniad.inference.inspection import Inspection
from anomalib_uniad.inference.writer import Writer
from anomalib_uniad.metrics.category_metrics import Results
from anomalib_uniad.metrics.run_files import RunFiles, count
from anomalib_uniad.report.benchmark import read_benchmark
from anomalib_uniad.report.runs import read_runs
from anomalib_uniad.report.write import write_report
from anomalib_uniad.review.labels import Labels
from anomalib_uniad.review.table import read_table
from benchmark_folders import write_training

NAMES = ["=1+1", "+1", "-1", "@a", "\ta", "'=1+1", "''@", "'bolt'", "bolt", "＝1"]  # noqa: RUF001


def cells(file: Path) -> list[str]:
    with file.open(newline="", encoding="utf-8") as stream:
        found = [cell for row in csv.reader(stream) for cell in row]
    return [cell for cell in found if not _is_number(cell)]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return not text.startswith("+")


def is_safe(file: Path) -> bool:
    texts = cells(file)
    return bool(texts) and not any(text.startswith(FORMULA) for text in texts)


@given(st.text("=+-@'\ta/", max_size=6))
def test_every_text_is_read_back(text: str) -> None:
    assert original(plain(text)) == text
    assert not plain(text).startswith(FORMULA)
    assert original(plain_path(text)) == plain_path(text)  # what reads cells leaves paths alone
    assert not plain_path(text).startswith(FORMULA)
    assert PurePath(plain_path(text)) == PurePath(text)


def test_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = [ImageFile(Path(f"{name}.png"), PurePath(f"{name}.png")) for name in NAMES]
    with Writer(Path("out"), files, pictures=False) as writer:
        for file, name in zip(files, NAMES, strict=True):
            writer.row(file, Inspection("normal", name, 0.5, 5.0, 6.0), error="=" if name == NAMES[0] else "")
    assert is_safe(writer.table)
    assert sorted(read_predictions([writer.table]).products) == sorted(NAMES)
    table = read_table(writer.table)
    assert [group.name for group in table.groups] == sorted(NAMES[1:])
    assert {Path(image.path) for group in table.groups for image in group.images} == {f.path for f in files[1:10]}
    labels = Path("labels.csv")
    labels.write_text("path,product,label\n" + "".join(f"{plain_path(str(file.path))},x,good\n" for file in files[:9]))
    assert Labels(labels).of([str(file.path) for file in files[:9]]) == [False] * 9


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Glyph")  # of what is drawn
def test_drift(tmp_path: Path) -> None:
    columns = ["category", "raw_score", "threshold", "decision"]
    rows = [(plain(name), 1 + place / 100, 6, "normal") for name in NAMES for place in range(12)]
    file = tmp_path / "predictions.csv"
    pd.DataFrame(rows, columns=columns).to_csv(file, index=False)
    report_drift([file], reference=file, output=tmp_path)
    assert is_safe(tmp_path / "drift.csv")
    assert set(NAMES) < set(pd.read_csv(tmp_path / "drift.csv", dtype=str)["product"].map(original))


def test_a_run_and_its_report(tmp_path: Path) -> None:
    values = {("image_AP", name): number / 16 for number, name in enumerate(NAMES)}
    rows = [(f"{name}.png", name, "normal", "anomalous") for name in NAMES]
    predictions = pd.DataFrame(rows, columns=["path", "category", "label", "decision"])
    files = RunFiles(tmp_path)
    files.write_metrics(Results(["image_AP"], NAMES, values), {"model": "=UniAD", "seed": -1}, {}, count(NAMES, {}))
    files.write_predictions(predictions)
    assert is_safe(tmp_path / "metrics.csv") and is_safe(tmp_path / "predictions.csv")
    (run,) = read_runs([tmp_path / "metrics.csv"])
    assert (run.categories, run.values, run.about) == (NAMES, values, {"model": "=UniAD", "seed": "-1"})
    assert list(run.predictions.category) == NAMES
    assert list(map(PurePath, run.predictions.path)) == [PurePath(row[0]) for row in rows]
    write_report([tmp_path / "metrics.csv"] * 2, tmp_path / "report", names=["=A", "-B"])
    assert is_safe(tmp_path / "report" / "report.csv")


def test_a_benchmark(tmp_path: Path) -> None:
    trainings = [write_training(tmp_path, (name, f"{name}m", "unified", 0), {"=c": (0.5, 0.5)}) for name in NAMES]
    for training in trainings:
        file = training.folder / "metrics.csv"
        plain_table(pd.read_csv(file)).to_csv(file, index=False)
    write(trainings, tmp_path, "=command")
    assert is_safe(tmp_path / "results.csv")
    table = read_benchmark(tmp_path).table
    assert set(table["data"]) == set(NAMES)
    assert set(table["method"]) == {f"{name}m" for name in NAMES}
    assert set(table["category"]) == {"=c", "mean"}


def test_a_check(tmp_path: Path) -> None:
    findings = [Finding(True, name, name, f"{name}.png", name) for name in NAMES]
    write_check(Checked(Source("=x", [], "=y"), [], findings), tmp_path)
    assert is_safe(tmp_path / "problems.csv")
