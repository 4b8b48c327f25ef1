# SPDX-License-Identifier: Apache-2.0
"""Renders images from backbone features, only to look at."""

import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anomalib_uniad.errors import InputError, MissingFileError
from anomalib_uniad.model import UniAD
from anomalib_uniad.training.checkpoint_files import save_torch

PIXELS_PER_TOKEN = 8
"""Side of what is drawn for a token."""
_OF_FEATURES = (
    "backbone",
    "backbone_padding",
    "backbone_padding_mode",
    "layers",
    "image_size",
    "feature_stride",
    "feature_resize",
)


class FeatureDecoder(nn.Module):
    """Convolutions and upsampling from features to an image.

    It renders features as the neck of :class:`~anomalib_uniad.UniAD` puts them out, so it serves all models with that
    backbone and these layers, whatever they were trained with. What it draws is what such features usually come from,
    not what is in the image: of a defect that it has never seen, a guess.

    Args:
        channels (int): Channels ``C`` of the features.
        width (int): Channels of the first layer; each upsampling halves them. Defaults to ``128``.

    Examples:
        >>> FeatureDecoder(16, width=32)(torch.zeros(2, 16, 4, 6)).shape
        torch.Size([2, 3, 32, 48])
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, channels: int, width: int = 128) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 1), nn.GELU(), _convolution(width, width)]
        for _ in range(round(math.log2(PIXELS_PER_TOKEN)) - 1):
            layers += [nn.Upsample(scale_factor=2), _convolution(width, width // 2)]
            width //= 2
        # The last upsampling costs nothing: four pixels of each place.
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``features`` (B, C, h, w) -> images (B, 3, H, W) from 0 to 1, eight times as large."""
        return self.layers((features - self.mean) / self.std).sigmoid()

    def save(self, file: Path, model: UniAD) -> None:
        """Write it to a file, with what its features are from.

        Args:
            file (Path): The file, in a folder that is there.
            model (UniAD): The model with whose features it was trained.
        """
        arguments = {"channels": len(self.mean), "width": self.layers[0].out_channels}
        content = {"features": features_of(model), "arguments": arguments, "state_dict": self.state_dict()}
        save_torch(content, file)

    @classmethod
    def load(cls, file: Path, model: UniAD) -> "FeatureDecoder":
        """Read it from a file.

        Args:
            file (Path): The file.
            model (UniAD): The model whose features are to be rendered.

        Returns:
            FeatureDecoder: In evaluation mode.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no decoder, or of other features than the model's.
        """
        if not file.is_file():
            raise MissingFileError(f"There is no decoder {file}: make one with `anomalib-uniad train-decoder`.")
        try:
            content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
            decoder = cls(**content["arguments"])
            decoder.load_state_dict(content["state_dict"])
            theirs = dict(content["features"])
        except Exception as error:  # of pickle, zipfile and torch
            raise InputError(f"{file} is not a decoder of `anomalib-uniad train-decoder`.") from error
        own = features_of(model)
        if different := [
            f"{name} {theirs.get(name)}, not {own[name]}" for name in own if theirs.get(name) != own[name]
        ]:
            raise InputError(f"{file} renders other features than the model's: {'; '.join(different)}.")
        return decoder.eval()


def features_of(model: UniAD) -> dict[str, Any]:
    """What the features of a model depend on, besides the image."""
    values = {name: model.hparams[name] for name in _OF_FEATURES}
    digest = hashlib.sha256()
    for tensor in model.model.backbone.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return {**plain, "weights of the backbone": digest.hexdigest()[:16]}


def _convolution(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, 3, padding=1), nn.GroupNorm(8, outside), nn.GELU())
