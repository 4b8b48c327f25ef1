# SPDX-License-Identifier: Apache-2.0
"""What benchmarks/long_runs.py measures and writes."""

from pathlib import Path

import pandas as pd
import pytest

from long_runs import long_runs


@pytest.mark.slow
def test_long_works_leave_nothing_behind(tmp_path: Path) -> None:
    """Small counts: what is opened or kept with each epoch, image or request would show in files, or in megabytes."""
    long_runs(epochs=60, hours=2, output_dir=tmp_path)
    rows = pd.read_csv(tmp_path / "long_runs.csv").set_index("part")
    assert list(rows.index) == ["training", "watch", "serve"]
    assert list(rows["count"]) == [60, 120, 120]
    assert (rows["files_end"] <= rows["files_tenth"] + 4).all()
    assert (rows["memory_end_mb"] < rows["memory_tenth_mb"] + 150).all()
