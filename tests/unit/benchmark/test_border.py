# SPDX-License-Identifier: Apache-2.0
"""Scores at the border against the inside: against a computation by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from PIL import Image

from anomalib_uniad import UniAD
from anomalib_uniad.benchmark.backbones import check
from anomalib_uniad.benchmark.border import MODES, border, border_ring, profile
from helpers import make_mvtec_like
from small import SMALL


def test_ring_and_profile() -> None:
    ring = border_ring((5, 6), 2)
    assert ring.int().tolist() == [[1] * 6, [1] * 6, [1, 1, 0, 0, 1, 1], [1] * 6, [1] * 6]
    random = np.random.default_rng(0).random((6, 8))
    outer = np.concatenate([random[0], random[-1], random[1:-1, 0], random[1:-1, -1]]).mean()
    assert profile(random)[0] == pytest.approx(outer)
    assert profile(random)[2] == pytest.approx(random[2:4, 2:6].mean())


def test_border(tmp_path: Path) -> None:
    data = make_mvtec_like(tmp_path / "data", sizes=(64, 64))
    recipe = {
        "model": {"class_path": "UniAD", "init_args": {**SMALL, "seed": 1}},
        "data": {"class_path": "MultiCategory", "init_args": {"root": str(data), "num_workers": 0}},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    models = {}
    for mode in MODES:
        models[mode] = UniAD(**SMALL, seed=1, backbone_padding_mode=mode, evaluator=False, visualizer=False).eval()
        trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        trainer.strategy.connect(models[mode])
        trainer.save_checkpoint(tmp_path / f"{mode}.ckpt")
    border(tmp_path / "recipe.yaml", tmp_path / "zeros.ckpt", tmp_path / "reflect.ckpt", tmp_path / "results")

    rows = pd.read_csv(tmp_path / "results" / "border.csv")
    assert len(rows) == 2 * 2 * 2
    for row in rows[rows["trained_with"] == rows["tested_with"]].itertuples():
        images = [Image.open(path) for path in sorted((data / row.category / "test" / "good").glob("*.png"))]
        batch = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in images])
        model = models[row.tested_with]
        with torch.no_grad():
            maps = model.model(model.pre_processor(batch)).anomaly_map[:, 0]
        inside = maps[:, 16:-16, 16:-16]
        assert row.inside == pytest.approx(inside.mean().item(), rel=1e-3)
        assert row.border == pytest.approx(
            (maps.sum() - inside.sum()).item() / (maps.numel() - inside.numel()), rel=1e-3
        )
        assert row.ratio == pytest.approx(row.border / row.inside)
    crossed = rows[rows["category"] == "cable"].set_index(["trained_with", "tested_with"])["border"]
    assert crossed["zeros", "zeros"] != pytest.approx(crossed["zeros", "reflect"], rel=1e-4)
    with Image.open(tmp_path / "results" / "border.png") as picture:
        assert min(picture.size) > 300


@pytest.mark.filterwarnings("ignore")  # torch.onnx and openvino warn about themselves
def test_whole_path_of_a_backbone() -> None:
    row = check("resnet18", [1, 2], [64, 96], 16, "reflect")
    assert row["tokens"] == 24
    assert row["channels"] == 192
    assert row["loss_after_step"] < row["loss"]
    assert row["openvino_difference"] < 1e-3
