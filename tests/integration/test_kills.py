# SPDX-License-Identifier: Apache-2.0
"""What benchmarks/kills.py measures, with two kills of some works."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="processes are forked, and killed by signals"),
]

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kills.py"
WORKS = ["check", "feature cache", "predict", "watch"]


def test_killed_works_end_as_undisturbed_ones(tmp_path: Path) -> None:
    arguments = ["--works", f"[{','.join(WORKS)}]", "--kills", "2", "--work_dir", "runs", "--output_dir", "results"]
    command = [sys.executable, "-W", "ignore", str(SCRIPT), *arguments]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=1500)
    assert ended.returncode == 0, ended.stderr
    rows = pd.read_csv(tmp_path / "results" / "kills.csv").set_index("work")
    assert list(rows.index) == WORKS
    assert (rows["kills"] >= 2).all()
    assert (rows["equal"] == rows["rounds"]).all(), ended.stderr
    assert (rows["half_written"] == 0).all(), ended.stderr
    lines = (tmp_path / "runs" / "rounds.jsonl").read_text()
    # What has been measured is not measured again.
    subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120)
    assert (tmp_path / "runs" / "rounds.jsonl").read_text() == lines
