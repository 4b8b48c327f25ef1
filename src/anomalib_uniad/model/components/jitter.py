# SPDX-License-Identifier: Apache-2.0
"""Feature jitter (UniAD, section 3.3)."""

import torch
from torch import nn

from anomalib_uniad.checks import check_at_least, check_fraction


class FeatureJitter(nn.Module):
    """Adds noise to the tokens during training; the reconstruction target stays clean.

    Each token ``f`` becomes ``f + eps * scale * ||f||_2 / C`` with ``eps ~ N(0, 1)`` per element
    (section 3.3 of https://arxiv.org/abs/2206.03687). In evaluation the tokens pass unchanged.

    Args:
        scale (float): Strength ``alpha`` of the noise. Defaults to ``20.0``.
        probability (float): Probability that a batch is jittered, one draw per batch. Defaults to ``1.0``.

    Raises:
        ValueError: If ``scale`` is negative or ``probability`` lies outside [0, 1].
    """

    def __init__(self, scale: float = 20.0, probability: float = 1.0) -> None:
        super().__init__()
        check_at_least("jitter_scale", scale, 0)
        check_fraction("jitter_probability", probability)
        self.scale = scale
        self.probability = probability

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """``tokens`` (B, N, C) -> (B, N, C)."""
        if not self.training or self.scale == 0 or self.probability == 0:
            return tokens
        # Drawn on the CPU: no synchronisation with the device. Certain events need no draw.
        if self.probability < 1 and torch.rand(()).item() >= self.probability:
            return tokens
        noise_scale = tokens.norm(dim=-1, keepdim=True) * (self.scale / tokens.shape[-1])  # (B, N, 1)
        return tokens + torch.randn_like(tokens) * noise_scale
