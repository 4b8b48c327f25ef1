# SPDX-License-Identifier: Apache-2.0
"""The README's tables come from the files in results/."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from anomalib_uniad import MetaFile, UniAD
from anomalib_uniad.benchmark import import_torch, report, runner
from anomalib_uniad.benchmark.tables import TABLES

ROOT = Path(__file__).parents[3]


def test_readme_is_up_to_date() -> None:
    report.report(ROOT / "README.md", check=True)


@pytest.mark.parametrize("script", [ROOT / ".ci" / "run", ROOT / ".pre-commit-config.yaml"], ids=lambda path: path.name)
def test_the_command_of_the_checks_works(script: Path) -> None:
    command = re.search(r"python (-m anomalib_uniad\.benchmark\.report .*)", script.read_text())[1]
    subprocess.run([sys.executable, *command.split()], check=True, cwd=ROOT)


def test_a_stale_readme_is_found(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- arguments: UniAD -->\nSTALE ROW\n<!-- end -->\nafter\n")
    with pytest.raises(SystemExit, match="not up to date"):
        report.report(readme, check=True)
    assert "STALE ROW" in readme.read_text()
    report.report(readme)
    report.report(readme, check=True)
    text = readme.read_text()
    assert text.startswith("before\n<!-- arguments: UniAD -->\n| argument |")
    assert text.endswith("<!-- end -->\nafter\n")
    assert "| `neighbor_size` | `7` |" in text
    assert "STALE ROW" not in text


def test_every_argument_is_documented() -> None:
    rows = report.arguments(UniAD).splitlines()[2:]
    assert len(rows) == 39
    for row in rows:
        meaning = row.split("|")[3].strip()
        assert len(meaning) > 10, row
        assert "Defaults to" not in meaning, row


def test_arguments_without_default() -> None:
    rows = report.arguments(MetaFile).splitlines()
    assert rows[2].startswith("| `root` | required | Folder that")
    assert rows[3].startswith("| `train_meta` | `None` | Meta file")


def test_missing_results_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no .*quickstart\.csv"):
        report.render("<!-- table: quickstart -->\n<!-- end -->", tmp_path)


def test_tables_hold_the_numbers_of_the_files(tmp_path: Path) -> None:
    rows = [
        {
            "method": method,
            "category": category,
            "image_AUROC": image,
            "pixel_AUROC": 0.5,
            "epochs": 3,
            "seed": 1,
            "seconds": 10.4,
        }
        for method, image in (("A", 0.25), ("B", 0.75))
        for category in ("01", "mean")
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "industrial.csv", index=False)
    text = report.render("<!-- table: industrial -->\n<!-- end -->", tmp_path)
    assert "| category | A (3 epochs) | B (3 epochs) |" in " ".join(text.split("\n")[3].split())
    assert "25.0 / 50.0" in text
    assert "75.0 / 50.0" in text
    assert "| 01 " in text


def test_cifar10(tmp_path: Path) -> None:
    final = {"method": "A", "category": "mean", "epochs": 20, "thresholds": "test images (same_as_test)"}
    rows = [{**final, "seed": seed, "image_AUROC": value} for seed, value in ((0, 0.64), (1, 0.66))]
    rows.append({**rows[0], "category": "CIFAR10", "image_AUROC": 0.1})
    rows.append({"method": "yardstick", "category": "mean", "image_AUROC": 0.55})
    pd.DataFrame(rows).to_csv(tmp_path / "cifar10.csv", index=False)
    epochs = [
        {"method": "A", "seed": seed, "epoch": epoch, "image_AUROC": 0.5 + seed / 10 + epoch / 100}
        for seed, epoch in ((0, 10), (0, 20), (1, 10))
    ]
    pd.DataFrame(epochs).to_csv(tmp_path / "cifar10_epochs.csv", index=False)
    text = report.render(
        "<!-- table: cifar10 -->\n<!-- end -->\n<!-- table: cifar10_epochs -->\n<!-- end -->", tmp_path
    )
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "| A | 20 | 0, 1 | 65.0 (64.0 to 66.0) | test images (same_as_test) |" in lines
    assert "| yardstick | | | 55.0 | |" in lines
    assert "| epoch | A, seed 0 | A, seed 1 |" in lines
    assert lines[-3:-1] == ["| 10 | 60.0 | 70.0 |", "| 20 | 70.0 | |"]


def test_rows_of_another_run_are_kept_and_of_the_same_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"

    def rows(method: str, seed: object, value: float) -> pd.DataFrame:
        return pd.DataFrame([{"method": method, "seed": seed, "image_AUROC": value}])

    for value, seed in ((0.1, 133), (0.2, 133.0), (0.3, "133")):
        runner.add_rows(path, rows("A", seed, value))
    for value, seed in ((0.4, None), (0.5, float("nan")), (0.6, "")):
        runner.add_rows(path, rows("B", seed, value))
    runner.add_rows(path, rows("A", 7, 0.7))
    written = pd.read_csv(path, dtype={"seed": str}).fillna("")
    assert written.to_numpy().tolist() == [["A", "133", 0.3], ["B", "", 0.6], ["A", "7", 0.7]]


def test_a_run_is_collected(tmp_path: Path) -> None:
    (tmp_path / "run" / "logs").mkdir(parents=True)
    final = {"category": ["01", "mean"], "image_AUROC": [0.5, 0.5], "seed": [3, 3], "device": "cpu", "versions": "v"}
    pd.DataFrame(final).to_csv(tmp_path / "run" / "metrics.csv", index=False)
    epochs = {"epoch": [0, 1, 1, 2], "image_AUROC": [None, 0.25, None, 0.5], "train_loss": [1.0, None, 0.9, None]}
    pd.DataFrame(epochs).to_csv(tmp_path / "run" / "logs" / "metrics.csv", index=False)
    runner.collect(tmp_path / "run", tmp_path / "x.csv", "UniAD", 1.0, "anomalib train")
    table = pd.read_csv(tmp_path / "x.csv", dtype=str)
    assert table["category"].tolist() == ["01", "mean"]
    assert set(table["command"]) == {"anomalib train"}
    development = pd.read_csv(tmp_path / "x_epochs.csv")
    assert development[["epoch", "image_AUROC", "seed"]].to_numpy().tolist() == [[2, 0.25, 3]]


def test_a_run_without_results_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has not come to its end"):
        runner.collect(tmp_path, tmp_path / "x.csv", "UniAD", 1.0, "anomalib train")


def test_import_torch_is_measured(tmp_path: Path) -> None:
    import_torch.measure(repeats=1, output=tmp_path / "t.csv")
    row = pd.read_csv(tmp_path / "t.csv").iloc[0]
    assert 0 < row["plugin_ms"] < row["import_torch_ms"]
    assert "torch" in row["versions"]


def test_tables_of_border_and_backbones(tmp_path: Path) -> None:
    run = {"epochs": 20}
    border = [
        {
            "trained_with": a,
            "tested_with": b,
            "category": name,
            "ratio": r,
            "image_AUROC": 0.9,
            "pixel_AUROC": 0.8,
            **run,
        }
        for a, b, r in (("zeros", "zeros", 1.5), ("zeros", "reflect", 1.2))
        for name in ("screw", "tile")
    ]
    pd.DataFrame(border).to_csv(tmp_path / "border.csv", index=False)
    common = {"backbone": "resnet18", "layers": "[1, 2]", "channels": 192, "backbone_parameters": 2.78e6, "width": 64}
    rows = [
        {**common, "height": 64, "padding_mode": "zeros", "openvino_difference": 1e-6},
        {**common, "height": 96, "padding_mode": "reflect", "openvino_difference": 2e-5},
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "backbones.csv", index=False)
    text = report.render("<!-- table: border -->\n<!-- end -->\n<!-- table: backbones -->\n<!-- end -->\n", tmp_path)
    assert re.search(r"\| +zeros \| +reflect \| 1\.20 \(90\.0 / 80\.0\) \| 1\.20 \(90\.0 / 80\.0\) \|", text)
    assert "Trained for 20 epochs" in text
    assert re.search(
        r"\| resnet18 \| +\[1, 2\] \| +192 \| +2\.8 M \| +64 x 64, 96 x 64 \| +zeros, reflect \| +2e-05 \|", text
    )


def test_trials(tmp_path: Path) -> None:
    """Means and ranges over seeds; trials of the batch size and others in tables of their own."""
    rows = [
        {"method": method, "category": category, "image_AUROC": image, "pixel_AUROC": 0.9, "epochs": 60, "seed": seed}
        for method, seed, image in (("batch 8", 0, 0.8), ("batch 32", 0, 0.7), ("dropout", 0, 0.6), ("batch 8", 1, 0.9))
        for category in ("screw", "mean")
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "trials.csv", index=False)
    batch, choices = (TABLES[name](tmp_path).splitlines()[4:] for name in ("trials_batch", "trials_choices"))
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in batch]
    assert cells == [
        ["batch 8", "60", "0, 1", "85.0 / 90.0", "85.0 / 90.0 (80.0 to 90.0)"],
        ["batch 32", "60", "0", "70.0 / 90.0", "70.0 / 90.0"],
    ]
    assert [row.split("|")[1].strip() for row in choices] == ["batch 8", "dropout"]
