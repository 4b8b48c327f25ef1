# SPDX-License-Identifier: Apache-2.0
"""Exported models resize like validation; batches of features pass."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torchvision.transforms import v2

from anomalib_uniad import UniAD
from anomalib_uniad.deploy.export import any_size
from anomalib_uniad.deploy.pre_processor import AntialiasedPreProcessor, AntialiasedResize
from anomalib_uniad.errors import InputError
from anomalib_uniad.geometry import Geometry
from anomalib_uniad.transforms import CropAndPad
from small import SMALL

SIZES = [(64, 64), (200, 150), (33, 90), (40, 500), (64, 65), (63, 31), (1024, 768)]


@pytest.mark.parametrize("size", SIZES)
def test_is_torchvisions(size) -> None:
    images = torch.rand(2, 3, *size)
    expected = v2.functional.resize(images, [64, 48], antialias=True)
    torch.testing.assert_close(AntialiasedResize(Geometry((64, 48)))(images), expected, atol=2e-5, rtol=0)
    plain = v2.functional.resize(images, [64, 48], antialias=False)
    assert max(size) < 64 or (expected - plain).abs().max() > 1e-2, "the test can tell them apart"


@pytest.mark.filterwarnings("ignore")  # torch.onnx warns about itself
def test_exported_with_any_size(tmp_path) -> None:
    import openvino

    dimensions = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    path = tmp_path / "resize.onnx"
    module, example = AntialiasedResize(Geometry((64, 48))), torch.rand(2, 3, 70, 80)
    torch.onnx.export(module, (example,), str(path), dynamo=True, dynamic_shapes=(dimensions,), verbose=False)
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for size in SIZES:
        images = torch.rand(2, 3, *size)
        expected = v2.functional.resize(images, [64, 48], antialias=True)
        torch.testing.assert_close(torch.from_numpy(compiled(images.numpy())[0]), expected, atol=2e-5, rtol=0)


GEOMETRIES = [
    Geometry((64, 48), "pad"),
    Geometry((64, 48), crop=(3, 5, 30, 26)),
    Geometry((64, 48), "pad", crop=(0, 1, 33, 11)),
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.filterwarnings("ignore")  # torch.onnx warns about itself
def test_exported_crop_and_padding(tmp_path, geometry: Geometry) -> None:
    """Images of any size, very wide and very tall ones too, as in validation, and where they lie."""
    import openvino

    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.resize = AntialiasedResize(geometry)

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            covered = self.resize.covered(images)
            return self.resize(images), torch.ones(1, 1, 64, 48) if covered is None else covered.float()

    path = tmp_path / "resize.onnx"
    torch.onnx.export(Both(), (torch.rand(2, 3, 2, 2),), str(path), dynamo=True, dynamic_shapes=any_size())
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    transform = CropAndPad(geometry)
    for size in [(64, 48), (200, 150), (33, 90), (40, 900), (900, 31)]:
        images = torch.rand(2, 3, *size)
        resized, covered = compiled(images.numpy()).values()
        torch.testing.assert_close(torch.from_numpy(resized), transform(images), atol=2e-5, rtol=0)
        box, expected = geometry.covered(size), torch.zeros(64, 48)
        expected[box.rows, box.columns] = 1
        assert torch.from_numpy(covered)[0, 0].equal(expected)


@pytest.mark.parametrize("call", [AntialiasedResize, CropAndPad])
def test_images_smaller_than_the_crop(call) -> None:
    with pytest.raises(InputError, match=r"image has 32 x 40 pixels .* crop \[3, 5, 30, 26\] needs at least 33 x 31"):
        call(GEOMETRIES[1])(torch.rand(1, 3, 32, 40))


def test_nothing_is_left_of_it_for_images_of_its_size() -> None:
    module, images = AntialiasedResize(Geometry((64, 48))), torch.rand(2, 3, 64, 48)
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


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_crop_and_padding_in_a_checkpoint(geometry: Geometry) -> None:
    normalize = v2.Normalize([0.5] * 3, [0.5] * 3)
    kept, other = AntialiasedPreProcessor(v2.Compose([CropAndPad(geometry), normalize])), AntialiasedPreProcessor()
    other.load_checkpoint_config(json.loads(json.dumps(kept.checkpoint_config())))
    assert other.geometry == geometry
    images = torch.rand(1, 3, 100, 70)
    assert other.transform(images).equal(normalize(CropAndPad(geometry)(images)))
    torch.testing.assert_close(other(images), other.transform(images), atol=1e-4, rtol=0)


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


def test_images_that_were_resized_before_are_only_normalised() -> None:
    made: Any = AntialiasedPreProcessor(v2.Compose([CropAndPad(GEOMETRIES[1]), v2.Normalize([0.5] * 3, [0.5] * 3)]))
    image = torch.rand(2, 3, 64, 48)
    batch = SimpleNamespace(image=image, gt_mask=None, image_path=None, resized=True)
    made.on_test_batch_start(None, None, batch, 0)
    torch.testing.assert_close(batch.image, 2 * image - 1)


def test_an_image_that_is_too_small_is_named() -> None:
    made: Any = AntialiasedPreProcessor(CropAndPad(GEOMETRIES[1]))
    batch = SimpleNamespace(image=torch.rand(1, 3, 9, 9), gt_mask=None, image_path=["a/b.png"])
    with pytest.raises(InputError, match=r"^a/b.png: the image has 9 x 9 pixels"):
        made.on_predict_batch_start(None, None, batch, 0)
