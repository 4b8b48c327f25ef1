# SPDX-License-Identifier: Apache-2.0
"""The whole command, with models of anomalib and this package on small images."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from anomalib_uniad.benchmark.trainings import RESULT
from helpers import make_mvtec_like
from small import SMALL

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="processes are killed by signals"),
]

MEASURED = ["train_seconds", "seconds", "peak_memory", "latency_ms", "images_per_second"]
PADIM = {"backbone": "resnet18", "layers": ["layer1"], "pre_trained": False, "n_features": 8}


def write_config(folder: Path, models: dict, **more: object) -> Path:
    root = make_mvtec_like(folder / "images", ("bolt", "nut"), train=6)
    loading = {"train_batch_size": 2, "eval_batch_size": 4, "num_workers": 0}
    data = {"line 1": {"class_path": "MultiCategory", "init_args": {"root": str(root), **loading}}}
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump({"models": models, "data": data, "timed_images": 2, **more}, sort_keys=False))
    return file


def start(config: Path, output: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", "from anomalib_uniad.cli import main; main()", "benchmark", str(config)]
    return subprocess.Popen(
        [*command, "--output", str(output)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(config: Path, output: Path) -> tuple[int, str, str]:
    process = start(config, output)
    said, errors = process.communicate(timeout=900)
    return process.returncode, said, errors


def read(output: Path) -> pd.DataFrame:
    return pd.read_csv(output / "results.csv", dtype={"category": str})


def test_killed_three_times_it_gives_the_same_table(tmp_path: Path) -> None:
    models = {
        # resume.ckpt after each epoch
        "UniAD": {
            "model": {"class_path": "UniAD", "init_args": {**SMALL, "resume_interval": 1e-9}},
            "trainer": {"max_epochs": 30, "check_val_every_n_epoch": 10},
        },
        "PaDiM": {"model": {"class_path": "Padim", "init_args": PADIM}},
    }
    config = write_config(tmp_path, models)
    code, said, errors = finish(config, tmp_path / "whole")
    assert code == 0, errors
    assert "[2/2] line 1, PaDiM, unified, seed 0: trained in" in said
    whole = read(tmp_path / "whole")
    assert whole["category"].tolist() == ["bolt", "nut", "mean"] * 2
    costs = whole[whole["kind"] == "mean"][[*MEASURED, "size_on_disk", "models"]]
    assert (costs > 0).all(axis=None)

    seed = random.randrange(1000)
    draw = random.Random(seed)
    for _ in range(3):
        process = start(config, tmp_path / "killed")
        try:
            process.communicate(timeout=draw.uniform(5, 35))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
    code, said, errors = finish(config, tmp_path / "killed")
    assert code == 0, errors
    # A worker that is killed may have been at any step: where it was follows from the seed and the machine.
    message = f"seed of the times of kills: {seed}"
    for name, measured in (("results", MEASURED), ("epochs", ["seconds"])):
        one, other = (pd.read_csv(tmp_path / folder / f"{name}.csv") for folder in ("whole", "killed"))
        pd.testing.assert_frame_equal(one.drop(columns=measured), other.drop(columns=measured), obj=message)
    means = read(tmp_path / "killed").query("kind == 'mean'")
    assert (means["seconds"] >= means["train_seconds"]).all(), message

    # Finished trainings are not repeated; what a new config adds is.
    result = tmp_path / "whole" / "line 1" / "PaDiM" / "unified" / "seed0" / RESULT
    before = result.stat().st_mtime_ns
    code, said, errors = finish(config, tmp_path / "whole")
    assert code == 0, errors
    assert "2 trainings, 2 of them finished: nothing is left to train." in said
    assert result.stat().st_mtime_ns == before


def test_separate_models_and_failures(tmp_path: Path) -> None:
    models = {
        "PaDiM": {"model": {"class_path": "Padim", "init_args": PADIM}},
        "too large": {"model": {"class_path": "Padim", "init_args": {**PADIM, "n_features": 10_000}}},
    }
    config = write_config(tmp_path, models, modes=["separate"])
    code, said, errors = finish(config, tmp_path / "out")
    assert code == 1, errors
    table = read(tmp_path / "out")
    assert set(table["method"]) == {"PaDiM"}
    assert table["category"].tolist() == ["bolt", "nut", "mean"]
    assert set(table["scores"]) == {"raw"}
    assert table["models"].tolist() == [1, 1, 2]
    assert said.count("Failed: line 1, too large") == 2
    assert "2 of 4 trainings failed; the same command tries them again:" in said
    log = tmp_path / "out" / "line 1" / "too large" / "separate" / "seed0" / "nut" / "log.txt"
    assert str(log) in said
