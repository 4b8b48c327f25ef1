# SPDX-License-Identifier: Apache-2.0
import platform
from pathlib import Path

import pandas as pd

from render_tables import TABLES
from versions import versions

REPORT = '<testsuites><testsuite tests="{}" failures="1" errors="1" skipped="2" timestamp="{}"/></testsuites>'


def test_reports_are_added_up(tmp_path: Path) -> None:
    reports = [tmp_path / "unit.xml", tmp_path / "integration.xml"]
    for report, tests, date in zip(reports, (10, 20), ("2026-11-27T10:00:00", "2026-11-28T10:00:00"), strict=True):
        report.write_text(REPORT.format(tests, date))
    versions("lowest", reports[:1], "tests/unit", tmp_path)
    versions("lowest", reports, output_dir=tmp_path)
    versions("lowest", reports, output_dir=tmp_path)  # in the place of the row before
    rows = pd.read_csv(tmp_path / "versions.csv")
    assert rows.passed.tolist() == [6, 22]
    assert rows.failed.tolist() == [2, 4]
    assert rows.date.tolist() == ["2026-11-27", "2026-11-28"]
    assert rows.command.tolist() == [".ci/versions lowest tests/unit", ".ci/versions lowest"]
    assert platform.python_version() in TABLES["versions"](tmp_path)
