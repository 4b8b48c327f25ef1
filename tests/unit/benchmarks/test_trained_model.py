# SPDX-License-Identifier: Apache-2.0
"""Measurements of types of features and of the mean image: against computations by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

import trained_model
from anomalib_uniad import UniAD
from anomalib_uniad.model import UniADModel
from benchmark_folders import write_training
from helpers import make_mvtec_like
from small import SMALL


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a recipe, and a checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    data = make_mvtec_like(folder / "data", sizes=(64, 64))
    recipe = {
        "model": {"class_path": "UniAD", "init_args": {**SMALL, "seed": 1}},
        "data": {
            "class_path": "MultiCategory",
            "init_args": {"source": "MVTecAD", "root": str(data), "num_workers": 0},
        },
    }
    (folder / "recipe-small.yaml").write_text(yaml.safe_dump(recipe))
    model = UniAD(**SMALL, seed=1, evaluator=False, visualizer=False)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(folder / "model.ckpt")
    return folder


def images_of(folder: Path, category: str, kind: str) -> torch.Tensor:
    paths = sorted((folder / "data" / category / kind).glob("*.png"))
    return torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255 for path in paths])


def maps_of(model: UniAD, folder: Path, category: str, kind: str) -> torch.Tensor:
    """Anomaly maps (M, H, W) of test images."""
    with torch.no_grad():
        return model.eval().model(model.pre_processor(images_of(folder, category, f"test/{kind}"))).anomaly_map[:, 0]


def test_float16(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predicted: list[torch.Tensor] = []
    predict = UniADModel.predict
    monkeypatch.setattr(UniADModel, "predict", lambda self, x, *sizes: predicted.append(x) or predict(self, x, *sizes))
    given = folder / "recipe-small.yaml", folder / "model.ckpt"
    trained_model.float16_features(*given, output_dir=tmp_path)
    types = pd.read_csv(tmp_path / "float16_features.csv").set_index(["category", "method"])
    model = UniAD.load_from_checkpoint(folder / "model.ckpt")
    assert len(predicted) == 2
    for category in ("bottle", "cable"):
        good, bad = (maps_of(model, folder, category, kind) for kind in ("good", "broken"))
        pooled = F.avg_pool2d(torch.cat([good, bad]), 16, stride=1).amax(dim=(1, 2))
        image = types.loc[(category, "torch.float32"), "image_AUROC"]
        assert image == pytest.approx(roc_auc_score([0] * len(good) + [1] * len(bad), pooled.numpy()))
        exact, rounded = (types.loc[(category, f"torch.{name}"), "pixel_AUROC"] for name in ("float32", "float16"))
        assert rounded == pytest.approx(exact, abs=1e-3)
    exact, rounded = predicted[:2]  # then those of this test
    assert torch.equal(rounded, exact.half().float())
    assert not torch.equal(rounded, exact)


def test_image_scores(folder: Path, tmp_path: Path) -> None:
    trained_model.image_scores(folder / "recipe-small.yaml", [folder / "model.ckpt"], output_dir=tmp_path)
    rows = pd.read_csv(tmp_path / "image_scores.csv").set_index(["category", "method"])
    model = UniAD.load_from_checkpoint(folder / "model.ckpt")
    good, bad = (maps_of(model, folder, "cable", kind) for kind in ("good", "broken"))
    ranked = torch.cat([good, bad]).flatten(1).sort(dim=1, descending=True).values.numpy()
    mean = ranked.mean(axis=1)
    for name, score in {  # maps of 64 x 64 pixels
        "highest 2 %": ranked[:, :82].mean(axis=1),
        "highest 2 % - mean / 2": ranked[:, :82].mean(axis=1) - mean / 2,
        "highest 1 % - mean": ranked[:, :41].mean(axis=1) - mean,
        "maximum after a pool of 1 px": ranked[:, 0],
    }.items():
        expected = roc_auc_score([0] * len(good) + [1] * len(bad), score)
        assert rows.loc[("cable", name), "image_AUROC"] == pytest.approx(expected)


def test_unseen_half(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the test images that the recipe does not validate on count."""
    recipe = yaml.safe_load((folder / "recipe-small.yaml").read_text())
    recipe["data"]["init_args"] |= {"val_split_mode": "from_test", "val_split_ratio": 0.5, "seed": 0}
    (tmp_path / "half.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "bench.yaml").write_text(
        yaml.safe_dump({"models": {"UniAD": {"model": "UniAD"}}, "data": {"d": recipe["data"]}})
    )
    done = write_training(
        tmp_path / "runs" / "benchmark" / "bench", ("d", "UniAD", "unified", 0), {"cable": (1.0, 1.0)}
    )
    *_, datamodule = trained_model.read_recipe(tmp_path / "half.yaml")
    unseen = list(datamodule.test_data.samples["image_path"])
    every = sorted(str(path) for path in (folder / "data").glob("*/test/*/*.png"))
    rows = [(path, path.split("/")[-4], "normal" if "good" in path else "anomalous") for path in every]
    frame = pd.DataFrame(rows, columns=["path", "category", "label"])
    # Right for the images of the other half, wrong for those of this one.
    frame["raw_score"] = [(label == "normal") == (path in unseen) for path, _, label in rows]
    frame.assign(raw_score=frame["raw_score"].astype(float)).to_csv(done.folder / "predictions.csv", index=False)
    monkeypatch.chdir(tmp_path)
    trained_model.unseen_half(tmp_path / "half.yaml", [tmp_path / "bench.yaml"], output_dir=tmp_path)
    found = pd.read_csv(tmp_path / "unseen_half.csv")
    assert 0 < len(unseen) < len(every)
    assert list(found["category"]) == ["bottle", "cable"]
    assert (found["image_AUROC"] == 0).all()


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
