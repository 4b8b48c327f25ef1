# SPDX-License-Identifier: Apache-2.0
"""Neighbor masked attention (UniAD, section 3.2)."""

import math
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

from anomalib_uniad.errors import InputError

from .dropout import keep_mask, on_eager_cpu


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

    Examples:
        >>> neighbor_mask((1, 4), (1, 3)).int()
        tensor([[0, 0, 1, 1],
                [0, 0, 0, 1],
                [1, 0, 0, 0],
                [1, 1, 0, 0]], dtype=torch.int32)
    """
    (height, width), (window_height, window_width) = grid_size, neighbor_size
    if min(window_height, window_width) < 1:
        raise InputError(f"neighbor_size must be positive, got {tuple(neighbor_size)}.")
    rows, columns = torch.arange(height), torch.arange(width)
    near_row = (rows[:, None] - rows[None]).abs() <= window_height // 2  # (h, h)
    near_column = (columns[:, None] - columns[None]).abs() <= window_width // 2  # (w, w)
    hidden = near_row[:, None, :, None] & near_column[None, :, None, :]  # (h, w, h, w)
    visible = ~hidden.reshape(height * width, height * width)
    if not visible.any(dim=1).all():
        raise InputError(
            f"neighbor_size {tuple(neighbor_size)} hides the whole {height} x {width} grid from at least one "
            "token, which leaves it nothing to attend to. Use a smaller neighbor_size, a larger image_size or "
            "a smaller feature_stride."
        )
    return visible


class NeighborMaskedAttention(nn.Module):
    """Multi-head attention that hides from each token its own neighborhood.

    A token cannot be reconstructed by copying itself or what lies beside it, which keeps the model from
    the identity shortcut (section 3.2 of https://arxiv.org/abs/2206.03687). The parameters have the names
    and shapes of :class:`torch.nn.MultiheadAttention`. The position is added to queries and keys, never to values;
    as it is the same for all images, it is projected once and added to the projected tokens.

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
            raise InputError(f"hidden_dim ({hidden_dim}) must be a multiple of num_heads ({num_heads}).")
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

    def forward(self, query: torch.Tensor, memory: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Attend from ``query`` to ``memory``, which may be the same.

        Args:
            query (torch.Tensor): ``(B, N, D)``, or ``(1, N, D)`` if it is the same for all images.
            memory (torch.Tensor): ``(B, N, D)``, where keys and values come from.
            position (torch.Tensor): ``(N, D)``.

        Returns:
            torch.Tensor: ``(B, N, D)``.
        """
        q, k, v = self._heads(query, memory, position)
        dropout = self.dropout if self.training else 0.0
        attended = masked_attention(q, k, v, self.visible, dropout)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def weights(self, query: torch.Tensor, memory: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """How much each token attends to each other, to look at; the arguments are those of :meth:`forward`.

        Returns:
            torch.Tensor: ``(B, heads, N, N)``, or ``(1, heads, N, N)``; each row adds up to 1.
        """
        q, k, _ = self._heads(query, memory, position)
        return _scores(q, k, self.visible).softmax(dim=-1)

    def _heads(self, query: torch.Tensor, memory: torch.Tensor, position: torch.Tensor) -> Iterator[torch.Tensor]:
        """Queries, keys and values, each ``(B, heads, N, D/heads)``."""
        dim = memory.shape[-1]
        weight, offset = self.in_proj_weight, self._offset(position)  # (3 D, D), (N, 3 D)
        if query is memory:
            q, k, v = _project(memory, weight, offset).chunk(3, dim=-1)
        else:
            parts = (dim, 2 * dim)
            (own, other), (own_offset, other_offset) = weight.split(parts), offset.split(parts, dim=-1)
            q = _project(query, own, own_offset)
            k, v = _project(memory, other, other_offset).chunk(2, dim=-1)
        return (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))

    def _offset(self, position: torch.Tensor) -> torch.Tensor:
        """What is added to projected tokens: the projected position and the bias, ``(N, 3 D)``."""
        dim = position.shape[-1]
        projected = F.linear(position, self.in_proj_weight[: 2 * dim])  # queries and keys
        return F.pad(projected, (0, dim)) + self.in_proj_bias


def _project(tokens: torch.Tensor, weight: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    projected = F.linear(tokens, weight)
    return projected + offset.to(projected.dtype)  # under autocast the sum would go back to full precision


def masked_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible: torch.Tensor | None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Scaled dot-product attention.

    torch's own function, except for training on a CPU with dropout or in reduced precision: there matrix products and
    cheap dropout masks are two to three times faster.

    Args:
        query (torch.Tensor): ``(B, heads, N, d)``, and so are key and value, or ``(1, heads, N, d)``.
        key (torch.Tensor): See ``query``.
        value (torch.Tensor): See ``query``.
        visible (torch.Tensor | None): ``(N, N)`` bool, True where a query sees a key; ``None`` for everywhere.
        dropout (float): Probability that an attention weight is dropped. Defaults to ``0.0``.

    Returns:
        torch.Tensor: ``(B, heads, N, d)``.
    """
    if torch.compiler.is_exporting():
        # torch's function would be exported with a guard against queries that see nothing (there are none), and with it
        # runtimes do not recognise the attention. What does not depend on the image stays without a batch.
        return _scores(query, key, visible).softmax(dim=-1) @ value
    query = query.expand_as(key)
    by_hand = query.requires_grad and on_eager_cpu(query) and dropout < 1
    if not by_hand or (dropout == 0 and query.dtype == torch.float32):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=dropout)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # (B, heads, N, N)
    if visible is not None:  # added, which costs nothing in the backward pass
        scores += _additive_mask(visible, scores.dtype)
    weights = scores.softmax(dim=-1)
    if dropout == 0:
        return weights @ value
    weights = weights * keep_mask(weights, dropout)
    return weights @ value * (1 / (1 - dropout))  # scaled here, where there are fewer elements


def _scores(query: torch.Tensor, key: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
    """What softmax makes attention weights of, ``(B, heads, N, N)``."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    return scores if visible is None else scores + _additive_mask(visible, scores.dtype)


def _additive_mask(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``(N, N)``: zero where a query sees a key, minus infinity elsewhere."""
    return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, -math.inf)
