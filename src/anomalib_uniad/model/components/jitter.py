# SPDX-License-Identifier: Apache-2.0
"""Feature jitter (UniAD, section 3.3)."""

import torch
from torch import nn


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
        if not scale >= 0:  # nor NaN
            msg = f"jitter_scale must not be negative, got {scale}."
            raise ValueError(msg)
        if not 0 <= probability <= 1:
            msg = f"jitter_probability must lie in [0, 1], got {probability}."
            raise ValueError(msg)
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
