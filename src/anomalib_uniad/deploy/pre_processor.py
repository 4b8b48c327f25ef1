# SPDX-License-Identifier: Apache-2.0
"""A pre-processor whose exported resize is that of validation, and which leaves cached features alone."""

from typing import Any

import torch
from anomalib.data import Batch
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torchvision.transforms.v2 import Compose, InterpolationMode, Resize, Transform


class AntialiasedResize(nn.Module):
    """Bilinear resize with antialiasing, as torchvision's, made of matrix products that can be exported.

    When an image shrinks, each new pixel is the mean of all old ones that it covers, weighted by a triangle. ONNX and
    OpenVINO resize without that, and pick single pixels of a large image instead.

    Args:
        size (tuple[int, int]): New height and width.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``images`` (B, C, H, W) -> (B, C, *size)."""
        if all(isinstance(side, int) for side in images.shape[-2:]) and images.shape[-2:] == self.size:
            return images  # known when the file is written: nothing is left to do when it is used
        rows = self._weights(self.size[0], images.shape[-2], images)  # (h, H)
        columns = self._weights(self.size[1], images.shape[-1], images)  # (w, W)
        return rows @ (images @ columns.T)

    @staticmethod
    def _weights(new: int, old: int, images: torch.Tensor) -> torch.Tensor:
        """Part of each old pixel in each new one, ``(new, old)``; rows sum to 1."""
        scale = old / new  # a tensor would break the export of dynamic sizes
        centers = (torch.arange(new, device=images.device, dtype=images.dtype) + 0.5) * scale  # in old pixels
        pixels = torch.arange(old, device=images.device, dtype=images.dtype) + 0.5
        reach = torch.clamp(torch.ones_like(centers) * scale, min=1)  # (new,); wider than a pixel if the image shrinks
        weights = (1 - (pixels - centers[:, None]).abs() / reach[:, None]).clamp(min=0)
        return weights / weights.sum(dim=-1, keepdim=True)


class AntialiasedPreProcessor(PreProcessor):
    """anomalib's pre-processor, but exported models resize like validation does, from which their thresholds are.

    anomalib switches antialiasing off for exports, which changes the scores of all images that are larger than the
    model's size.

    Batches of a training that bring ``features`` were transformed when these were computed, and are left as they are.

    Args:
        transform (Transform | None): Transform of the images. Defaults to ``None``.
    """

    def __init__(self, transform: Transform | None = None) -> None:
        super().__init__(transform)
        self.export_transform = _antialiased(self.transform, self.export_transform)

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Take over the transform of a checkpoint."""
        super().load_checkpoint_config(config)
        self.export_transform = _antialiased(self.transform, self.export_transform)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Transform the images of a batch that brings no features."""
        if getattr(batch, "features", None) is None:
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Transform the images of a batch that brings no features."""
        del dataloader_idx  # This variable is not used.
        if getattr(batch, "features", None) is None:
            super().on_validation_batch_start(trainer, pl_module, batch, batch_idx)


def _antialiased(transform: Transform | None, exported: Any) -> Any:
    """Put antialiasing back into the resizes of an exported transform that had it."""
    if isinstance(transform, Compose):
        pairs = zip(transform.transforms, exported.transforms, strict=True)
        return Compose([_antialiased(*pair) for pair in pairs])
    if not isinstance(transform, Resize) or not transform.antialias or transform.max_size is not None:
        return exported
    size: list[int] = list(transform.size or [])
    if InterpolationMode(transform.interpolation) != InterpolationMode.BILINEAR or len(size) != 2:
        return exported
    return AntialiasedResize((int(size[0]), int(size[1])))
