# SPDX-License-Identifier: Apache-2.0
"""What the command puts into the tables, and where."""

from pathlib import Path

import pytest

from anomalib_uniad.benchmark.command import _command


def test_the_command_in_the_tables_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = Path("configs", "own data.yaml")
    for file in (config, tmp_path / config):
        assert _command(file, None) == "anomalib-uniad benchmark 'configs/own data.yaml'"
        assert _command(file, 2) == "anomalib-uniad benchmark 'configs/own data.yaml' --jobs 2"
    assert _command(tmp_path.parent / "x.yaml", None) == "anomalib-uniad benchmark x.yaml"
