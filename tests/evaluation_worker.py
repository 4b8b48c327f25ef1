# SPDX-License-Identifier: Apache-2.0
"""Tests made-up predictions with a number of processes, through Lightning; leaves its files in a folder.

Usage: ``python evaluation_worker.py <processes> <folder>``.
"""

import sys
from pathlib import Path

import torch
from anomalib.data import ImageBatch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from anomalib_uniad.metrics import PerCategoryEvaluator, standard_metrics
from anomalib_uniad.metrics.batches import select
from replay import Replay, mixed


def join(images: list[ImageBatch]) -> ImageBatch:
    """Make one batch of several."""
    names = ("image", "gt_label", "gt_mask", "pred_score", "pred_label", "anomaly_map", "pred_mask")
    joined = {name: torch.cat([getattr(image, name) for image in images]) for name in names}
    return ImageBatch(**joined, image_path=[path for image in images for path in image.image_path])


def main(processes: int, folder: Path) -> None:
    """Test 39 images, of which 2 processes have 20 each, one of them twice."""
    images = [select(batch, [row]) for batch in [*mixed(3.0), *mixed(3.0)[:1]] for row in range(len(batch))]
    images = images[:39]
    for number, image in enumerate(images):
        image.image_path = [image.image_path[0].replace(".png", f"_{number}.png")]
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    evaluator = PerCategoryEvaluator(val_metrics=standard_metrics())
    model = Replay(evaluator)
    loader = DataLoader(images, batch_size=4, collate_fn=join)
    trainer.validate(model, loader, verbose=False)
    trainer.test(model, loader, verbose=False)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
