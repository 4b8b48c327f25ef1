# SPDX-License-Identifier: Apache-2.0
"""What the training is compared with: UniAD in a plain loop, without anything that saves time.

Each step decodes the images, runs the whole backbone, builds the neighbor mask in Python and asks for attention
weights that nobody looks at, as research code does. It computes the same as the package's model.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from anomalib_uniad.model.components import LearnedPosition


class ImageFiles(Dataset):
    """Images that are decoded, resized and normalised whenever they are asked for: ``(3, size, size)``."""

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self.paths, self.size = list(paths), size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.paths[index]) as file:
            image = file.convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
        mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
        return (pixels - mean[:, None, None]) / std[:, None, None]


def loop_mask(height: int, width: int, window: int) -> torch.Tensor:
    """The neighbor mask, token by token: ``(N, N)``, minus infinity where a token may not look, else 0."""
    mask = torch.zeros(height * width, height * width)
    reach = window // 2
    for y in range(height):
        for x in range(width):
            hidden = torch.zeros(height, width)
            for near_y in range(max(y - reach, 0), min(y + reach + 1, height)):
                for near_x in range(max(x - reach, 0), min(x + reach + 1, width)):
                    hidden[near_y, near_x] = float("-inf")
            mask[y * width + x] = hidden.flatten()
    return mask


class PlainLayer(nn.Module):
    """A layer of the encoder (one attention) or of the decoder (a learned query and two). Tokens are ``(N, B, D)``."""

    def __init__(self, tokens: int, attentions: int, dim: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(tokens, dim)) if attentions == 2 else None
        self.attentions = nn.ModuleList(nn.MultiheadAttention(dim, heads, dropout) for _ in range(attentions))
        self.feedforward = nn.Sequential(nn.Linear(dim, inner), nn.ReLU(), nn.Dropout(dropout), nn.Linear(inner, dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(attentions + 1))
        self.dropout = nn.Dropout(dropout)

    def forward(self, sources: Sequence[torch.Tensor], mask: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        x = sources[0] if self.query is None else self.query[:, None].repeat(1, sources[0].shape[1], 1)
        for attention, norm, source in zip(self.attentions, self.norms, sources, strict=False):
            x = norm(x + self.dropout(attention(x + position, source + position, source, attn_mask=mask)[0]))
        return self.norms[-1](x + self.dropout(self.feedforward(x)))


class PlainTransformer(nn.Module):
    """UniAD's transformer from torch's own parts; its parameters are in the order of the package's."""

    def __init__(
        self,
        channels: int,
        grid: tuple[int, int],
        dim: int = 256,
        heads: int = 8,
        layers: int = 4,
        inner: int = 1024,
        dropout: float = 0.1,
        window: int = 7,
    ) -> None:
        super().__init__()
        self.grid, self.window = grid, window
        tokens = grid[0] * grid[1]
        self.input_projection = nn.Linear(channels, dim)
        self.position = LearnedPosition(grid, dim)
        self.encoder = nn.ModuleList(PlainLayer(tokens, 1, dim, heads, inner, dropout) for _ in range(layers))
        self.decoder = nn.ModuleList(PlainLayer(tokens, 2, dim, heads, inner, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.output_projection = nn.Linear(dim, channels)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """``tokens`` (B, N, C) -> their reconstruction (B, N, C)."""
        mask = loop_mask(*self.grid, self.window).to(tokens.device)
        position = self.position()[:, None]  # (N, 1, D)
        memory = self.input_projection(tokens).transpose(0, 1)  # (N, B, D)
        for layer in self.encoder:
            memory = layer([memory], mask, position)
        x = memory
        for layer in self.decoder:
            x = layer([memory, x], mask, position)
        return self.output_projection(self.norm(x).transpose(0, 1))


def plain_loop(
    paths: Sequence[Path],
    device: torch.device,
    batch_size: int,
    num_workers: int,
    backbone: str = "tf_efficientnet_b4",
    image_size: int = 224,
    **transformer: Any,
) -> Iterator[float]:
    """Train for one epoch: read, embed, jitter, reconstruct, update; yields the loss of each step."""
    grid = (image_size // 16, image_size // 16)
    extractor: Any = timm.create_model(backbone, pretrained=False, features_only=True).to(device).eval()
    model = PlainTransformer(sum(extractor.feature_info.channels()[:4]), grid, **transformer).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4, fused=False)
    for images in DataLoader(ImageFiles(paths, image_size), batch_size, shuffle=True, num_workers=num_workers):
        with torch.no_grad():
            maps = extractor(images.to(device))[:4]
            resized = [F.interpolate(x, grid, mode="bilinear", align_corners=True) for x in maps]
            target = torch.cat(resized, dim=1).flatten(2).transpose(1, 2)  # (B, N, C)
        strength = 20 * target.norm(dim=-1, keepdim=True) / target.shape[-1]
        loss = F.mse_loss(model(target + torch.randn_like(target) * strength), target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        yield loss.item()
