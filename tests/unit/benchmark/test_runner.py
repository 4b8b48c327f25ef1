# SPDX-License-Identifier: Apache-2.0
"""Results of runs are collected."""

from pathlib import Path

import pandas as pd
import pytest

from anomalib_uniad.benchmark import import_torch, runner


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
