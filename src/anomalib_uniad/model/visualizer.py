# SPDX-License-Identifier: Apache-2.0
"""anomalib's pictures, also of maps that are not normalised."""

from typing import Any

from anomalib.data import ImageBatch
from anomalib.post_processing import PostProcessor
from anomalib.visualization import ImageVisualizer


class HeatmapVisualizer(ImageVisualizer):
    """anomalib's visualizer that shows raw maps relative to their own range, as ``anomalib-uniad predict`` does.

    Maps are raw where the post-processor has not learned how to normalise them. anomalib takes every map as one from 0
    to 1, and values above 1 overflow to any colour.
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
        super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
