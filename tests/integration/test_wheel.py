# SPDX-License-Identifier: Apache-2.0
"""The wheel, as an installer unpacks it, is complete and found by anomalib."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(folder / "dist"), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_content(installed: Path) -> None:
    names = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    assert "anomalib_uniad/py.typed" in names
    assert "anomalib_uniad/synthetic/backbone/resnet10_synthetic.safetensors" in names
    assert {"anomalib_uniad/report/template.html.j2", "anomalib_uniad/report/style.css"} < names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.endswith("licenses/third-party-programs.txt") for name in names)
    assert not any(name.startswith(("tests/", "results/", "configs/")) for name in names)
    assert sum(path.stat().st_size for path in installed.rglob("*") if path.is_file()) < 5_000_000


def test_it_is_found(installed: Path) -> None:
    code = (
        "from anomalib.models import get_model; import anomalib.data, anomalib_uniad; "
        "model = get_model('uniad', backbone='resnet10_synthetic'); "
        "print(anomalib_uniad.__file__, type(model).__name__, anomalib.data.MultiCategory.__name__)"
    )
    env = {**os.environ, "PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [str(installed / "anomalib_uniad" / "__init__.py"), "UniAD", "MultiCategory"]
