# SPDX-License-Identifier: Apache-2.0
"""Tiles of a large image: cut, laid side by side as features, and joined again as maps."""

import torch
from torch import nn

from anomalib_uniad.checks import check_at_least
from anomalib_uniad.errors import InputError


class Tiles(nn.Module):
    """Cuts images into overlapping tiles, and knows how maps of the tiles are joined.

    In between, the grids of all tiles of an image lie side by side, so that there is one tensor per image: a mosaic,
    in which each tile keeps its own tokens, also of what overlaps.

    Args:
        tile_size (tuple[int, int]): Height ``t`` and width ``u`` of a tile, in pixels.
        grid_size (tuple[int, int]): Height ``h`` and width ``w`` of its token grid.
        count (tuple[int, int]): Rows ``R`` and columns ``S`` of tiles.
        overlap (float): Part of a tile that it shares with the next one, from 0 to 0.5.

    Attributes:
        image_size (tuple[int, int]): Height ``H`` and width ``W`` of the image that the tiles make.
        rows (torch.Tensor): ``(H, R * h)``: values of tokens (B, 1, R * h, S * w) become a map (B, 1, H, W) as
            ``rows @ values @ columns.T``. Each tile is upsampled alone, bilinear, ``align_corners=True``; where tiles
            overlap, the weight of each falls linearly to its end.
        columns (torch.Tensor): ``(W, S * w)``.

    Raises:
        ValueError: If ``count`` or ``overlap`` is out of its range.

    Examples:
        >>> tiles = Tiles((64, 64), (4, 4), (1, 3), overlap=0.25)
        >>> tiles.image_size
        (64, 160)
        >>> tuple(tiles.cut(torch.zeros(2, 3, 64, 160)).shape)
        (6, 3, 64, 64)
    """

    rows: torch.Tensor
    columns: torch.Tensor

    def __init__(
        self, tile_size: tuple[int, int], grid_size: tuple[int, int], count: tuple[int, int], overlap: float
    ) -> None:
        super().__init__()
        self.image_size = size_of_tiles(tile_size, count, overlap)
        self.tile_size = tile_size
        self.count = count
        self.overlap = overlap
        self.steps = [_step(side, overlap) for side in tile_size]
        axes = zip(tile_size, grid_size, count, self.steps, strict=True)
        rows, columns = (_joining(*axis) for axis in axes)
        self.register_buffer("rows", rows, persistent=False)  # (H, R * h)
        self.register_buffer("columns", columns, persistent=False)  # (W, S * w)

    def extra_repr(self) -> str:
        """Sizes, for whoever describes the model, as the feature cache does."""
        return f"tile_size={self.tile_size}, count={self.count}, overlap={self.overlap}"

    def cut(self, images: torch.Tensor) -> torch.Tensor:
        """``images`` (B, C, H, W) -> tiles (B * R * S, C, t, u), row by row."""
        (height, width), (row, column) = self.tile_size, self.steps
        tiles = [
            images[..., y * row : y * row + height, x * column : x * column + width]
            for y in range(self.count[0])
            for x in range(self.count[1])
        ]
        return torch.stack(tiles, dim=1).flatten(0, 1)

    def mosaic(self, tiles: torch.Tensor) -> torch.Tensor:
        """Grids of tiles (B * R * S, C, h, w) -> side by side (B, C, R * h, S * w)."""
        grids = tiles.unflatten(0, (-1, *self.count))  # (B, R, S, C, h, w)
        return grids.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)

    def apart(self, mosaic: torch.Tensor) -> torch.Tensor:
        """Grids side by side (B, C, R * h, S * w) -> of each tile (B * R * S, C, h, w)."""
        rows, columns = self.count
        grids = mosaic.unflatten(3, (columns, -1)).unflatten(2, (rows, -1))  # (B, C, R, h, S, w)
        return grids.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def size_of_tiles(tile_size: tuple[int, int], count: tuple[int, int], overlap: float) -> tuple[int, int]:
    """Height and width of what tiles make together; arguments and errors as of :class:`Tiles`."""
    check_at_least("tiles", min(count), 1)
    if not 0 <= overlap <= 0.5:
        raise InputError(f"tile_overlap must lie in [0, 0.5], got {overlap}.")
    height, width = ((n - 1) * _step(side, overlap) + side for n, side in zip(count, tile_size, strict=True))
    return height, width


def upsampling(pixels: int, tokens: int) -> torch.Tensor:
    """Part of each token in each pixel along one axis: bilinear, ``align_corners=True``.

    Args:
        pixels (int): Pixels of the axis.
        tokens (int): Tokens of the axis.

    Returns:
        torch.Tensor: ``(pixels, tokens)``; rows sum to 1.

    Examples:
        >>> upsampling(3, 2)
        tensor([[1.0000, 0.0000],
                [0.5000, 0.5000],
                [0.0000, 1.0000]])
    """
    place = torch.linspace(0, tokens - 1, pixels)[:, None]  # of a pixel, in tokens
    return (1 - (place - torch.arange(tokens)).abs()).clamp(min=0)


def _step(side: int, overlap: float) -> int:
    return side - round(side * overlap)


def _joining(side: int, grid: int, count: int, step: int) -> torch.Tensor:
    """Part of each token of all tiles in each pixel along one axis, ``((count - 1) * step + side, count * grid)``."""
    pixels, shared = torch.arange(side) + 0.5, max(side - step, 1)
    before, after = (pixels / shared).clamp(max=1), ((side - pixels) / shared).clamp(max=1)
    joined = torch.zeros((count - 1) * step + side, count, grid)
    for tile in range(count):
        weight = torch.ones(side)
        weight = weight * before if tile else weight
        weight = weight * after if tile < count - 1 else weight
        joined[tile * step : tile * step + side, tile] = weight[:, None] * upsampling(side, grid)
    total = joined.sum(dim=(1, 2), keepdim=True)
    return (joined / total).flatten(1)
