# SPDX-License-Identifier: Apache-2.0
"""Reconstructions without attention, that the paper compares its transformer with (UniAD, section 3.1)."""

from collections.abc import Sequence

import torch
from torch import nn

from .dropout import Dropout
from .encoder import FeedForward


class LayeredReconstruction(nn.Module):
    """Layers of feed-forward, residual and norm, as those of the encoder are without their attention.

    Args:
        in_channels (int): Channels ``C`` of the tokens.
        hidden_dim (int): Channels ``D`` inside.
        feedforwards (Sequence[nn.Module]): One for each layer, ``(B, N, D)`` to ``(B, N, D)``.
        dropout (float): Dropout on the residual branches.
    """

    def __init__(self, in_channels: int, hidden_dim: int, feedforwards: Sequence[nn.Module], dropout: float) -> None:
        super().__init__()
        self.input_projection = nn.Linear(in_channels, hidden_dim)
        self.layers = nn.ModuleList(feedforwards)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_dim) for _ in feedforwards)
        self.dropout = Dropout(dropout)
        self.output_projection = nn.Linear(hidden_dim, in_channels)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def inner_matrices(self) -> list[nn.Parameter]:
        """The weights of all linear maps inside the layers."""
        return [parameter for parameter in self.layers.parameters() if parameter.dim() > 1]

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """``tokens`` (B, N, C) -> their reconstruction (B, N, C)."""
        inside = self.input_projection(tokens)  # (B, N, D)
        for feedforward, norm in zip(self.layers, self.norms, strict=True):
            inside = norm(inside + self.dropout(feedforward(inside)))
        return self.output_projection(inside)


class ReconstructionMLP(LayeredReconstruction):
    """Each token is reconstructed from itself alone.

    Args:
        in_channels (int): Channels ``C`` of the tokens.
        hidden_dim (int): Channels ``D`` inside.
        num_layers (int): Layers.
        feedforward_dim (int): Channels inside the feed-forward parts.
        dropout (float): Dropout.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_dim: int,
        num_layers: int,
        feedforward_dim: int,
        dropout: float,
    ) -> None:
        feedforwards = [FeedForward(hidden_dim, feedforward_dim, dropout) for _ in range(num_layers)]
        super().__init__(in_channels, hidden_dim, feedforwards, dropout)


class ConvolutionalFeedForward(nn.Module):
    """Two convolutions of 3 x 3 tokens with ReLU and dropout between; ``(B, N, D)`` to ``(B, N, D)``.

    Args:
        grid_size (tuple[int, int]): Height and width of the token grid, ``N = height * width``.
        hidden_dim (int): Channels ``D`` in and out.
        feedforward_dim (int): Channels in between.
        dropout (float): Dropout after the activation.
    """

    def __init__(self, grid_size: tuple[int, int], hidden_dim: int, feedforward_dim: int, dropout: float) -> None:
        super().__init__()
        self.grid_size = grid_size
        self.convolutions = nn.Sequential(
            nn.Conv2d(hidden_dim, feedforward_dim, 3, padding=1),
            nn.ReLU(),
            Dropout(dropout),
            nn.Conv2d(feedforward_dim, hidden_dim, 3, padding=1),
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """``tokens`` (B, N, D) -> (B, N, D)."""
        grid = tokens.transpose(1, 2).unflatten(2, self.grid_size)  # (B, D, h, w)
        return self.convolutions(grid).flatten(2).transpose(1, 2)


class ReconstructionCNN(LayeredReconstruction):
    """Each token is reconstructed from itself and those around it, farther with each layer.

    Args:
        in_channels (int): Channels ``C`` of the tokens.
        grid_size (tuple[int, int]): Height and width of the token grid.
        hidden_dim (int): Channels ``D`` inside.
        num_layers (int): Layers, each with two convolutions.
        feedforward_dim (int): Channels between the two convolutions.
        dropout (float): Dropout.
    """

    def __init__(
        self,
        in_channels: int,
        grid_size: tuple[int, int],
        hidden_dim: int,
        num_layers: int,
        feedforward_dim: int,
        dropout: float,
    ) -> None:
        feedforwards = [
            ConvolutionalFeedForward(grid_size, hidden_dim, feedforward_dim, dropout) for _ in range(num_layers)
        ]
        super().__init__(in_channels, hidden_dim, feedforwards, dropout)
