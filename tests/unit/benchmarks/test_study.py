# SPDX-License-Identifier: Apache-2.0
"""Runs are started and their results collected; what the plugin costs is measured."""

import subprocess
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

import import_torch
import study


def write_run(root: Path) -> None:
    (root / "logs").mkdir(parents=True)
    final = {"category": ["01", "mean"], "image_AUROC": [0.5, 0.5], "seed": [3, 3], "device": "cpu", "versions": "v"}
    pd.DataFrame(final).to_csv(root / "metrics.csv", index=False)
    epochs = {"epoch": [0, 1, 1, 2], "image_AUROC": [None, 0.25, None, 0.5], "train_loss": [1.0, None, 0.9, None]}
    pd.DataFrame(epochs).to_csv(root / "logs" / "metrics.csv", index=False)


def test_a_study_runs_anomalib_and_collects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], check: bool) -> None:
        commands.append(command)
        write_run(Path(command[command.index("--default_root_dir") + 1]))

    monkeypatch.setattr(study.subprocess, "run", run)
    recipe = tmp_path / "group-small.yaml"
    recipe.write_text("trainer: {logger: {class_path: lightning.pytorch.loggers.CSVLogger}}")
    folders = {"output_dir": tmp_path / "results", "work_dir": tmp_path / "runs"}
    study.study(recipe, seeds=[3], name="A", overrides=["--trainer.max_epochs=2"], **folders)
    ((program, *arguments),) = commands
    assert Path(program).name == "anomalib"
    root = str(tmp_path / "runs" / "group-small-trainer.max_epochs=2-seed3")
    given = ["train", "--config", str(recipe), "--trainer.max_epochs=2", "--model.seed", "3"]
    assert arguments == [*given, "--default_root_dir", root, "--trainer.logger.init_args.save_dir", root]
    table = pd.read_csv(tmp_path / "results" / "group.csv", dtype=str)
    assert table["category"].tolist() == ["01", "mean"]
    assert table["method"].tolist() == ["A", "A"]
    assert set(table["command"]) == {" ".join(["anomalib", *given])}
    development = pd.read_csv(tmp_path / "results" / "group_epochs.csv")
    assert development[["epoch", "image_AUROC", "seed"]].to_numpy().tolist() == [[2, 0.25, 3]]


def test_a_run_without_results_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has not come to its end"):
        study.collect(tmp_path, tmp_path / "x.csv", "UniAD", 1.0, "anomalib train")


def test_import_torch_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = iter([f"{plugin} {1000 + plugin} 2.14.1\n" for plugin in (9.0, 0.25, 0.75)])
    done = partial(subprocess.CompletedProcess, [], 0)
    monkeypatch.setattr(import_torch.subprocess, "run", lambda *_, **__: done(next(outputs), ""))
    import_torch.import_torch(repeats=2, output_dir=tmp_path)
    rows = pd.read_csv(tmp_path / "import_torch.csv")
    assert rows["plugin_ms"].tolist() == [0.25, 0.75]  # without the first, which compiles
    assert rows["import_torch_ms"].tolist() == [1000.25, 1000.75]
    assert rows["versions"].str.endswith("torch 2.14.1").all()
