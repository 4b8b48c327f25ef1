# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of padding, pool and backbones: against computations by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from PIL import Image
from sklearn.metrics import roc_auc_score

from anomalib_uniad import UniAD
from anomalib_uniad.benchmark.backbones import check
from anomalib_uniad.benchmark.border import MODES, border, border_ring, profile
from anomalib_uniad.benchmark.score_pool import score_pool
from helpers import make_mvtec_like
from small import SMALL


def test_ring_and_profile() -> None:
    ring = border_ring((5, 6), 2)
    assert ring.int().tolist() == [[1] * 6, [1] * 6, [1, 1, 0, 0, 1, 1], [1] * 6, [1] * 6]
    random = np.random.default_rng(0).random((6, 8))
    outer = np.concatenate([random[0], random[-1], random[1:-1, 0], random[1:-1, -1]]).mean()
    assert profile(random)[0] == pytest.approx(outer)
    assert profile(random)[2] == pytest.approx(random[2:4, 2:6].mean())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Images, a recipe, and a checkpoint for each filling."""
    folder = tmp_path_factory.mktemp("border")
    data = make_mvtec_like(folder / "data", sizes=(64, 64))
    recipe = {
        "model": {"class_path": "UniAD", "init_args": {**SMALL, "seed": 1}},
        "data": {"class_path": "MultiCategory", "init_args": {"root": str(data), "num_workers": 0}},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for mode in MODES:
        model = UniAD(**SMALL, seed=1, backbone_padding_mode=mode, evaluator=False, visualizer=False)
        trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        trainer.strategy.connect(model)
        trainer.save_checkpoint(folder / f"{mode}.ckpt")
    return folder


def maps_of(model: UniAD, paths: list[Path]) -> torch.Tensor:
    """Anomaly maps (M, H, W) of image files."""
    images = [torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255 for path in paths]
    with torch.no_grad():
        return model.eval().model(model.pre_processor(torch.stack(images))).anomaly_map[:, 0]


def test_border(folder: Path, tmp_path: Path) -> None:
    border(folder / "recipe.yaml", folder / "zeros.ckpt", folder / "reflect.ckpt", tmp_path)
    rows = pd.read_csv(tmp_path / "border.csv")
    assert len(rows) == 2 * 2 * 2
    for row in rows[rows["trained_with"] == rows["tested_with"]].itertuples():
        model = UniAD.load_from_checkpoint(folder / f"{row.tested_with}.ckpt")
        maps = maps_of(model, sorted((folder / "data" / row.category / "test" / "good").glob("*.png")))
        inside = maps[:, 16:-16, 16:-16]
        assert row.inside == pytest.approx(inside.mean().item(), rel=1e-3)
        outside = (maps.sum() - inside.sum()).item() / (maps.numel() - inside.numel())
        assert row.border == pytest.approx(outside, rel=1e-3)
        assert row.ratio == pytest.approx(row.border / row.inside)
    crossed = rows[rows["category"] == "cable"].set_index(["trained_with", "tested_with"])["border"]
    assert crossed["zeros", "zeros"] != pytest.approx(crossed["zeros", "reflect"], rel=1e-4)
    with Image.open(tmp_path / "border.png") as picture:
        assert min(picture.size) > 300


def test_score_pool(folder: Path, tmp_path: Path) -> None:
    score_pool(folder / "recipe.yaml", folder / "zeros.ckpt", sizes=[1, 64], output_dir=tmp_path)
    rows = pd.read_csv(tmp_path / "score_pool.csv").set_index(["category", "size"])["image_AUROC"]
    model = UniAD.load_from_checkpoint(folder / "zeros.ckpt")
    for category in ("bottle", "cable"):
        good, bad = (
            maps_of(model, sorted((folder / "data" / category / "test" / name).glob("*.png"))).flatten(1)
            for name in ("good", "broken")
        )
        labels = [0] * len(good) + [1] * len(bad)
        for size, scores in ((1, torch.cat([good, bad]).amax(dim=1)), (64, torch.cat([good, bad]).mean(dim=1))):
            assert rows[category, size] == pytest.approx(roc_auc_score(labels, scores.numpy()))


@pytest.mark.filterwarnings("ignore")  # torch.onnx and openvino warn about themselves
def test_whole_path_of_a_backbone() -> None:
    row = check("resnet18", [1, 2], [64, 96], 16, "reflect")
    assert row["tokens"] == 24
    assert row["channels"] == 192
    assert row["loss_after_step"] < row["loss"]
    assert row["openvino_difference"] < 1e-3
