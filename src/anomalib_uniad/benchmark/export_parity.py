# SPDX-License-Identifier: Apache-2.0
"""Exported maps against those of torch, at the paper's size, for several image sizes, paddings and batches.

    python -m anomalib_uniad.benchmark.export_parity

The models have random weights, as differences of rounding do not depend on what was learned.
"""

import itertools
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jsonargparse import auto_cli
from rich.progress import track

from anomalib_uniad import UniAD
from anomalib_uniad.benchmark.runner import add_rows
from anomalib_uniad.metrics.run_files import versions
from anomalib_uniad.model.components import NeighborMaskedAttention


def export_parity(
    backbone: str = "tf_efficientnet_b4",
    image_sizes: Sequence[int] = (224, 256, 448),
    padding_modes: Sequence[Literal["zeros", "reflect"]] = ("zeros", "reflect"),
    batches: Sequence[int] = (1, 8),
    output_dir: Path = Path("results"),
) -> None:
    """Export models with random weights to OpenVINO f32, and compare maps and scores with torch's.

    Rows of the same backbone, size, padding and batch are replaced in ``export_parity.csv``.

    Args:
        backbone: The backbone's name in timm; its first four maps are used.
        image_sizes: Sides of the images, in pixels.
        padding_modes: What the backbone's convolutions pad with.
        batches: Images per batch.
        output_dir: Folder of the csv file.
    """
    command = shlex.join(["python", "-m", "anomalib_uniad.benchmark.export_parity", *sys.argv[1:]])
    cases = list(itertools.product(image_sizes, padding_modes))
    for size, mode in track(cases, description="Exporting"):
        model = UniAD(
            backbone=backbone,
            pre_trained=False,
            image_size=size,
            backbone_padding_mode=mode,
            seed=0,
            evaluator=False,
            post_processor=False,  # nothing is normalised or cut off
        )
        rows = pd.DataFrame(compare(model.eval(), batches)).assign(
            backbone=backbone,
            image_size=size,
            padding=mode,
            seed=0,
            device="cpu",
            versions=versions(),
            command=command,
        )
        add_rows(output_dir / "export_parity.csv", rows, ("backbone", "image_size", "padding", "batch"))


def compare(model: UniAD, batches: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Rows for a model, one per batch: largest differences, as parts of the range of torch's map.

    Args:
        model: The model, in evaluation mode, without post-processor.
        batches: Images per batch.

    Yields:
        dict[str, Any]: ``masked`` is the number of attentions in the file that have a mask, ``without_mask`` by how
        much the map would differ if torch's model had none.
    """
    import openvino

    size = model.model.image_size
    with tempfile.TemporaryDirectory() as folder:
        read = openvino.Core().read_model(model.to_openvino(folder))
        masked = sum(op.get_type_name() == "ScaledDotProductAttention" and _has_mask(op) for op in read.get_ops())
        compiled = openvino.Core().compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        for batch in batches:
            images = torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(batch))
            with torch.no_grad():
                expected = model(images)
                unmasked = _without_mask(model, images)
            outputs = compiled(images.numpy())
            span = float(expected.anomaly_map.max() - expected.anomaly_map.min())
            yield {
                "batch": batch,
                "map": _largest(outputs["anomaly_map"], expected.anomaly_map) / span,
                "score": _largest(outputs["pred_score"], expected.pred_score) / span,
                "masked": masked,
                "without_mask": _largest(unmasked.numpy(), expected.anomaly_map) / span,
            }
        del read, compiled  # they read from the folder


def _has_mask(attention: Any) -> bool:
    """Whether the mask is a constant that hides something."""
    if attention.get_input_size() < 4:
        return False
    mask = attention.input_value(3).get_node()
    return mask.get_type_name() == "Constant" and bool(np.isneginf(mask.get_data()).any())


def _without_mask(model: UniAD, images: torch.Tensor) -> torch.Tensor:
    """The map of a model if nothing is hidden from its tokens."""
    attentions = [module for module in model.modules() if isinstance(module, NeighborMaskedAttention)]
    masks = [(module, module.visible) for module in attentions]
    for module in attentions:
        module.visible = None
    try:
        anomaly_map: torch.Tensor = model(images).anomaly_map
        return anomaly_map
    finally:
        for module, mask in masks:
            module.visible = mask


def _largest(found: np.ndarray, expected: torch.Tensor) -> float:
    return float(np.abs(found - expected.numpy()).max())


if __name__ == "__main__":
    auto_cli(export_parity)
