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


def test_image_scores(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained_model, "chosen_half", lambda paths, *_: np.array(["000" not in path for path in paths]))
    trained_model.image_scores(folder / "recipe-small.yaml", [folder / "model.ckpt"], output_dir=tmp_path)
    rows = pd.read_csv(tmp_path / "image_scores.csv").set_index(["category", "method"])
    model = UniAD.load_from_checkpoint(folder / "model.ckpt")
    good, bad = (maps_of(model, folder, "cable", kind)[1:] for kind in ("good", "broken"))
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
    recipe = yaml.safe_load((folder / "recipe-small.yaml").read_text())
    benchmark = {"models": {"UniAD": {"model": "UniAD"}}, "data": {"d": recipe["data"]}}
    (tmp_path / "bench.yaml").write_text(yaml.safe_dump(benchmark))
    output = tmp_path / "runs" / "benchmark" / "bench"
    done = write_training(output, ("d", "UniAD", "unified", 0), {"cable": (1.0, 1.0)})
    paths = [f"data/{name}/test/{kind}/{n}.png" for name in "ba" for kind in ("scratch", "good") for n in range(5)]
    names, bad = (np.array([path.split("/")[place] for path in paths]) for place in (1, 3))
    labels = torch.tensor(bad == "scratch").int()
    chosen = trained_model.chosen_half(paths, names, labels)
    for name in "ab":  # 2 of 5 of each category and label
        assert [chosen[(names == name) & (labels.numpy() == label)].sum() for label in (0, 1)] == [2, 2]
    backwards = trained_model.chosen_half(paths[::-1], names[::-1], labels.flip(0))
    assert (backwards[::-1] == chosen).all(), "whatever the order"
    frame = pd.DataFrame({"path": paths, "category": names, "label": np.where(bad == "good", "normal", "anomalous")})
    # Right for the images of the chosen half, wrong for those of the other one.
    frame.assign(raw_score=1.0 * ((bad == "scratch") == chosen)).to_csv(done.folder / "predictions.csv", index=False)
    monkeypatch.chdir(tmp_path)
    trained_model.unseen_half([tmp_path / "bench.yaml"], output_dir=tmp_path)
    found = pd.read_csv(tmp_path / "unseen_half.csv")
    assert list(found["category"]) == ["b", "a"]
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
