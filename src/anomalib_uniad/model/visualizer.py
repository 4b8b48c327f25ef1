# SPDX-License-Identifier: Apache-2.0
"""anomalib's pictures: of the part that the model sees, of maps that are not normalised, of more than 8 bits."""

from pathlib import Path
from typing import Any

import torch
from anomalib.data import ImageBatch
from anomalib.post_processing import PostProcessor
from anomalib.utils.path import generate_output_filename
from anomalib.visualization import ImageVisualizer

from anomalib_uniad.geometry import Geometry
from anomalib_uniad.image_files import read_image


class HeatmapVisualizer(ImageVisualizer):
    """anomalib's visualizer that shows raw maps relative to their own range, as ``anomalib-uniad predict`` does.

    Maps are raw where the post-processor has not learned how to normalise them. anomalib takes every map as one from 0
    to 1, and values above 1 overflow to any colour. It also reads the images again, and those of more than 8 bits would
    be white: for a model with a ``value_range``, they are read as by the datamodule. And it lays the map over the whole
    image: for a model that crops or pads, pictures show the crop, and no padding.
    """

    def on_test_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        outputs: Any,
        batch: ImageBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the pictures of a batch; predictions come here as well."""
        processor: Any = getattr(pl_module, "post_processor", None)
        normalises = isinstance(processor, PostProcessor) and processor.enable_normalization
        if batch.anomaly_map is not None and not (normalises and not bool(processor.pixel_min.isnan())):
            maps = batch.anomaly_map.float()
            low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
            batch = batch.update(in_place=False, anomaly_map=(maps - low) / (high - low).clamp_min(1e-12))
        geometry, value_range = (getattr(pl_module, name, None) for name in ("geometry", "value_range"))
        if geometry is None and value_range is None:
            super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
            return
        self.output_dir = self.output_dir or Path(trainer.default_root_dir) / "images"
        dataset, category = (getattr(trainer.datamodule, name, None) for name in ("name", "category"))
        for item in batch:
            picture: Any = self.visualize(seen_part(item, geometry, value_range))
            picture.save(generate_output_filename(str(item.image_path), self.output_dir, dataset, category))


def seen_part(item: Any, geometry: Geometry | None, value_range: tuple[float, float] | None = None) -> Any:
    """Read an image again, and cut it, its map and its masks to what the model sees.

    Args:
        item (Any): Item with ``image_path``, and a map and masks of the model's size.
        geometry (Geometry | None): How the image became the model's input; ``None`` if it was stretched.
        value_range (tuple[float, float] | None): As of :func:`~anomalib_uniad.image_files.read_image`.
            Defaults to ``None``.

    Returns:
        Any: The item with the pixels of the file in the crop, and map and masks without padding; without path.
    """
    pixels = read_image(str(item.image_path), value_range)
    cut: dict[str, torch.Tensor] = {}
    if geometry is not None:
        size = pixels.shape[:2]
        seen, covered = geometry.seen(size), geometry.covered(size)
        pixels = pixels[seen.rows, seen.columns].copy()
        values = {name: getattr(item, name, None) for name in ("anomaly_map", "pred_mask", "gt_mask")}
        cut = {name: value[..., covered.rows, covered.columns] for name, value in values.items() if value is not None}
    image = torch.from_numpy(pixels).permute(2, 0, 1) / 255  # (3, H, W)
    return item.update(in_place=False, image=image, image_path=None, **cut)
