# SPDX-License-Identifier: Apache-2.0
"""anomalib's pictures, also of maps that are not normalised and of images with more than 8 bits."""

from pathlib import Path
from typing import Any

import torch
from anomalib.data import ImageBatch
from anomalib.post_processing import PostProcessor
from anomalib.utils.path import generate_output_filename
from anomalib.visualization import ImageVisualizer

from anomalib_uniad.image_files import read_image


class HeatmapVisualizer(ImageVisualizer):
    """anomalib's visualizer that shows raw maps relative to their own range, as ``anomalib-uniad predict`` does.

    Maps are raw where the post-processor has not learned how to normalise them. anomalib takes every map as one from 0
    to 1, and values above 1 overflow to any colour. It also reads the images again, and those of more than 8 bits would
    be white: for a model with a ``value_range``, they are read as by the datamodule.
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
        value_range = getattr(pl_module, "value_range", None)
        if value_range is None:
            super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
            return
        self.output_dir = self.output_dir or Path(trainer.default_root_dir) / "images"
        dataset, category = (getattr(trainer.datamodule, name, None) for name in ("name", "category"))
        for item in batch:
            path = str(item.image_path)
            pixels = torch.from_numpy(read_image(path, value_range)).permute(2, 0, 1)  # (3, H, W)
            picture: Any = self.visualize(item.update(in_place=False, image=pixels / 255, image_path=None))
            picture.save(generate_output_filename(path, self.output_dir, dataset, category))
