# SPDX-License-Identifier: Apache-2.0
"""How much a convolutional backbone pads its maps, and with what.

TensorFlow's SAME padding, which timm's ``tf_`` models have, depends on the size of the map. The authors' EfficientNet
pads as it would at the resolution of its own training, whatever the size of the image. At 224 px the two differ, and
with them the places that a token looks at.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, cast

import torch
from timm.layers import AvgPool2dSame, Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from timm.layers.padding import get_same_padding
from timm.layers.pool2d_same import MaxPool2dSame
from torch import nn
from torch.nn import functional as F

from anomalib_uniad.errors import InputError

BackbonePadding = Literal["static", "timm"]
PaddingMode = Literal["zeros", "reflect"]


class _Padded(nn.Module):
    """Pads its input by fixed amounts, then does what its other base class does, without padding."""

    amounts: tuple[int, int, int, int]  # left, right, top, bottom
    padding: Any  # of the base class
    mode: str
    fill: float

    def set_amounts(self, amounts: Sequence[int], mode: str, fill: float = 0.0) -> None:
        """Pad by ``amounts`` from now on, and by nothing else."""
        self.amounts = (amounts[0], amounts[1], amounts[2], amounts[3])
        self.mode, self.fill = mode, fill
        self.padding = (0, 0)
        self.same_pad = False  # of timm's convolutions with standardised weights

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, H, W)`` -> what the base class makes of the padded map."""
        x = F.pad(x, self.amounts, self.mode, self.fill if self.mode == "constant" else None)
        return super().forward(x)

    def extra_repr(self) -> str:
        """Show the padding, too: the key of the feature cache reads it here."""
        return f"{cast('Any', super()).extra_repr()}, amounts={self.amounts}, mode={self.mode}"


class PaddedConv2d(_Padded, nn.Conv2d):
    """Convolution of a map that was padded by fixed amounts."""


class PaddedStdConv2d(_Padded, StdConv2d):
    """The same with standardised weights."""


class PaddedScaledStdConv2d(_Padded, ScaledStdConv2d):
    """The same with standardised and scaled weights."""


class PaddedMaxPool2d(_Padded, nn.MaxPool2d):
    """Maximum over windows of a map that was padded by fixed amounts."""


class PaddedAvgPool2d(_Padded, nn.AvgPool2d):
    """Mean over windows of a map that was padded by fixed amounts."""


# Exact types: what a subclass does with its padding is not known.
_DYNAMIC: dict[type, type[_Padded]] = {
    Conv2dSame: PaddedConv2d,
    StdConv2dSame: PaddedStdConv2d,
    ScaledStdConv2dSame: PaddedScaledStdConv2d,
    MaxPool2dSame: PaddedMaxPool2d,
    AvgPool2dSame: PaddedAvgPool2d,
}
_FIXED: dict[type, type[_Padded]] = {
    nn.Conv2d: PaddedConv2d,
    StdConv2d: PaddedStdConv2d,
    ScaledStdConv2d: PaddedScaledStdConv2d,
}


def native_size(features: nn.Module) -> tuple[int, int] | None:
    """Height and width of the images that a timm model was made for; ``None`` if its config does not have them."""
    size = (getattr(features, "pretrained_cfg", None) or {}).get("input_size")
    return None if size is None else (size[1], size[2])


def set_padding(features: nn.Module, size: tuple[int, int], mode: PaddingMode) -> bool:
    """Have all layers of a backbone pad by fixed amounts.

    Layers with SAME padding get the amounts of images of ``size``: for kernel ``k``, stride ``s`` and input ``i``,
    ``o = ceil(i / s)`` and ``total = max((o - 1) * s + k - i, 0)``, half of it before, the rest after. Other layers
    keep theirs. Pools do not fill by reflection: max pools leave their padding out of the maximum.

    Args:
        features (nn.Module): The backbone; changed.
        size (tuple[int, int]): Height and width, in pixels.
        mode (str): What convolutions pad with, ``"zeros"`` or ``"reflect"`` (the map's own values, mirrored at its
            border).

    Returns:
        bool: Whether there was anything to change.

    Raises:
        ValueError: If the padding of a layer cannot be changed; the message names it.
    """
    sizes, changed = _input_sizes(features, size), False
    for name, layer in features.named_modules():
        if type(layer) in _DYNAMIC:
            if name in sizes:  # otherwise not reached: its output is not used
                amounts = _same_amounts(cast("Any", layer), sizes[name])
                _replace(layer, _DYNAMIC[type(layer)], amounts, mode)
                changed = True
        elif getattr(layer, "dynamic_padding", False) or (mode == "reflect" and _is_unknown_convolution(layer)):
            raise InputError(
                f"The padding of {type(layer).__name__} ({name}) cannot be changed; use backbone_padding='timm' with "
                "backbone_padding_mode='zeros'."
            )
        elif mode == "reflect" and type(layer) in _FIXED and cast("Any", layer).padding_mode == "zeros":
            amounts = list(cast("Any", layer)._reversed_padding_repeated_twice)  # also if it is given in words
            if any(amounts):
                _replace(layer, _FIXED[type(layer)], amounts, mode)
                changed = True
        elif mode == "reflect" and isinstance(layer, nn.ConstantPad2d) and layer.value == 0:
            layer.__class__ = nn.ReflectionPad2d  # type: ignore[assignment]
            changed = True
    return changed


def _replace(layer: nn.Module, padded: type[_Padded], amounts: Sequence[int], mode: PaddingMode) -> None:
    """Change the class of a layer; its weights and their names stay."""
    layer.__class__ = padded
    reflect = mode == "reflect" and isinstance(layer, nn.Conv2d)
    fill = float("-inf") if isinstance(layer, nn.MaxPool2d) else 0.0
    cast("_Padded", layer).set_amounts(amounts, "reflect" if reflect else "constant", fill)


def _is_unknown_convolution(layer: nn.Module) -> bool:
    parts = ("kernel_size", "weight", "padding")
    return type(layer) not in _FIXED and not isinstance(layer, _Padded) and all(hasattr(layer, x) for x in parts)


def has_same_padding(features: nn.Module) -> bool:
    """Whether layers of a backbone pad by amounts that depend on the size of their input."""
    return any(type(layer) in _DYNAMIC or getattr(layer, "dynamic_padding", False) for layer in features.modules())


@contextmanager
def reflection_checked(features: nn.Module) -> Iterator[None]:
    """Refuse maps that are too small to be padded by reflection, inside a ``with`` block.

    Args:
        features (nn.Module): The backbone.

    Raises:
        ValueError: Naming the layer, when it gets such a map.
    """

    def check(name: str, layer: Any, x: torch.Tensor) -> None:
        height, width = x.shape[-2:]
        left, right, top, bottom = layer.amounts if isinstance(layer, _Padded) else layer.padding
        if max(left, right) >= width or max(top, bottom) >= height:
            raise InputError(
                f"backbone_padding_mode='reflect' needs maps larger than their padding, but {name} pads a map of "
                f"{height}x{width} by {max(left, right, top, bottom)}. Use a larger image_size, only shallower "
                "layers, or backbone_padding_mode='zeros'."
            )

    reflecting = [
        (name, layer)
        for name, layer in features.named_modules()
        if isinstance(layer, nn.ReflectionPad2d) or (isinstance(layer, _Padded) and layer.mode == "reflect")
    ]
    with _looking_at_inputs(reflecting, check):
        yield


def _input_sizes(features: nn.Module, size: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """Height and width of what each layer with SAME padding gets, for images of a size."""
    sizes: dict[str, tuple[int, int]] = {}

    def keep(name: str, layer: nn.Module, x: torch.Tensor) -> None:
        del layer
        sizes[name] = (x.shape[-2], x.shape[-1])

    dynamic = [(name, layer) for name, layer in features.named_modules() if type(layer) in _DYNAMIC]
    if dynamic:
        with _looking_at_inputs(dynamic, keep), torch.no_grad():
            features(torch.zeros(1, 3, *size))
    return sizes


@contextmanager
def _looking_at_inputs(
    layers: Sequence[tuple[str, nn.Module]], look: Callable[[str, nn.Module, torch.Tensor], None]
) -> Iterator[None]:
    """Call ``look`` with name, layer and map before each of the layers."""

    def hook_of(name: str) -> Any:
        return lambda layer, inputs: look(name, layer, inputs[0])

    with ExitStack() as hooks:
        for name, layer in layers:
            hooks.enter_context(layer.register_forward_pre_hook(hook_of(name)))
        yield


def _same_amounts(layer: Any, size: tuple[int, int]) -> list[int]:
    """Left, right, top and bottom; see :func:`set_padding`."""
    amounts: list[int] = []
    for axis in (1, 0):
        dilation = _pair(getattr(layer, "dilation", 1))[axis]
        kernel, stride = _pair(layer.kernel_size)[axis], _pair(layer.stride)[axis]
        total = int(get_same_padding(size[axis], kernel, stride, dilation))
        amounts += [total // 2, total - total // 2]
    return amounts


def _pair(value: int | Sequence[int]) -> Sequence[int]:
    return (value, value) if isinstance(value, int) else value
