# SPDX-License-Identifier: Apache-2.0
"""What the plugin costs is measured."""

import subprocess
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

import import_torch


def test_import_torch_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = iter([f"{plugin} {1000 + plugin} 2.14.1\n" for plugin in (9.0, 0.25, 0.75)])
    done = partial(subprocess.CompletedProcess, [], 0)
    monkeypatch.setattr(import_torch.subprocess, "run", lambda *_, **__: done(next(outputs), ""))
    import_torch.import_torch(repeats=2, output_dir=tmp_path)
    rows = pd.read_csv(tmp_path / "import_torch.csv")
    assert rows["plugin_ms"].tolist() == [0.25, 0.75]  # without the first, which compiles
    assert rows["import_torch_ms"].tolist() == [1000.25, 1000.75]
    assert rows["versions"].str.endswith("torch 2.14.1").all()
