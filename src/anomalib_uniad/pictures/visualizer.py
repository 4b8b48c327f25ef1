# SPDX-License-Identifier: Apache-2.0
"""The picture of each image of a test or prediction."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.data import ImageBatch
from anomalib.post_processing import PostProcessor
from anomalib.utils.path import generate_output_filename
from anomalib.visualization import Visualizer
from PIL import Image

from anomalib_uniad.files import save_picture
from anomalib_uniad.geometry import Geometry
from anomalib_uniad.image_files import read_image
from anomalib_uniad.inference.heatmap import draw_inspection, map_to_image, outlined
from anomalib_uniad.inference.inspection import Inspection, Word

LONGEST = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}  # pixels of a side


class HeatmapVisualizer(Visualizer):
    """Writes a picture of each image, as large as its file: on the left with the outline of its mask, if it has one.

    On the right is what :func:`~anomalib_uniad.inference.heatmap.draw_inspection` draws, as in ``anomalib-uniad
    predict``. Maps that are not normalised, as of a model that was never validated, are shown relative to their own
    range. Pixels are those that the model was given, also of images of more than 8 bits.

    Args:
        output_dir (Path | None): Folder of the pictures. Defaults to ``None``, ``images`` in the folder of the run.
    """

    def __init__(self, output_dir: Path | None = None) -> None:
        super().__init__()
        self.output_dir = output_dir
        self._root: Path | None = None  # of the images that are predicted

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        """Look where the images are, if no datamodule names them: the last folder that all share is kept."""
        loaders = trainer.predict_dataloaders
        sets = [loader.dataset for loader in (loaders if isinstance(loaders, list) else [loaders])]
        folders = [Path(file).parent for part in sets for file in getattr(part, "image_filenames", ())]
        self._root = Path(os.path.commonpath(folders)).parent if folders else None

    def on_test_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        outputs: Any,
        batch: ImageBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the pictures of a batch."""
        output = self.output_dir or Path(trainer.default_root_dir) / "images"
        dataset, category = (getattr(trainer.datamodule, name, None) for name in ("name", "category"))
        geometry, value_range = (getattr(pl_module, name, None) for name in ("geometry", "value_range"))
        processor: Any = getattr(pl_module, "post_processor", None)
        normalises = isinstance(processor, PostProcessor) and processor.enable_normalization
        normalised = normalises and not bool(processor.pixel_min.isnan())
        threshold = float(processor.normalized_pixel_threshold) if normalised else None
        products: list[str] | None = getattr(outputs, "product", None)
        for row, path in enumerate(batch.image_path or []):
            pixels = read_image(str(path), value_range)
            product = None if products is None else products[row]
            inspection = _inspection(batch, row, pixels.shape[:2], geometry, threshold, product)
            truth = None if batch.gt_mask is None else _placed(batch.gt_mask[row], pixels.shape[:2], geometry) > 0.5
            picture = side_by_side(pixels, truth, draw_inspection(pixels, inspection))
            file = generate_output_filename(str(path), output, dataset, category)
            if self._root is not None and Path(path).is_relative_to(self._root):
                file = output / Path(path).relative_to(self._root)
                file.parent.mkdir(parents=True, exist_ok=True)
            if max(picture.size) > LONGEST.get(file.suffix.lower(), math.inf):
                file = file.with_name(f"{file.name}.png")
            save_picture(picture, file)

    on_predict_batch_end = on_test_batch_end


def _inspection(
    batch: Any, row: int, size: tuple[int, int], geometry: Geometry | None, threshold: float | None, product: str | None
) -> Inspection:
    """What a batch says about one of its images."""
    label, score = batch.pred_label, batch.pred_score
    decision: Word = "undecided"
    if product == "":
        decision = "unknown"
    elif label is not None and label.dtype == torch.bool:
        decision = "anomalous" if bool(label[row]) else "normal"
    values = None
    if batch.anomaly_map is not None:
        values = (relative_map if threshold is None else _placed)(batch.anomaly_map[row], size, geometry)
    mask = None if batch.pred_mask is None else _placed(batch.pred_mask[row], size, geometry) > 0.5
    number = None if score is None else float(score[row])
    return Inspection(decision, product or "", number, None, None, values, mask, map_threshold=threshold)


def relative_map(values: torch.Tensor, size: tuple[int, int], geometry: Geometry | None) -> np.ndarray:
    """A map that is not normalised, ``(1, h, w)``, as it lies on the image ``(H, W)``, from 0 to 1 over its range.

    Args:
        values (torch.Tensor): The map.
        size (tuple[int, int]): Height and width of the image.
        geometry (Geometry | None): How the image became the model's input; ``None`` if it was stretched.
    """
    placed = _placed(values, size, geometry)
    low, high = np.nanmin(placed), np.nanmax(placed)
    return (placed - low) / max(high - low, 1e-12)


def _placed(values: torch.Tensor, size: tuple[int, int], geometry: Geometry | None) -> np.ndarray:
    """A map or mask of the model's size, as it lies on the image ``(H, W)``; NaN where the model does not look."""
    return map_to_image(values.float().cpu().numpy().reshape(values.shape[-2:]), size, geometry)


def side_by_side(pixels: np.ndarray, truth: np.ndarray | None, drawn: Image.Image) -> Image.Image:
    """An image ``(H, W, 3)``, from 0 to 255, with the outline of its mask ``(H, W)``, beside what was drawn of it."""
    shown = np.ascontiguousarray(pixels.round().clip(0, 255).astype(np.uint8))
    if truth is not None:
        shown = outlined(shown, truth, (230, 30, 40), max(1, round(min(shown.shape[:2]) / 200)))
    picture = Image.new("RGB", (2 * drawn.width, drawn.height), "white")
    picture.paste(Image.fromarray(shown))
    picture.paste(drawn, (drawn.width, 0))
    return picture
