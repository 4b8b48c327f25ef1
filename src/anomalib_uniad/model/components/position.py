# SPDX-License-Identifier: Apache-2.0
"""Position embeddings of the token grid."""

import math

import torch
from torch import nn

from anomalib_uniad.errors import InputError


class LearnedPosition(nn.Module):
    """One learned table for rows and one for columns, drawn from U(0, 1).

    Token ``(y, x)`` gets ``cat(column[x], row[y])``.

    Args:
        grid_size (tuple[int, int]): Height ``h`` and width ``w`` of the token grid.
        hidden_dim (int): Channels ``D``, half of them for each axis; must be even.

    Raises:
        ValueError: If ``hidden_dim`` is odd.
    """

    def __init__(self, grid_size: tuple[int, int], hidden_dim: int) -> None:
        super().__init__()
        _check_divisible(hidden_dim, 2, "learned")
        height, width = grid_size
        self.row_embed = nn.Parameter(torch.rand(height, hidden_dim // 2))
        self.col_embed = nn.Parameter(torch.rand(width, hidden_dim // 2))

    def forward(self) -> torch.Tensor:
        """Embed the grid: ``(h * w, D)``, row by row."""
        (height, half), width = self.row_embed.shape, len(self.col_embed)
        columns = self.col_embed[None].expand(height, width, half)
        rows = self.row_embed[:, None].expand(height, width, half)
        return torch.cat([columns, rows], dim=-1).flatten(0, 1)


class SinePosition(nn.Module):
    """Fixed sines and cosines of the normalised row and column, as in DETR.

    Token ``(y, x)`` gets ``cat(f(y), f(x))``. The index (from 1) is divided by its last value and scaled to
    2 pi, then by the frequencies ``10000 ** (2i / (D / 2))``; sine on even, cosine on odd features.

    Args:
        grid_size (tuple[int, int]): Height ``h`` and width ``w`` of the token grid.
        hidden_dim (int): Channels ``D``, half of them for each axis; must be a multiple of 4.

    Raises:
        ValueError: If ``hidden_dim`` is not a multiple of 4.
    """

    embedding: torch.Tensor

    def __init__(self, grid_size: tuple[int, int], hidden_dim: int) -> None:
        super().__init__()
        _check_divisible(hidden_dim, 4, "sine")
        height, width = grid_size
        rows, columns = (self._axis(length, hidden_dim // 2) for length in (height, width))
        grid = torch.cat(
            [rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)],
            dim=-1,
        )
        self.register_buffer("embedding", grid.flatten(0, 1), persistent=False)

    @staticmethod
    def _axis(length: int, features: int) -> torch.Tensor:
        angle = torch.arange(1, length + 1) / (length + 1e-6) * 2 * math.pi  # (length,)
        exponent = 2 * torch.arange(features // 2) / features
        phase = angle[:, None] / 10000**exponent  # (length, features / 2)
        return torch.stack([phase.sin(), phase.cos()], dim=-1).flatten(1)  # sin, cos, sin, cos, ...

    def forward(self) -> torch.Tensor:
        """Embed the grid: ``(h * w, D)``, row by row."""
        return self.embedding


def _check_divisible(hidden_dim: int, divisor: int, kind: str) -> None:
    if hidden_dim % divisor:
        msg = f"hidden_dim must be a multiple of {divisor} for the {kind} position embedding, got {hidden_dim}."
        raise InputError(msg)
