# SPDX-License-Identifier: Apache-2.0
"""What benchmarks/serve_load.py measures and writes; never how fast it is."""

from pathlib import Path

import pandas as pd
import pytest

from serve_load import serve_load
from tiny_openvino import save_tiny


@pytest.mark.slow
def test_server_and_inspector_are_measured(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model.xml")
    serve_load(model, requests=100, rounds=2, images=4, pixels=32, clients=4, output_dir=tmp_path, work_dir=tmp_path)
    rows = pd.read_csv(tmp_path / "serve.csv").set_index("part")
    assert list(rows.index) == ["Inspector", "Inspector, threads", "server", "long run"]
    assert (rows["per_second"] > 0).all()
    assert rows.loc["Inspector", "inspector_ratio"] == 1
    long = rows.loc["long run"]
    assert (long["judged"], long["refused"], long["failed"]) == (98, 2, 0)
    assert all(0 < long[f"memory_{when}_mb"] < 5000 for when in ("start", "half", "end"))
    assert rows["versions"].str.contains("litserve 0").all()
