# SPDX-License-Identifier: Apache-2.0
"""Measurements of padding, pool and types of features: against computations by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from PIL import Image
from sklearn.metrics import roc_auc_score

import trained_model
from anomalib_uniad import UniAD
from anomalib_uniad.model import UniADModel
from helpers import make_mvtec_like
from small import SMALL


def test_ring_and_profile() -> None:
    ring = trained_model.border_ring((5, 6), 2)
    assert ring.int().tolist() == [[1] * 6, [1] * 6, [1, 1, 0, 0, 1, 1], [1] * 6, [1] * 6]
    random = np.random.default_rng(0).random((6, 8))
    outer = np.concatenate([random[0], random[-1], random[1:-1, 0], random[1:-1, -1]]).mean()
    assert trained_model.edge_profile(random)[0] == pytest.approx(outer)
    assert trained_model.edge_profile(random)[2] == pytest.approx(random[2:4, 2:6].mean())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a recipe, and a checkpoint for each padding."""
    folder = tmp_path_factory.mktemp("border")
    data = make_mvtec_like(folder / "data", sizes=(64, 64))
    recipe = {
        "model": {"class_path": "UniAD", "init_args": {**SMALL, "seed": 1}},
        "data": {
            "class_path": "MultiCategory",
            "init_args": {"source": "MVTecAD", "root": str(data), "num_workers": 0},
        },
    }
    (folder / "recipe-small.yaml").write_text(yaml.safe_dump(recipe))
    for mode in trained_model.MODES:
        model = UniAD(**SMALL, seed=1, backbone_padding_mode=mode, evaluator=False, visualizer=False)
        trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        trainer.strategy.connect(model)
        trainer.save_checkpoint(folder / f"{mode}.ckpt")
    return folder


def images_of(folder: Path, category: str, kind: str) -> torch.Tensor:
    paths = sorted((folder / "data" / category / kind).glob("*.png"))
    return torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255 for path in paths])


def maps_of(model: UniAD, folder: Path, category: str, kind: str) -> torch.Tensor:
    """Anomaly maps (M, H, W) of test images."""
    with torch.no_grad():
        return model.eval().model(model.pre_processor(images_of(folder, category, f"test/{kind}"))).anomaly_map[:, 0]


def test_border(folder: Path, tmp_path: Path) -> None:
    checkpoints = folder / "zeros.ckpt", folder / "reflect.ckpt"
    trained_model.border(folder / "recipe-small.yaml", *checkpoints, output_dir=tmp_path)
    rows = pd.read_csv(tmp_path / "border.csv")
    assert len(rows) == 2 * 2 * 2
    for row in rows[rows["trained_with"] == rows["tested_with"]].itertuples():
        model = UniAD.load_from_checkpoint(folder / f"{row.tested_with}.ckpt")
        maps = maps_of(model, folder, row.category, "good")
        inside = maps[:, 16:-16, 16:-16]
        assert row.inside == pytest.approx(inside.mean().item(), rel=1e-3)
        outside = (maps.sum() - inside.sum()).item() / (maps.numel() - inside.numel())
        assert row.border == pytest.approx(outside, rel=1e-3)
        assert row.ratio == pytest.approx(row.border / row.inside)
    crossed = rows[rows["category"] == "cable"].set_index(["trained_with", "tested_with"])["border"]
    assert crossed["zeros", "zeros"] != pytest.approx(crossed["zeros", "reflect"], rel=1e-4)
    with Image.open(tmp_path / "border.png") as picture:
        assert min(picture.size) > 300


def test_score_pool_and_float16(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predicted: list[torch.Tensor] = []
    predict = UniADModel.predict
    monkeypatch.setattr(UniADModel, "predict", lambda self, x, *sizes: predicted.append(x) or predict(self, x, *sizes))
    given = folder / "recipe-small.yaml", folder / "zeros.ckpt"
    trained_model.score_pool(*given, sizes=[1, 64], output_dir=tmp_path)
    trained_model.float16_features(*given, output_dir=tmp_path)
    pools = pd.read_csv(tmp_path / "score_pool.csv").set_index(["category", "size"])["image_AUROC"]
    types = pd.read_csv(tmp_path / "float16_features.csv").set_index(["category", "method"])
    model = UniAD.load_from_checkpoint(folder / "zeros.ckpt")
    assert len(predicted) == 3
    for category in ("bottle", "cable"):
        good, bad = (maps_of(model, folder, category, kind).flatten(1) for kind in ("good", "broken"))
        labels = [0] * len(good) + [1] * len(bad)
        for size, scores in ((1, torch.cat([good, bad]).amax(dim=1)), (64, torch.cat([good, bad]).mean(dim=1))):
            assert pools[category, size] == pytest.approx(roc_auc_score(labels, scores.numpy()))
        exact, rounded = (types.loc[(category, f"torch.{name}"), "pixel_AUROC"] for name in ("float32", "float16"))
        assert rounded == pytest.approx(exact, abs=1e-3)
    exact, rounded = predicted[1:3]
    assert torch.equal(rounded, exact.half().float())
    assert not torch.equal(rounded, exact)


def test_mean_image(folder: Path, tmp_path: Path) -> None:
    trained_model.mean_image(folder / "recipe-small.yaml", output_dir=tmp_path)
    rows = pd.read_csv(tmp_path / "recipe.csv").set_index("category")
    assert list(rows.index) == ["bottle", "cable", "mean"]
    assert rows.loc["mean", "image_AUROC"] == pytest.approx(rows["image_AUROC"][:2].mean())
    assert rows["seed"].isna().all()
    model = UniAD(**{**SMALL, "seed": 1}).eval()
    with torch.no_grad():
        features = model.model.extract(model.pre_processor(images_of(folder, "cable", "train/good")))
    assert rows.loc["cable", "train_loss"] == pytest.approx(features.var(dim=0, correction=0).mean().item(), rel=1e-3)
