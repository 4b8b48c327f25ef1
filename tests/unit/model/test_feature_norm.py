# SPDX-License-Identifier: Apache-2.0
"""Statistics of features: measured once, over what is not padding, the same wherever the features come from."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from anomalib_uniad import UniAD
from anomalib_uniad.model.components import FeatureNorm
from anomalib_uniad.training.feature_statistics import ChannelStatistics
from helpers import make_mvtec_like
from resumable import data, fit, small_model

FAST = {"feature_norm": "standard", "optimizer": "muon"}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return make_mvtec_like(tmp_path_factory.mktemp("data") / "products", sizes=(32, 48), train=5, good=1, bad=1)


def measured(root: Path, folder: Path, **arguments: Any) -> UniAD:
    model = small_model(5, **{**FAST, **arguments})
    fit(model, data(root), folder, max_epochs=1)
    return model


def test_statistics_are_those_of_torch() -> None:
    features = torch.randn(7, 3, 4, 5, generator=torch.Generator().manual_seed(0)) * 5 + 100
    statistics = ChannelStatistics(3)
    for part in features.split((2, 4, 1)):
        statistics.add(part)
    mean, std, images = statistics.result()
    torch.testing.assert_close(mean, features.double().mean(dim=(0, 2, 3)))
    torch.testing.assert_close(std, features.double().std(dim=(0, 2, 3), correction=0))
    assert images == 7


def test_weights_count_tokens() -> None:
    features, weights = torch.tensor([[[[1.0, 2.0, 100.0]]]]), torch.tensor([[[[1.0, 0.5, 0.0]]]])
    statistics = ChannelStatistics(1)
    statistics.add(features, weights)
    mean, std, images = statistics.result()
    assert mean.item() == pytest.approx((1 + 0.5 * 2) / 1.5)
    assert std.item() == pytest.approx((2 / 9) ** 0.5)
    assert images == 1


def test_norm() -> None:
    norm = FeatureNorm(2)
    features = torch.randn(2, 2, 3, 3)
    assert norm(features).equal(features), "before a training"
    norm.fill(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 4.0]), torch.tensor(3))
    expected = torch.stack([(features[:, 0] - 1) / 0.5, (features[:, 1] - 2) / 4], dim=1)
    torch.testing.assert_close(norm(features), expected)


def test_layer_weights() -> None:
    model = small_model(5, feature_norm="standard", layer_weights=[1, 1, 0.5, 2]).model
    channels, features = model.backbone.channels, torch.randn(1, sum(model.backbone.channels), 4, 4)
    parts = features.split(list(channels), dim=1)
    expected = torch.cat([part * weight for part, weight in zip(parts, (1, 1, 0.5, 2), strict=True)], dim=1)
    torch.testing.assert_close(model.normalise(features), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer_weights": [1, 1]}, r"layer_weights must be a positive number for each of the 4 layers, got \[1, 1\]"),
        ({"layer_weights": [1, 1, 1, 0]}, "a positive number for each"),
        ({"layer_weights": [1, 1, 1, 1], "feature_norm": "none"}, "layer_weights need feature_norm=standard"),
    ],
)
def test_wrong_layer_weights(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        small_model(**{**FAST, **arguments})


@pytest.mark.parametrize(("std", "expected"), [([0.0, 1.0, 3.0, 2.0], [0.02, 1.0, 3.0, 2.0]), ([0.0, 0.0], [1.0, 1.0])])
def test_constant_channels_do_not_explode(std: list[float], expected: list[float]) -> None:
    norm = FeatureNorm(len(std))
    norm.fill(torch.zeros(len(std)), torch.tensor(std), torch.tensor(1))
    assert norm.std.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("cache", [{}, {"feature_cache_copies": ["rotate_90", "rotate_any"], "resize_mode": "pad"}])
def test_the_same_from_images_and_from_the_cache(root: Path, tmp_path: Path, cache: dict[str, Any]) -> None:
    """With copies too: of padded images that are turned, other places would be padding."""
    cached = measured(root, tmp_path, feature_cache="memory", **cache).model.feature_norm
    read = measured(root, tmp_path, **{**cache, "feature_cache_copies": None}).model.feature_norm
    assert cached.images == read.images == 10
    torch.testing.assert_close(cached.mean, read.mean)
    torch.testing.assert_close(cached.std, read.std)
    assert cached.std.min() > 0


def test_the_target_is_normalised(root: Path, tmp_path: Path) -> None:
    model = measured(root, tmp_path)
    datamodule = data(root)
    datamodule.setup()
    images = torch.stack([model.pre_processor(item.image) for item in datamodule.train_data])
    target = model.model.normalise(model.model.extract(images))
    torch.testing.assert_close(target.mean(dim=(0, 2, 3)), torch.zeros(target.shape[1]), rtol=0, atol=1e-4)
    assert target.std(dim=(0, 2, 3), correction=0).median().item() == pytest.approx(1, abs=1e-3)
    reconstruction = model.model.eval().reconstruct(target)
    error = (reconstruction - target).norm(dim=1, keepdim=True)
    expected = torch.nn.functional.interpolate(error, (64, 64), mode="bilinear", align_corners=True)
    torch.testing.assert_close(model.model(images).anomaly_map, expected)


def test_tiles_and_padding(root: Path, tmp_path: Path) -> None:
    """By hand: the images are 32 x 48, so that a third of the padded square is no image."""
    model = measured(root, tmp_path, tiles=(1, 2), tile_overlap=0.0, resize_mode="pad", image_size=(64, 64))
    datamodule = data(root)
    datamodule.setup()
    batch = torch.stack([model.pre_processor(item.image) for item in datamodule.train_data])
    features = model.model.extract(batch)  # (10, C, 4, 8)
    covered = model.pre_processor.covered(datamodule.train_data[0].image[None])  # (1, 1, 64, 128)
    pixels = features.double().repeat_interleave(16, dim=2).repeat_interleave(16, dim=3)
    inside = pixels[:, :, covered[0, 0]]  # (10, C, pixels)
    assert inside.shape[2] < 0.8 * 64 * 128
    norm = model.model.feature_norm
    torch.testing.assert_close(norm.mean, inside.mean(dim=(0, 2)).float())
    usual = norm.std > norm.std.min()
    torch.testing.assert_close(norm.std[usual], inside.std(dim=(0, 2), correction=0).float()[usual])


def test_measured_once(root: Path, tmp_path: Path) -> None:
    model = measured(root, tmp_path)
    model.model.feature_norm.mean.fill_(3.0)
    fit(model, data(root), tmp_path, max_epochs=1)
    assert (model.model.feature_norm.mean == 3).all()


def test_a_checkpoint_says_so(root: Path, tmp_path: Path) -> None:
    model = measured(root, tmp_path)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = UniAD.load_from_checkpoint(tmp_path / "model.ckpt")
    assert loaded.model.feature_norm.mean.equal(model.model.feature_norm.mean)
    checkpoint = torch.load(tmp_path / "model.ckpt", weights_only=True)
    with pytest.raises(ValueError, match="feature_norm: standard in the checkpoint, none in the model"):
        small_model(5).on_load_checkpoint(checkpoint)
    del checkpoint["hyper_parameters"]["feature_norm"]  # as before this argument
    with pytest.raises(ValueError, match="feature_norm: none in the checkpoint, standard in the model"):
        model.on_load_checkpoint(checkpoint)
