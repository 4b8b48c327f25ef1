# SPDX-License-Identifier: Apache-2.0
"""How much of its accuracy an exported model has, as NNCF asks for it."""

from collections.abc import Iterable
from typing import Any

import torch
from anomalib.data import ImageBatch
from torchmetrics import Metric
from torchvision.transforms.v2 import functional as transforms
from torchvision.tv_tensors import Mask

from .export import OUTPUTS
from .quantization_images import Images


def measure(model: Any, batches: Iterable[Images], metric: Metric, images: int) -> tuple[float, list[float]]:
    """Measure a model, and say how it scores each batch, which NNCF compares to find out what layers change.

    Args:
        model (Any): Compiled model.
        batches (Iterable[Images]): Images with labels and masks.
        metric (Metric): What is measured.
        images (int): Number of all validation images.

    Returns:
        tuple[float, list[float]]: The metric and the mean score of each batch. Of one batch out of several, about which
        metrics say little, the score in the place of the metric.
    """
    scores: list[float] = []
    seen = 0
    metric.reset()
    for batch in batches:
        outputs, count = model(batch.input.numpy()), len(batch.items)
        found: dict[str, Any] = {name: torch.tensor(outputs[name])[:count] for name in OUTPUTS if name in outputs}
        masks = [item.gt_mask for item in batch.items]
        if "anomaly_map" in found and all(mask is not None for mask in masks):
            size = list(found["anomaly_map"].shape[-2:])
            found["gt_mask"] = torch.cat([transforms.resize(Mask(mask), size).reshape(1, *size) for mask in masks])
        labels = torch.tensor([bool(item.gt_label) for item in batch.items])
        metric.update(ImageBatch(image=batch.input[:count], gt_label=labels, **found))
        scores.append(float(found["pred_score"].mean()))
        seen += count
    if len(scores) == 1 and seen < images:
        return scores[0], scores
    return float(metric.compute()), scores
