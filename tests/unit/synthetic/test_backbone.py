# SPDX-License-Identifier: Apache-2.0
import importlib
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from anomalib.models.components import TimmFeatureExtractor
from safetensors.torch import load_file

from anomalib_uniad.synthetic import backbone as backbones
from anomalib_uniad.synthetic.backbone import BACKBONE_NAME, WEIGHTS_PATH
from textures import draw_texture_class, render_region, render_texture
from train_backbone import train_backbone


def test_feature_info_matches_the_maps() -> None:
    backbone = timm.create_model(BACKBONE_NAME, pretrained=True, features_only=True, out_indices=(0, 1, 2, 3, 4)).eval()
    channels, reduction = backbone.feature_info.channels(), backbone.feature_info.reduction()
    assert channels == [32, 32, 64, 128, 128]
    assert reduction == [2, 4, 8, 16, 32]
    with torch.no_grad():
        maps = backbone(torch.rand(2, 3, 64, 96))
    assert [tuple(feature.shape) for feature in maps] == [
        (2, count, 64 // stride, 96 // stride) for count, stride in zip(channels, reduction, strict=True)
    ]


def test_pretrained_means_the_packaged_file() -> None:
    weights = load_file(WEIGHTS_PATH)
    loaded = timm.create_model(BACKBONE_NAME, pretrained=True).state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())
    random = timm.create_model(BACKBONE_NAME, pretrained=False).state_dict()
    assert not torch.equal(random["layer3.0.conv1.weight"], weights["layer3.0.conv1.weight"])


def test_weights_are_small_enough_for_a_package() -> None:
    assert WEIGHTS_PATH.stat().st_size < 3e6
    assert (WEIGHTS_PATH.parent / "README.md").is_file()


def test_works_in_the_feature_extractor_of_anomalib() -> None:
    extractor = TimmFeatureExtractor(BACKBONE_NAME, layers=["layer2", "layer3"], pre_trained=True)
    features = extractor(torch.rand(1, 3, 64, 64))
    assert {name: tuple(feature.shape) for name, feature in features.items()} == {
        "layer2": (1, 64, 8, 8),
        "layer3": (1, 128, 4, 4),
    }
    assert extractor.out_dims == [64, 128]


def test_a_classifier_can_be_added() -> None:
    model = timm.create_model(BACKBONE_NAME, pretrained=True, num_classes=5).eval()
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 5)


def test_import_twice_is_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(backbones)
    assert timm.is_model(BACKBONE_NAME)


def test_unknown_name() -> None:
    with pytest.raises(RuntimeError, match="resnet10_synthetics"):
        timm.create_model("resnet10_synthetics")


def test_textures_are_deterministic_and_differ() -> None:
    first, again, other = (
        render_texture(draw_texture_class(index, seed=0), 64, np.random.default_rng(seed))
        for index, seed in ((3, 1), (3, 1), (3, 2))
    )
    assert first.shape == (64, 64, 3)
    assert (first == again).all()
    assert (first != other).any()
    assert all(render_region(64, np.random.default_rng(seed)).shape == (64, 64) for seed in range(12))


def test_training_writes_weights_that_timm_loads(tmp_path: Path) -> None:
    output = tmp_path / "weights.safetensors"
    train_backbone(output, steps=2, batch_size=4, classes=9, images_per_class=2)
    model = timm.create_model(BACKBONE_NAME, pretrained=True, pretrained_cfg_overlay={"file": str(output)})
    assert torch.equal(model.state_dict()["conv1.0.weight"], load_file(output)["conv1.0.weight"])


def test_training_needs_an_existing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no_such_folder"):
        train_backbone(tmp_path / "no_such_folder" / "weights.safetensors", steps=2)
