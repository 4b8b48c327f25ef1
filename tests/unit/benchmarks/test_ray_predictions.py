# SPDX-License-Identifier: Apache-2.0
"""What benchmarks/ray_predictions.py measures and writes; never how fast it is."""

import os
from pathlib import Path

import pandas as pd
import pytest

from ray_predictions import ray_predictions
from tiny_openvino import save_tiny


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_workers_are_measured(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    scripts = Path(__file__).parents[3] / "benchmarks"  # from where workers import what they do
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(scripts), os.environ.get("PYTHONPATH", "")]))
    ray_predictions(save_tiny(tmp_path / "model.xml"), 400, 16, [1], tmp_path)
    rows = pd.read_csv(tmp_path / "ray_predictions.csv")
    assert list(zip(rows["workers"], rows["simulated"], strict=True)) == [(0, False), (1, False), (1, True)]
    assert (rows["per_second"] > 0).all()
    assert (rows["start_seconds"][:2] > 0).all()
    assert (rows["different"][:2] == 0).all()
    assert rows["versions"].str.contains("ray 2").all()
