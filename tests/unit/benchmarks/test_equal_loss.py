# SPDX-License-Identifier: Apache-2.0
"""What benchmarks/equal_loss.py measures and writes; never how fast it is."""

from pathlib import Path

import pandas as pd
import pytest
import torch

import equal_loss
from anomalib_uniad import UniAD
from helpers import make_mvtec_like


@pytest.mark.slow
def test_both_recipes_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = make_mvtec_like(tmp_path / "products", sizes=(32, 32), train=6, good=1, bad=1)
    equal_loss.equal_loss(data=root, device="cpu", output_dir=tmp_path, quick=True)
    written = pd.read_csv(tmp_path / "quick" / "equal_loss.csv")
    fast, paper = (written[written["recipe"] == name] for name in ("fast", "paper"))
    assert fast["epoch"].tolist() == [1, 2]
    assert fast["step"].tolist() == [2, 4]
    assert len(paper) >= 1
    for rows in (fast, paper):
        assert rows["seconds"].is_monotonic_increasing
        assert (rows["unexplained"] > 0).all()
    assert "unexplained" in capsys.readouterr().out


def test_unexplained_does_not_depend_on_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.randn(5, 128, 4, 4)
    scale = torch.rand(128, 1, 1) + 0.1
    arguments = {**equal_loss.TINY, "backbone": "resnet18", "pre_trained": False, "layers": [0, 1]}
    model = UniAD(**arguments)
    monkeypatch.setattr(model.model, "reconstruct", lambda target: 0.5 * target)
    assert equal_loss.unexplained(model, features * scale) == pytest.approx(0.25, rel=0.02)


def test_comparison() -> None:
    fast = [{"recipe": "fast", "seconds": 60.0 * n, "unexplained": 1.0 / n} for n in (1, 2, 3, 4)]
    paper = [{"recipe": "paper", "seconds": 300.0 * n, "unexplained": 1.0 / n} for n in (1, 2)]
    frame = pd.DataFrame([{"device": "here", "data": "parts", **row} for row in fast + paper])
    assert list(equal_loss.comparison(frame)) == [
        "unexplained 1.0000: fast 1.00 min, paper 5.0 times as long",
        "unexplained 0.5000: fast 2.00 min, paper 5.0 times as long",
        "unexplained 0.3333: fast 3.00 min, paper not there after 3.3 times as long",
        "unexplained 0.2500: fast 4.00 min, paper not there after 2.5 times as long",
    ]
