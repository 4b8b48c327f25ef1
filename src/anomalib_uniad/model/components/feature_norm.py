# SPDX-License-Identifier: Apache-2.0
"""Features on one scale: mean 0 and standard deviation 1 in each channel."""

import torch
from torch import nn

# A channel that hardly varies in training images would count for more than all others where it does vary later.
_LEAST_OF_TYPICAL = 1e-2


class FeatureNorm(nn.Module):
    """Subtracts the mean of each channel and divides by its standard deviation, both of the training images.

    So each channel counts as much as any other in loss, jitter and anomaly map, whatever its scale in the backbone, or
    as much as its weight says.
    Until :meth:`fill` is called, features are only multiplied by the weights.

    Args:
        channels (int): Channels ``C`` of the features.
        weights (torch.Tensor | None): ``(C,)``, the standard deviation that each channel is brought to.
            Defaults to ``None``, 1.

    Attributes:
        mean (torch.Tensor): ``(C,)``.
        std (torch.Tensor): ``(C,)``.
        images (torch.Tensor): ``()``, the number of images that they are of; 0 before :meth:`fill`.
    """

    mean: torch.Tensor
    std: torch.Tensor
    images: torch.Tensor
    weights: torch.Tensor

    def __init__(self, channels: int, weights: torch.Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weights", torch.ones(channels) if weights is None else weights, persistent=False)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        self.register_buffer("images", torch.zeros((), dtype=torch.int64))

    def fill(self, mean: torch.Tensor, std: torch.Tensor, images: torch.Tensor) -> None:
        """Take over statistics.

        A channel whose standard deviation is below a hundredth of the median one gets that hundredth.

        Args:
            mean (torch.Tensor): ``(C,)``.
            std (torch.Tensor): ``(C,)``.
            images (torch.Tensor): ``()``, the number of images that they are of.
        """
        varying = std[std > 0]
        least = _LEAST_OF_TYPICAL * varying.median() if len(varying) else std.new_ones(())
        self.mean.copy_(mean)
        self.std.copy_(std.clamp(min=float(least)))
        self.images.copy_(images)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``features`` (B, C, h, w) -> (B, C, h, w)."""
        return (features - self.mean[:, None, None]) * (self.weights / self.std)[:, None, None]

    def inverse(self, features: torch.Tensor) -> torch.Tensor:
        """What :meth:`forward` makes ``features`` (B, C, h, w) of -> (B, C, h, w)."""
        return features * (self.std / self.weights)[:, None, None] + self.mean[:, None, None]
