# SPDX-License-Identifier: Apache-2.0
"""Neighbor masked attention (UniAD, section 3.2)."""

import torch
from torch import nn
from torch.nn import functional as F


def neighbor_mask(grid_size: tuple[int, int], neighbor_size: tuple[int, int]) -> torch.Tensor:
    """Which tokens a token may attend to: all but its neighbors and itself.

    Args:
        grid_size (tuple[int, int]): Height and width of the token grid, in tokens.
        neighbor_size (tuple[int, int]): Height and width of the hidden window, in tokens. A window of
            ``k`` hides the tokens up to ``k // 2`` away.

    Returns:
        torch.Tensor: ``(N, N)`` bool, ``N = height * width``; True where row (query) sees column (key).

    Raises:
        ValueError: If a token would see nothing, because the window around it covers the whole grid.

    Example:
        >>> neighbor_mask((1, 4), (1, 3)).int()
        tensor([[0, 0, 1, 1],
                [0, 0, 0, 1],
                [1, 0, 0, 0],
                [1, 1, 0, 0]], dtype=torch.int32)
    """
    (height, width), (window_height, window_width) = grid_size, neighbor_size
    if min(window_height, window_width) < 1:
        msg = f"neighbor_size must be positive, got {tuple(neighbor_size)}."
        raise ValueError(msg)
    rows, columns = torch.arange(height), torch.arange(width)
    near_row = (rows[:, None] - rows[None]).abs() <= window_height // 2  # (h, h)
    near_column = (columns[:, None] - columns[None]).abs() <= window_width // 2  # (w, w)
    hidden = near_row[:, None, :, None] & near_column[None, :, None, :]  # (h, w, h, w)
    visible = ~hidden.reshape(height * width, height * width)
    if not visible.any(dim=1).all():
        msg = (
            f"neighbor_size {tuple(neighbor_size)} hides the whole {height} x {width} grid from at least one "
            "token, which leaves it nothing to attend to. Use a smaller neighbor_size, a larger image_size or "
            "a smaller feature_stride."
        )
        raise ValueError(msg)
    return visible


class NeighborMaskedAttention(nn.Module):
    """Multi-head attention that hides from each token its own neighborhood.

    A token cannot be reconstructed by copying itself or what lies beside it, which keeps the model from
    the identity shortcut (section 3.2 of https://arxiv.org/abs/2206.03687). The parameters have the names
    and shapes of :class:`torch.nn.MultiheadAttention`.

    Args:
        hidden_dim (int): Channels ``D`` of queries, keys and values.
        num_heads (int): Attention heads; must divide ``hidden_dim``.
        grid_size (tuple[int, int]): Height and width of the token grid; ``N = height * width``.
        neighbor_size (tuple[int, int] | None): Height and width of the hidden window, ``None`` for plain
            attention. Defaults to ``None``.
        dropout (float): Dropout on the attention weights. Defaults to ``0.0``.

    Raises:
        ValueError: If ``hidden_dim`` is not a multiple of ``num_heads``, or the window hides the whole grid.
    """

    visible: torch.Tensor | None

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        grid_size: tuple[int, int],
        neighbor_size: tuple[int, int] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if num_heads < 1 or hidden_dim % num_heads:
            msg = f"hidden_dim ({hidden_dim}) must be a multiple of num_heads ({num_heads})."
            raise ValueError(msg)
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden_dim, hidden_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden_dim))
        self.out_proj = nn.Linear(hidden_dim, hidden_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)
        # A constant of the architecture, not a weight: rebuilt at construction, absent from checkpoints.
        mask = None if neighbor_size is None else neighbor_mask(grid_size, neighbor_size)
        self.register_buffer("visible", mask, persistent=False)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attend.

        Args:
            query (torch.Tensor): ``(B, N, D)``, position added.
            key (torch.Tensor): ``(B, N, D)``, position added.
            value (torch.Tensor): ``(B, N, D)``, without position.

        Returns:
            torch.Tensor: ``(B, N, D)``.
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, N, D/heads)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=self.visible, dropout_p=dropout)
        return self.out_proj(attended.transpose(1, 2).flatten(2))
