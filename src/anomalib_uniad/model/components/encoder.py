# SPDX-License-Identifier: Apache-2.0
"""Neighbor masked encoder, NME (UniAD, section 3.2)."""

import torch
from torch import nn

from .attention import NeighborMaskedAttention
from .dropout import Dropout


class FeedForward(nn.Sequential):
    """Two linear layers with ReLU and dropout between; ``(B, N, D)`` to ``(B, N, D)``.

    Args:
        hidden_dim (int): Channels ``D`` in and out.
        feedforward_dim (int): Channels in between.
        dropout (float): Dropout after the activation.
    """

    def __init__(self, hidden_dim: int, feedforward_dim: int, dropout: float) -> None:
        super().__init__(
            nn.Linear(hidden_dim, feedforward_dim),
            nn.ReLU(),
            Dropout(dropout),
            nn.Linear(feedforward_dim, hidden_dim),
        )


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each followed by residual and norm (post-norm).

    Args:
        hidden_dim (int): Channels ``D``.
        num_heads (int): Attention heads.
        feedforward_dim (int): Channels inside the feed-forward.
        dropout (float): Dropout on attention weights, activations and both residual branches.
        grid_size (tuple[int, int]): Height and width of the token grid.
        neighbor_size (tuple[int, int] | None): Hidden window, ``None`` for plain attention.
    """

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        feedforward_dim: int,
        dropout: float,
        grid_size: tuple[int, int],
        neighbor_size: tuple[int, int] | None,
    ) -> None:
        super().__init__()
        self.self_attention = NeighborMaskedAttention(hidden_dim, num_heads, grid_size, neighbor_size, dropout)
        self.feedforward = FeedForward(hidden_dim, feedforward_dim, dropout)
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.norm2 = nn.LayerNorm(hidden_dim)
        self.dropout = Dropout(dropout)

    def forward(self, tokens: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """``tokens`` (B, N, D), ``position`` (N, D) -> (B, N, D)."""
        tokens = self.norm1(tokens + self.dropout(self.self_attention(tokens, tokens, position)))
        return self.norm2(tokens + self.dropout(self.feedforward(tokens)))


class NeighborMaskedEncoder(nn.Module):
    """Stack of :class:`EncoderLayer`, without a final norm.

    Args:
        num_layers (int): Layers.
        hidden_dim (int): Channels ``D``.
        num_heads (int): Attention heads.
        feedforward_dim (int): Channels inside the feed-forward.
        dropout (float): Dropout.
        grid_size (tuple[int, int]): Height and width of the token grid.
        neighbor_size (tuple[int, int] | None): Hidden window, ``None`` for plain attention.
    """

    def __init__(
        self,
        num_layers: int,
        hidden_dim: int,
        num_heads: int,
        feedforward_dim: int,
        dropout: float,
        grid_size: tuple[int, int],
        neighbor_size: tuple[int, int] | None,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(hidden_dim, num_heads, feedforward_dim, dropout, grid_size, neighbor_size)
            for _ in range(num_layers)
        )

    def forward(self, tokens: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """``tokens`` (B, N, D), ``position`` (N, D) -> (B, N, D)."""
        for layer in self.layers:
            tokens = layer(tokens, position)
        return tokens
