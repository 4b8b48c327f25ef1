# SPDX-License-Identifier: Apache-2.0
"""Padding of the backbone, against a plain computation of its own."""

import math

import pytest
import timm
import torch
from timm.layers import AvgPool2dSame, Conv2dSame
from timm.layers.pool2d_same import MaxPool2dSame
from torch.nn import functional as F

from anomalib_uniad.model import UniADModel
from anomalib_uniad.model.components import Backbone
from anomalib_uniad.model.components.padding import PaddedConv2d, set_padding


def amounts_of(backbone: Backbone) -> list[tuple[int, ...]]:
    """Left, right, top and bottom of the strided convolutions, in order."""
    return [m.amounts for m in backbone.features.modules() if isinstance(m, PaddedConv2d) and m.stride[0] > 1]


def same(kernel: int, size: int) -> tuple[int, int]:
    """Before and after, for stride 2, from the formula of the authors' backbone."""
    total = max((math.ceil(size / 2) - 1) * 2 + kernel - size, 0)
    return total // 2, total - total // 2


def test_static_amounts_are_those_of_the_native_resolution() -> None:
    backbone = Backbone("tf_efficientnet_b4", [0, 1, 2, 3, 4], pre_trained=False)
    backbone.prepare((224, 224))
    expected = [same(kernel, size) for kernel, size in ((3, 380), (3, 190), (5, 95), (3, 48), (5, 24))]
    assert amounts_of(backbone) == [(a, b, a, b) for a, b in expected]
    assert expected[2] == (2, 2)


def test_amounts_of_timm_are_those_of_the_image() -> None:
    """Frozen for reflection, which timm has not; at 224 px the third is not the one of the native resolution."""
    backbone = Backbone("tf_efficientnet_b4", [0, 1, 2, 3], pre_trained=False, padding="timm", padding_mode="reflect")
    backbone.prepare((224, 192))
    rows = [same(kernel, size) for kernel, size in ((3, 224), (3, 112), (5, 56), (3, 28))]
    columns = [same(kernel, size) for kernel, size in ((3, 192), (3, 96), (5, 48), (3, 24))]
    assert amounts_of(backbone) == [(*column, *row) for row, column in zip(rows, columns, strict=True)]
    assert rows[2] == (1, 2)


def test_padding_of_timm_with_zeros_leaves_the_model_alone() -> None:
    backbone = Backbone("tf_efficientnet_b0", [0, 1, 2, 3], pre_trained=False, padding="timm")
    backbone.prepare((64, 64))
    assert not any(isinstance(layer, PaddedConv2d) for layer in backbone.modules())


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_static_padding_equals_padding_by_hand(mode: str) -> None:
    """All convolutions of the first two blocks with their padding outside of them."""
    torch.manual_seed(0)
    name, size = "tf_efficientnet_b4", (96, 64)
    backbone = Backbone(name, [0, 1], pre_trained=False, padding_mode=mode)
    plain = timm.create_model(name, pretrained=False, features_only=True, out_indices=[0, 1]).eval()
    plain.load_state_dict({k: v for k, v in backbone.features.state_dict().items() if k in plain.state_dict()})
    backbone.prepare(size)
    image = torch.randn(2, 3, *size)

    convolutions: list[tuple[str, torch.Tensor]] = []
    for layer in backbone.features.modules():
        if isinstance(layer, torch.nn.Conv2d) and layer.kernel_size != (1, 1):
            layer.register_forward_hook(lambda m, x, y: convolutions.append((m, x[0], y)))
    backbone(image)
    assert len(convolutions) == 7  # stem, two blocks of stride 2 and four of stride 4
    native = iter([380, 190, 190, 190, 95, 95, 95])
    for layer, given, result in convolutions:
        kernel, stride = layer.kernel_size[0], layer.stride[0]
        nominal = next(native)
        total = max((math.ceil(nominal / stride) - 1) * stride + kernel - nominal, 0)
        before, after = total // 2, total - total // 2
        padded = F.pad(given, (before, after, before, after), "constant" if mode == "zeros" else "reflect")
        expected = F.conv2d(padded, layer.weight, layer.bias, stride, 0, 1, layer.groups)
        assert torch.equal(result, expected)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilenetv2_050", "resnetv2_50x1_bit", "nf_regnet_b0"])
def test_reflection_pads_with_the_map_itself(name: str) -> None:
    """A constant image stays constant in the first convolution only if nothing foreign is padded."""
    torch.manual_seed(0)
    layers = [1, 2]
    zeros = Backbone(name, layers, pre_trained=False)
    reflect = Backbone(name, layers, pre_trained=False, padding_mode="reflect")
    for key, parameter in zeros.named_parameters():
        if key.endswith("gamma"):
            torch.nn.init.ones_(parameter)  # ConvNeXt's branches start near zero
    reflect.load_state_dict(zeros.state_dict())
    zeros.prepare((96, 96))
    reflect.prepare((96, 96))
    image = torch.full((1, 3, 96, 96), 0.7)
    for map_zeros, map_reflect in zip(zeros(image), reflect(image), strict=True):
        assert map_zeros.shape == map_reflect.shape
        spread = (map_reflect.amax(dim=(2, 3)) - map_reflect.amin(dim=(2, 3))).abs().max()
        assert spread < 1e-4 * map_reflect.abs().max()
        assert not torch.allclose(map_zeros, map_reflect, atol=1e-3 * map_reflect.abs().max().item())


def test_static_padding_without_same_padding_changes_nothing() -> None:
    backbone = Backbone("resnet18", [1, 2], pre_trained=False)
    image = torch.randn(1, 3, 64, 64)
    before = backbone(image)
    backbone.prepare((64, 64))
    assert all(map(torch.equal, before, backbone(image)))


@pytest.mark.parametrize("pool", [MaxPool2dSame, AvgPool2dSame])
def test_pools_keep_their_values(pool: type) -> None:
    """SAME padding of pools, fixed for the size of the image, gives what timm gives, also beside reflection."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(Conv2dSame(3, 4, 3, stride=2), pool(3, stride=2))
    images = torch.randn(2, 3, 30, 31)
    expected = model(images)
    set_padding(model, (30, 31), "zeros")
    assert torch.equal(model(images), expected)
    assert isinstance(model[0], PaddedConv2d)
    assert not isinstance(model[1], pool)


@pytest.mark.parametrize("size", [224, 256, 320])
def test_grid_does_not_depend_on_the_padding(size: int) -> None:
    shapes = set()
    for padding in ("static", "timm"):
        for mode in ("zeros", "reflect"):
            backbone = Backbone("tf_efficientnet_b0", [0, 3], pre_trained=False, padding=padding, padding_mode=mode)
            backbone.prepare((size, size))
            shapes.add(tuple(tuple(x.shape[2:]) for x in backbone(torch.zeros(1, 3, size, size))))
    assert shapes == {((size // 2, size // 2), (size // 16, size // 16))}


def test_map_that_is_smaller_than_its_padding() -> None:
    backbone = Backbone("tf_efficientnet_b0", [0, 3, 4], pre_trained=False, padding_mode="reflect")
    with pytest.raises(ValueError, match=r"blocks\.\d.* pads a map of 2x2 by 2.*larger image_size"):
        backbone.prepare((32, 32))
    Backbone("tf_efficientnet_b0", [0, 1], pre_trained=False, padding_mode="reflect").prepare((32, 32))


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_padding_that_cannot_be_changed(mode: str) -> None:
    name = "tf_efficientnet_cc_b0_4e"
    with pytest.raises(ValueError, match=r"padding of CondConv2d \(blocks\.\S+\) cannot be changed; use.*'timm'"):
        Backbone(name, [0, 4], pre_trained=False, padding_mode=mode).prepare((64, 64))
    Backbone(name, [0, 4], pre_trained=False, padding="timm").prepare((64, 64))


def test_convolutions_with_a_padding_of_their_own_keep_it() -> None:
    layer = torch.nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")
    images = torch.randn(1, 3, 8, 8)
    expected = layer(images)
    assert not set_padding(torch.nn.Sequential(layer), (8, 8), "reflect")
    assert torch.equal(layer(images), expected)


def test_reflection_where_nothing_is_padded() -> None:
    backbone = Backbone("vit_tiny_patch16_224", [3], pre_trained=False, padding_mode="reflect")
    with pytest.raises(ValueError, match=r"'vit_tiny_patch16_224' pads nothing; leave backbone_padding_mode"):
        backbone.prepare((64, 64))


def test_backbone_without_a_native_resolution(monkeypatch) -> None:
    backbone = Backbone("tf_efficientnet_b0", [0, 1], pre_trained=False)
    monkeypatch.setattr(backbone.features, "pretrained_cfg", {})
    with pytest.raises(ValueError, match=r"does not tell the resolution.*'tf_efficientnet_b0'.*use 'timm'"):
        backbone.prepare((64, 64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone_padding": "same"}, "backbone_padding must be one of 'static', 'timm', got 'same'"),
        ({"backbone_padding_mode": "replicate"}, "backbone_padding_mode must be one of 'zeros', 'reflect'"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UniADModel("resnet18", pre_trained=False, image_size=(64, 64), neighbor_size=(3, 3), **arguments)
