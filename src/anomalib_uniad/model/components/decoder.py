# SPDX-License-Identifier: Apache-2.0
"""Layer-wise query decoder, LQD (UniAD, section 3.2)."""

import torch
from torch import nn

from .attention import NeighborMaskedAttention
from .dropout import Dropout
from .encoder import FeedForward


class DecoderLayer(nn.Module):
    """A learned query attends to the encoder's output, then to the previous layer's (post-norm).

    Every layer has a query of its own, so that query information enters each layer anew instead of
    fading; it cannot be replaced by what the layer is asked to reconstruct.

    Args:
        hidden_dim (int): Channels ``D``.
        num_heads (int): Attention heads.
        feedforward_dim (int): Channels inside the feed-forward.
        dropout (float): Dropout on attention weights, activations and the three residual branches.
        grid_size (tuple[int, int]): Height and width of the token grid, ``N = height * width``.
        neighbor_sizes (tuple[tuple[int, int] | None, tuple[int, int] | None]): Hidden windows of the
            attention to the encoder and of the attention to the previous layer, ``None`` for no mask.
    """

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        feedforward_dim: int,
        dropout: float,
        grid_size: tuple[int, int],
        neighbor_sizes: tuple[tuple[int, int] | None, tuple[int, int] | None],
    ) -> None:
        super().__init__()
        encoder_window, previous_window = neighbor_sizes
        self.query = nn.Parameter(torch.randn(grid_size[0] * grid_size[1], hidden_dim))
        self.encoder_attention = NeighborMaskedAttention(hidden_dim, num_heads, grid_size, encoder_window, dropout)
        self.previous_attention = NeighborMaskedAttention(hidden_dim, num_heads, grid_size, previous_window, dropout)
        self.feedforward = FeedForward(hidden_dim, feedforward_dim, dropout)
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.norm2 = nn.LayerNorm(hidden_dim)
        self.norm3 = nn.LayerNorm(hidden_dim)
        self.dropout = Dropout(dropout)

    def forward(self, memory: torch.Tensor, previous: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """``memory`` and ``previous`` (B, N, D), ``position`` (N, D) -> (B, N, D)."""
        query = self.query[None]  # (1, N, D), the same for all images
        attended = self.encoder_attention(query, memory, position)  # (B, N, D)
        tokens = self.norm1(query + self.dropout(attended))
        attended = self.previous_attention(tokens, previous, position)
        tokens = self.norm2(tokens + self.dropout(attended))
        return self.norm3(tokens + self.dropout(self.feedforward(tokens)))


class LayerwiseQueryDecoder(nn.Module):
    """Stack of :class:`DecoderLayer` and one final norm.

    Args:
        num_layers (int): Layers, each with a learned query.
        hidden_dim (int): Channels ``D``.
        num_heads (int): Attention heads.
        feedforward_dim (int): Channels inside the feed-forward.
        dropout (float): Dropout.
        grid_size (tuple[int, int]): Height and width of the token grid.
        neighbor_sizes (tuple[tuple[int, int] | None, tuple[int, int] | None]): Hidden windows of the
            attention to the encoder and of the attention to the previous layer, ``None`` for no mask.
    """

    def __init__(
        self,
        num_layers: int,
        hidden_dim: int,
        num_heads: int,
        feedforward_dim: int,
        dropout: float,
        grid_size: tuple[int, int],
        neighbor_sizes: tuple[tuple[int, int] | None, tuple[int, int] | None],
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(hidden_dim, num_heads, feedforward_dim, dropout, grid_size, neighbor_sizes)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_dim)

    def forward(self, memory: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """``memory`` (B, N, D) of the encoder, ``position`` (N, D) -> (B, N, D)."""
        previous = memory
        for layer in self.layers:
            previous = layer(memory, previous, position)
        return self.norm(previous)
