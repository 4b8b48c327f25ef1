# SPDX-License-Identifier: Apache-2.0
"""What is compared with: training UniAD with a plain loop, without anything that saves time.

Each step decodes the images, runs the whole backbone, builds the neighbor mask in Python and asks for attention
weights that nobody looks at, as research code does. It computes the same as this package's model.
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

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageFiles(Dataset):
    """Images from files: decoded, resized and normalised whenever they are asked for.

    Args:
        paths (Sequence[Path]): The files.
        size (int): Height and width after resizing, in pixels.
    """

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self.paths = list(paths)
        self.size = size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Read an image: ``(3, size, size)``."""
        with Image.open(self.paths[index]) as file:
            image = file.convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
        return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def loop_mask(grid_size: tuple[int, int], neighbor_size: tuple[int, int]) -> torch.Tensor:
    """Build the neighbor mask token by token: ``(N, N)``, minus infinity where a token may not look, else 0."""
    (height, width), (window_height, window_width) = grid_size, neighbor_size
    mask = torch.zeros(height * width, height * width)
    for y in range(height):
        for x in range(width):
            hidden = torch.zeros(height, width)
            for near_y in range(max(y - window_height // 2, 0), min(y + window_height // 2 + 1, height)):
                for near_x in range(max(x - window_width // 2, 0), min(x + window_width // 2 + 1, width)):
                    hidden[near_y, near_x] = float("-inf")
            mask[y * width + x] = hidden.flatten()
    return mask


def _feedforward(dim: int, inner: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, inner), nn.ReLU(), nn.Dropout(dropout), nn.Linear(inner, dim))


class _EncoderLayer(nn.Module):
    def __init__(self, dim: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(dim, heads, dropout)
        self.feedforward = _feedforward(dim, inner, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout1, self.dropout2 = nn.Dropout(dropout), nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        attended = self.self_attention(x + position, x + position, x, attn_mask=mask)[0]  # (N, B, D), as all here
        x = self.norm1(x + self.dropout1(attended))
        return self.norm2(x + self.dropout2(self.feedforward(x)))


class _DecoderLayer(nn.Module):
    def __init__(self, dim: int, heads: int, inner: int, dropout: float, tokens: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(tokens, dim))
        self.encoder_attention = nn.MultiheadAttention(dim, heads, dropout)
        self.previous_attention = nn.MultiheadAttention(dim, heads, dropout)
        self.feedforward = _feedforward(dim, inner, dropout)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout1, self.dropout2, self.dropout3 = nn.Dropout(dropout), nn.Dropout(dropout), nn.Dropout(dropout)

    def forward(
        self, memory: torch.Tensor, previous: torch.Tensor, mask: torch.Tensor, position: torch.Tensor
    ) -> torch.Tensor:
        query = self.query[:, None].repeat(1, memory.shape[1], 1)
        attended = self.encoder_attention(query + position, memory + position, memory, attn_mask=mask)[0]
        x = self.norm1(query + self.dropout1(attended))
        attended = self.previous_attention(x + position, previous + position, previous, attn_mask=mask)[0]
        x = self.norm2(x + self.dropout2(attended))
        return self.norm3(x + self.dropout3(self.feedforward(x)))


class PlainTransformer(nn.Module):
    """The transformer of UniAD from torch's own parts; parameters have the names of ``ReconstructionTransformer``.

    Args:
        in_channels (int): Channels of the tokens.
        grid_size (tuple[int, int]): Height and width of the token grid.
        hidden_dim (int): Channels inside. Defaults to ``256``.
        num_heads (int): Attention heads. Defaults to ``8``.
        num_layers (int): Layers of the encoder, and of the decoder. Defaults to ``4``.
        feedforward_dim (int): Channels inside the feed-forward parts. Defaults to ``1024``.
        dropout (float): Dropout. Defaults to ``0.1``.
        neighbor_size (tuple[int, int]): Hidden window, in tokens. Defaults to ``(7, 7)``.
    """

    def __init__(
        self,
        in_channels: int,
        grid_size: tuple[int, int],
        hidden_dim: int = 256,
        num_heads: int = 8,
        num_layers: int = 4,
        feedforward_dim: int = 1024,
        dropout: float = 0.1,
        neighbor_size: tuple[int, int] = (7, 7),
    ) -> None:
        super().__init__()
        self.grid_size = grid_size
        self.neighbor_size = neighbor_size
        common = (hidden_dim, num_heads, feedforward_dim, dropout)
        tokens = grid_size[0] * grid_size[1]
        self.input_projection = nn.Linear(in_channels, hidden_dim)
        self.position = LearnedPosition(grid_size, hidden_dim)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(_EncoderLayer(*common) for _ in range(num_layers))
        self.decoder = nn.Module()
        self.decoder.layers = nn.ModuleList(_DecoderLayer(*common, tokens) for _ in range(num_layers))
        self.decoder.norm = nn.LayerNorm(hidden_dim)
        self.output_projection = nn.Linear(hidden_dim, in_channels)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """``tokens`` (B, N, C) -> their reconstruction (B, N, C)."""
        mask = loop_mask(self.grid_size, self.neighbor_size).to(tokens.device)
        position = self.position()[:, None]  # (N, 1, D)
        memory = self.input_projection(tokens).transpose(0, 1)  # (N, B, D)
        for layer in self.encoder.layers:  # type: ignore[union-attr]
            memory = layer(memory, mask, position)
        x = memory
        for layer in self.decoder.layers:  # type: ignore[union-attr]
            x = layer(memory, x, mask, position)
        return self.output_projection(self.decoder.norm(x).transpose(0, 1))  # type: ignore[operator]


class PlainLoop:
    """The loop: read, embed, jitter, reconstruct, update.

    Args:
        paths (Sequence[Path]): Image files.
        device (torch.device): Where to train.
        batch_size (int): Images per step.
        num_workers (int): Processes that read images.
        backbone (str): timm model. Defaults to ``"tf_efficientnet_b4"``.
        image_size (int): Height and width after resizing. Defaults to ``224``.
        **transformer (Any): Arguments of :class:`PlainTransformer`.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        device: torch.device,
        batch_size: int,
        num_workers: int,
        backbone: str = "tf_efficientnet_b4",
        image_size: int = 224,
        **transformer: Any,
    ) -> None:
        self.device = device
        self.grid_size = (image_size // 16, image_size // 16)
        self.backbone = _backbone(backbone)
        channels = sum(self.backbone.feature_info.channels()[:4])
        self.backbone.to(device).eval()
        self.transformer = PlainTransformer(channels, self.grid_size, **transformer).to(device).train()
        parameters = self.transformer.parameters()
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=1e-4, fused=False)
        files = ImageFiles(paths, image_size)
        self.loader = DataLoader(files, batch_size, shuffle=True, num_workers=num_workers)

    def steps(self) -> Iterator[float]:
        """Train for one epoch; yield the loss of each step."""
        for images in self.loader:
            with torch.no_grad():
                maps = self.backbone(images.to(self.device))[:4]
                resized = [F.interpolate(x, self.grid_size, mode="bilinear", align_corners=True) for x in maps]
                target = torch.cat(resized, dim=1).flatten(2).transpose(1, 2)  # (B, N, C)
            strength = 20 * target.norm(dim=-1, keepdim=True) / target.shape[-1]
            loss = F.mse_loss(self.transformer(target + torch.randn_like(target) * strength), target)
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.transformer.parameters(), 0.1)
            self.optimizer.step()
            yield loss.item()


def _backbone(name: str) -> Any:  # with `feature_info`
    return timm.create_model(name, pretrained=False, features_only=True)
