# SPDX-License-Identifier: Apache-2.0
"""Exported models resize like validation; batches of features pass."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torchvision.transforms import v2

from anomalib_uniad import UniAD
from anomalib_uniad.deploy.pre_processor import AntialiasedPreProcessor, AntialiasedResize
from small import SMALL

SIZES = [(64, 64), (200, 150), (33, 90), (40, 500), (64, 65), (63, 31), (1024, 768)]


@pytest.mark.parametrize("size", SIZES)
def test_is_torchvisions(size) -> None:
    images = torch.rand(2, 3, *size)
    expected = v2.functional.resize(images, [64, 48], antialias=True)
    torch.testing.assert_close(AntialiasedResize((64, 48))(images), expected, atol=2e-5, rtol=0)
    plain = v2.functional.resize(images, [64, 48], antialias=False)
    assert max(size) < 64 or (expected - plain).abs().max() > 1e-2, "the test can tell them apart"


@pytest.mark.filterwarnings("ignore")  # torch.onnx warns about itself
def test_exported_with_any_size(tmp_path) -> None:
    import openvino

    dimensions = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    path = tmp_path / "resize.onnx"
    module, example = AntialiasedResize((64, 48)), torch.rand(2, 3, 70, 80)
    torch.onnx.export(module, (example,), str(path), dynamo=True, dynamic_shapes=(dimensions,), verbose=False)
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for size in SIZES:
        images = torch.rand(2, 3, *size)
        expected = v2.functional.resize(images, [64, 48], antialias=True)
        torch.testing.assert_close(torch.from_numpy(compiled(images.numpy())[0]), expected, atol=2e-5, rtol=0)


def test_nothing_is_left_of_it_for_images_of_its_size() -> None:
    module, images = AntialiasedResize((64, 48)), torch.rand(2, 3, 64, 48)
    assert module(images) is images
    fixed = torch.export.export(module, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert not [node for node in fixed.graph.nodes if node.op == "call_function"]
    other = torch.export.export(module, (images[..., 1:],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert [node for node in other.graph.nodes if node.op == "call_function"]


def test_model_resizes_as_in_validation() -> None:
    model = UniAD(**SMALL, post_processor=False).eval()
    assert type(model.pre_processor) is AntialiasedPreProcessor
    images = torch.rand(2, 3, 200, 300)
    with torch.no_grad():
        expected = model.model(model.pre_processor.transform(images)).anomaly_map  # what validation does
        actual = model(images).anomaly_map
    torch.testing.assert_close(actual, expected, atol=1e-3, rtol=1e-3)


def test_config_of_a_checkpoint() -> None:
    kept = AntialiasedPreProcessor(v2.Compose([v2.Resize((64, 48)), v2.Normalize([0.5] * 3, [0.5] * 3)]))
    other = AntialiasedPreProcessor()
    assert other.export_transform is None
    other.load_checkpoint_config(kept.checkpoint_config())
    images = torch.rand(1, 3, 100, 100)
    assert other(images).equal(kept(images))
    torch.testing.assert_close(other(images), kept.transform(images), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "transform",
    [
        v2.Resize((64, 48), antialias=False),
        v2.Resize((64, 48), interpolation=v2.InterpolationMode.NEAREST),
        v2.Resize(64),
        v2.Compose([v2.CenterCrop(32)]),
    ],
)
def test_other_transforms_are_anomalibs(transform) -> None:
    images = torch.rand(1, 3, 100, 100)
    made = AntialiasedPreProcessor(transform)
    assert not any(isinstance(step, AntialiasedResize) for step in getattr(made.export_transform, "transforms", []))
    assert made(images).shape[-2:] in {(64, 48), (64, 64), (32, 32)}


@pytest.mark.parametrize("stage", ["train", "validation"])
def test_batches_of_features_are_left_as_they_are(stage: str) -> None:
    made: Any = AntialiasedPreProcessor(v2.Resize((8, 8)))
    trainer: Any = None
    image, mask = torch.rand(2, 3, 16, 16), torch.zeros(2, 16, 16)
    plain = SimpleNamespace(image=image, gt_mask=mask)
    getattr(made, f"on_{stage}_batch_start")(trainer, trainer, plain, 0)
    assert plain.image.shape == (2, 3, 8, 8)
    cached = SimpleNamespace(image=image, gt_mask=mask, features=torch.rand(2, 5, 4, 4))
    getattr(made, f"on_{stage}_batch_start")(trainer, trainer, cached, 0)
    assert cached.image is image
    assert cached.gt_mask is mask
