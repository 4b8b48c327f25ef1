# SPDX-License-Identifier: Apache-2.0
"""Crop, padding and resize of images, the same in training, validation and exported files."""

from collections.abc import Sequence
from typing import Any

import torch
from anomalib.data import AnomalibDataModule, Batch
from anomalib.pre_processing import PreProcessor
from anomalib.pre_processing.utils.spec import transform_to_spec
from anomalib.pre_processing.utils.transform import get_exportable_transform
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torchvision.transforms.v2 import Compose, InterpolationMode, Resize, Transform

from anomalib_uniad.geometry import Geometry
from anomalib_uniad.transforms import CropAndPad, ResizeEach, named, steps_of


class AntialiasedResize(nn.Module):
    """Bilinear resize with antialiasing, as torchvision's, made of matrix products that can be exported.

    When an image shrinks, each new pixel is the mean of all old ones that it covers, weighted by a triangle. ONNX and
    OpenVINO resize without that, and pick single pixels of a large image instead.

    Args:
        geometry (Geometry): Crop, padding and new size; see :class:`CropAndPad`.
    """

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``images`` (B, C, H, W) -> (B, C, h, w).

        Raises:
            ValueError: If the crop does not lie in the images.
        """
        if self.geometry.crop is not None:
            if not torch.compiler.is_exporting():
                self.geometry.check(images.shape[-2:])
            top, left, height, width = self.geometry.crop
            # By index: a slice would have to know whether images are large enough when the file is written.
            images = images.index_select(-2, torch.arange(top, top + height, device=images.device))
            images = images.index_select(-1, torch.arange(left, left + width, device=images.device))
        known = all(isinstance(side, int) for side in images.shape[-2:])  # when the file is written
        if known and images.shape[-2:] == self.geometry.image_size:
            return images  # nothing is left to do when it is used
        # Weights (h, H) and (w, W).
        rows, columns = (self._weights(axis, images) for axis in (-2, -1))
        if known:
            # Channel by channel, as OpenVINO would fuse a product of known size with the normalisation that follows, by
            # channels that it takes for columns.
            return (rows @ (images.flatten(0, -3) @ columns.T)).unflatten(0, images.shape[:-2])
        return rows @ (images @ columns.T)

    def covered(self, images: torch.Tensor) -> torch.Tensor | None:
        """Where the image lies in what :meth:`forward` makes of it.

        Args:
            images (torch.Tensor): ``(B, C, H, W)``.

        Returns:
            torch.Tensor | None: ``(1, 1, h, w)``, false in the padding; ``None`` if there is none.
        """
        if self.geometry.resize_mode == "stretch":
            return None
        size = images.shape[-2:] if self.geometry.crop is None else self.geometry.crop[2:]
        inside = []
        for axis in (-2, -1):
            place = _count(self.geometry.image_size[axis], images)
            before, count = self._inside(axis, size, images)
            inside.append((place >= before) & (place < before + count))
        return (inside[0][:, None] & inside[1])[None, None]

    def _weights(self, axis: int, images: torch.Tensor) -> torch.Tensor:
        """Part of each old pixel in each new one, ``(new, old)``; rows sum to 1, those of the padding repeat."""
        new, old = self.geometry.image_size[axis], images.shape[axis]
        place = _count(new, images)
        scale: Any = old / new  # as a tensor without dimensions it would break the export of dynamic sizes
        if self.geometry.resize_mode == "pad":
            before, size = self._inside(axis, images.shape[-2:], images)
            place, scale = torch.minimum((place - before).clamp(min=0), size - 1), old / size
        centers = (place + 0.5) * scale  # (new,), in old pixels
        pixels = _count(old, images) + 0.5
        reach = torch.clamp(torch.ones_like(centers) * scale, min=1)  # (new,); wider than a pixel if the image shrinks
        weights = (1 - (pixels - centers[:, None]).abs() / reach[:, None]).clamp(min=0)
        return weights / weights.sum(dim=-1, keepdim=True)

    def _inside(self, axis: int, size: Sequence[Any], images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """First new pixel of the image and their number, as :meth:`Geometry.covered`, each ``(new,)``."""
        new, other = self.geometry.image_size[axis], self.geometry.image_size[-3 - axis]
        mine, others = size[axis], size[-3 - axis]
        fitted = (2 * mine * other + others) // (2 * others)  # dynamic, so its limits are put on a tensor
        inside = (torch.ones_like(_count(new, images)) * fitted).clamp(1, new)
        return ((new - inside) / 2).floor(), inside


def _count(number: Any, like: torch.Tensor) -> torch.Tensor:
    return torch.arange(number, device=like.device, dtype=like.dtype)


class AntialiasedPreProcessor(PreProcessor):
    """anomalib's pre-processor, but exported models resize like validation does, from which their thresholds are.

    anomalib switches antialiasing off for exports, which changes the scores of all images that are larger than the
    model's size.

    Batches of a training that bring ``features`` were transformed when these were computed, and are left as they are.
    Images that were brought to the model's size before the batch was made (batches with ``resized``) only go through
    what comes after the resize.

    Args:
        transform (Transform | None): Transform of the images. Defaults to ``None``.
    """

    def __init__(self, transform: Transform | None = None) -> None:
        super().__init__(transform)
        self.export_transform = _antialiased(self.transform, self.export_transform)

    @property
    def geometry(self) -> Geometry | None:
        """Crop, padding and size, if they are those of :class:`CropAndPad`."""
        first = next(iter(steps_of(self.transform)), None)
        return first.geometry if isinstance(first, CropAndPad) else None

    def covered(self, images: torch.Tensor) -> torch.Tensor | None:
        """Where images lie in the model's input: ``(1, 1, h, w)``, false in the padding; ``None`` without padding."""
        first = next(iter(steps_of(self.export_transform)), None)
        return first.covered(images) if isinstance(first, AntialiasedResize) else None

    def checkpoint_config(self) -> dict[str, Any]:
        """Return the transform as plain data; anomalib's format cannot hold :class:`CropAndPad`."""
        geometry = self.geometry
        if geometry is None:
            return super().checkpoint_config()
        return {
            "transform": transform_to_spec(Compose(steps_of(self.transform)[1:])),
            "image_size": list(geometry.image_size),
            "resize_mode": geometry.resize_mode,
            "crop": None if geometry.crop is None else list(geometry.crop),
        }

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Take over the transform of a checkpoint."""
        super().load_checkpoint_config({"transform": config.get("transform")})
        if "resize_mode" in config:
            size, crop = config["image_size"], config["crop"]
            geometry = Geometry((size[0], size[1]), config["resize_mode"], None if crop is None else tuple(crop))
            self.transform = Compose([CropAndPad(geometry), *steps_of(self.transform)])
            self.export_transform = get_exportable_transform(self.transform)
        self.export_transform = _antialiased(self.transform, self.export_transform)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have images cropped and padded one by one, in their own size, by the datamodule."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        own = isinstance(datamodule, AnomalibDataModule) and datamodule.external_collate_fn is None
        if self.geometry is not None and own:
            datamodule.external_collate_fn = ResizeEach(CropAndPad(self.geometry))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the datamodule as it was, for other models."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(getattr(datamodule, "external_collate_fn", None), ResizeEach):
            datamodule.external_collate_fn = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the datamodule as it was, for other models."""
        self.teardown(trainer, pl_module, "")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Transform the images of a batch that brings no features."""
        self._prepare(batch)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Transform the images of a batch that brings no features."""
        self._prepare(batch)

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start

    def _prepare(self, batch: Any) -> None:
        if self.transform is None or getattr(batch, "features", None) is not None:
            return
        if getattr(batch, "resized", False):
            for step in steps_of(self.transform)[1:]:
                batch.image, batch.gt_mask = step(batch.image, batch.gt_mask)
            return
        first = next(iter(getattr(batch, "image_path", None) or []), None)
        batch.image, batch.gt_mask = named(first, self.transform, batch.image, batch.gt_mask)


def _antialiased(transform: Transform | None, exported: Any) -> Any:
    """Put antialiasing back into the resizes of an exported transform that had it."""
    if isinstance(transform, Compose):
        pairs = zip(transform.transforms, exported.transforms, strict=True)
        return Compose([_antialiased(*pair) for pair in pairs])
    if isinstance(transform, CropAndPad):
        return AntialiasedResize(transform.geometry)
    if not isinstance(transform, Resize) or not transform.antialias or transform.max_size is not None:
        return exported
    size: list[int] = list(transform.size or [])
    if InterpolationMode(transform.interpolation) != InterpolationMode.BILINEAR or len(size) != 2:
        return exported
    return AntialiasedResize(Geometry((int(size[0]), int(size[1]))))
