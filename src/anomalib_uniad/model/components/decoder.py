# SPDX-License-Identifier: Apache-2.0
"""Layer-wise query decoder, LQD (UniAD, section 3.2), and the decoders that the paper compares it with."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import nn

from anomalib_uniad.checks import check_choice
from anomalib_uniad.errors import InputError

from .attention import NeighborMaskedAttention
from .dropout import Dropout
from .encoder import FeedForward

DecoderQuery = Literal["layerwise", "first", "none"]
AttentionTarget = Literal["encoder", "previous"]


class DecoderLayer(nn.Module):
    """A query attends to the encoder's output, then to the previous layer's (post-norm).

    The layer-wise query decoder gives every layer a learned query of its own, so that query information enters each
    layer anew instead of fading; it cannot be replaced by what the layer is asked to reconstruct.

    Args:
        hidden_dim (int): Channels ``D``.
        num_heads (int): Attention heads.
        feedforward_dim (int): Channels inside the feed-forward.
        dropout (float): Dropout on attention weights, activations and the three residual branches.
        grid_size (tuple[int, int]): Height and width of the token grid, ``N = height * width``.
        neighbor_sizes (tuple[tuple[int, int] | None, tuple[int, int] | None]): Hidden windows of the first and of the
            second attention, ``None`` for no mask.
        learned_query (bool): Start from a learned query; if not, from the output of the previous layer.
            Defaults to ``True``.
        attends_to (Sequence[str]): What the first and the second attention attend to: ``"encoder"`` is the output of
            the encoder, ``"previous"`` that of the previous layer. Defaults to ``("encoder", "previous")``.
    """

    query: nn.Parameter | None

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        feedforward_dim: int,
        dropout: float,
        grid_size: tuple[int, int],
        neighbor_sizes: tuple[tuple[int, int] | None, tuple[int, int] | None],
        learned_query: bool = True,
        attends_to: Sequence[AttentionTarget] = ("encoder", "previous"),
    ) -> None:
        super().__init__()
        first_window, second_window = neighbor_sizes
        query = nn.Parameter(torch.randn(grid_size[0] * grid_size[1], hidden_dim)) if learned_query else None
        self.register_parameter("query", query)
        self.attends_to = tuple(attends_to)
        # Named as in checkpoints, after what UniAD's own decoder attends to.
        self.encoder_attention = NeighborMaskedAttention(hidden_dim, num_heads, grid_size, first_window, dropout)
        self.previous_attention = NeighborMaskedAttention(hidden_dim, num_heads, grid_size, second_window, dropout)
        self.feedforward = FeedForward(hidden_dim, feedforward_dim, dropout)
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.norm2 = nn.LayerNorm(hidden_dim)
        self.norm3 = nn.LayerNorm(hidden_dim)
        self.dropout = Dropout(dropout)

    def forward(self, memory: torch.Tensor, previous: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """``memory`` and ``previous`` (B, N, D), ``position`` (N, D) -> (B, N, D)."""
        first, second = (memory if target == "encoder" else previous for target in self.attends_to)
        query = previous if self.query is None else self.query[None]  # (1, N, D), the same for all images
        attended = self.encoder_attention(query, first, position)  # (B, N, D)
        tokens = self.norm1(query + self.dropout(attended))
        attended = self.previous_attention(tokens, second, position)
        tokens = self.norm2(tokens + self.dropout(attended))
        return self.norm3(tokens + self.dropout(self.feedforward(tokens)))


def check_attention(attends_to: Sequence[str]) -> None:
    """Refuse what the attentions of a decoder layer cannot attend to.

    Raises:
        ValueError: If it is something else.
    """
    if len(attends_to) != 2 or not set(attends_to) <= set(get_args(AttentionTarget)):
        raise InputError(f"decoder_attention must be two of encoder and previous, got {attends_to!r}.")


class LayerwiseQueryDecoder(nn.Module):
    """Stack of :class:`DecoderLayer` and one final norm.

    Args:
        num_layers (int): Layers.
        hidden_dim (int): Channels ``D``.
        num_heads (int): Attention heads.
        feedforward_dim (int): Channels inside the feed-forward.
        dropout (float): Dropout.
        grid_size (tuple[int, int]): Height and width of the token grid.
        neighbor_sizes (tuple[tuple[int, int] | None, tuple[int, int] | None]): Hidden windows of the first and of the
            second attention of each layer, ``None`` for no mask.
        query (str): Which layers start from a learned query: every one (``"layerwise"``), the first one as in DETR
            (``"first"``), or none (``"none"``). The others start from the output of the previous layer.
            Defaults to ``"layerwise"``.
        attends_to (Sequence[str]): As of :class:`DecoderLayer`. Defaults to ``("encoder", "previous")``.

    Raises:
        ValueError: If ``query`` or ``attends_to`` is unknown.
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
        query: DecoderQuery = "layerwise",
        attends_to: Sequence[AttentionTarget] = ("encoder", "previous"),
    ) -> None:
        super().__init__()
        check_choice("decoder_query", query, get_args(DecoderQuery))
        check_attention(attends_to)
        with_query = {"layerwise": num_layers, "first": 1, "none": 0}[query]
        common = (hidden_dim, num_heads, feedforward_dim, dropout, grid_size, neighbor_sizes)
        self.layers = nn.ModuleList(
            DecoderLayer(*common, number < with_query, attends_to) for number in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_dim)

    def forward(self, memory: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """``memory`` (B, N, D) of the encoder, ``position`` (N, D) -> (B, N, D)."""
        previous = memory
        for layer in self.layers:
            previous = layer(memory, previous, position)
        return self.norm(previous)
