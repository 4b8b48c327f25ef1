# SPDX-License-Identifier: Apache-2.0
"""The wheel, as pip installs it, is complete, has nothing else in it, and is found by anomalib."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(folder / "dist"), versions=["standard"])
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--disable-pip-version-check", "--target", str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


def test_content(installed: Path) -> None:
    names = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    assert "anomalib_uniad/py.typed" in names
    assert not [name for name in names if name.endswith((".safetensors", ".pth"))]
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.endswith("licenses/third-party-programs.txt") for name in names)
    assert not [name for name in names if not name.startswith(("anomalib_uniad/", "anomalib_uniad-", "bin/"))]
    in_source = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src/anomalib_uniad").rglob("*.*")}
    assert {name for name in in_source if "__pycache__" not in name} <= names
    assert sum(path.stat().st_size for path in installed.rglob("*") if path.suffix != ".pyc" and path.is_file()) < 2e6


@pytest.mark.slow
def test_it_is_found(installed: Path) -> None:
    code = (
        "from anomalib.models import get_model; import anomalib.data, anomalib_uniad; "
        "model = get_model('uniad', backbone='tf_efficientnet_lite0'); "
        "print(anomalib_uniad.__file__, type(model).__name__, anomalib.data.MultiCategory.__name__)"
    )
    env = {**os.environ, "PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [str(installed / "anomalib_uniad" / "__init__.py"), "UniAD", "MultiCategory"]
