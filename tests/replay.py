# SPDX-License-Identifier: Apache-2.0
"""Made-up predictions, and a model that replays them through Lightning."""

import numpy as np
import torch
from anomalib.data import ImageBatch
from anomalib.post_processing import PostProcessor
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

METRICS = (
    *("image_AUROC", "image_AP", "image_F1Max", "image_TPR@FPR2", "image_TPR@FPR5"),
    *("pixel_AUROC", "pixel_AP", "pixel_F1Max", "pixel_AUPRO"),
    *("image_F1Score", "pixel_F1Score"),
)
"""What a test reports by default."""


def make_batch(categories, labels, seed=0, masks=True, scale=1.0) -> ImageBatch:
    """Make a batch of random predictions for images (3, 8, 8) of the given categories and labels."""
    generator = torch.Generator().manual_seed(seed)
    count = len(labels)
    mask = torch.zeros(count, 8, 8, dtype=torch.bool)
    mask[torch.tensor(labels, dtype=torch.bool), 2:5, 2:5] = True
    score = torch.rand(count, generator=generator) * scale
    maps = torch.rand(count, 8, 8, generator=generator) * scale
    return ImageBatch(
        image=torch.zeros(count, 3, 8, 8),
        image_path=[f"/d/{name}/test/x/{seed}_{row}.png" for row, name in enumerate(categories)],
        gt_label=torch.tensor(labels),
        gt_mask=mask if masks else None,
        pred_score=score,
        pred_label=score > scale / 2,
        anomaly_map=maps,
        pred_mask=maps > scale / 2,
    )


def mixed(scale=1.0) -> list[ImageBatch]:
    """Make 6 batches in which categories and labels are mixed; with a single image and a single category too."""
    rng = np.random.default_rng(0)
    batches = [
        make_batch(rng.choice(["a", "b", "c"], 9), rng.integers(0, 2, 9).tolist(), seed, scale=scale)
        for seed in range(4)
    ]
    return [*batches, make_batch(["a"], [1], 8, scale=scale), make_batch(["b"] * 4, [0, 1, 1, 0], 9, scale=scale)]


def post_processor(image=(2.0, 1.0, 5.0), pixel=(3.0, 0.0, 6.0), **arguments) -> PostProcessor:
    """Make one that has learned (threshold, minimum, maximum)."""
    made = PostProcessor(**arguments)
    for level, values in (("image", image), ("pixel", pixel)):
        for name, value in zip((f"_{level}_threshold", f"{level}_min", f"{level}_max"), values, strict=True):
            getattr(made, name).fill_(value)
    return made


class Replay(LightningModule):
    """A model that returns the batches as they come, with an evaluator as anomalib's models have it."""

    def __init__(self, evaluator) -> None:
        super().__init__()
        self.evaluator = evaluator
        self.layer = torch.nn.Linear(1, 1)

    def configure_callbacks(self):
        return [self.evaluator]

    def validation_step(self, batch, batch_idx):
        return batch

    def test_step(self, batch, batch_idx):
        return batch

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch


def run(evaluator, batches, tmp_path, stage="test", **arguments) -> dict[str, float]:
    if not arguments:
        arguments = dict.fromkeys(
            ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
        )
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, **arguments)
    loader = DataLoader(batches, batch_size=None)
    results = getattr(trainer, stage)(Replay(evaluator), loader, verbose=False)
    return {name: float(value) for name, value in (results[0] or trainer.logged_metrics).items()}
