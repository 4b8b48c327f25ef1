# SPDX-License-Identifier: Apache-2.0
"""What rounding cached features to float16 does to the metrics of a trained model.

The weights are the same on both sides: two trainings that differ in nothing but rounding drift apart as two seeds do.

    python -m anomalib_uniad.benchmark.float16_features configs/benchmark/recipe-fast.yaml model.ckpt
"""

import shlex
from pathlib import Path

import pandas as pd
import torch
from jsonargparse import auto_cli
from torchmetrics.functional.classification import binary_auroc

from anomalib_uniad.benchmark.mean_image import extract, load_trained
from anomalib_uniad.benchmark.runner import add_rows
from anomalib_uniad.metrics.run_files import versions


def float16_features(recipe: Path, checkpoint: Path, output_dir: Path = Path("results")) -> None:
    """Compute AUROC per category from features in float32 and in float16.

    Args:
        recipe: Config for ``anomalib train`` with UniAD.
        checkpoint: What the recipe trained.
        output_dir: Folder of the csv file.
    """
    model, datamodule, epochs = load_trained(recipe, checkpoint)
    features, categories, labels, masks = extract(model, datamodule, datamodule.test_dataloader())
    rows = []
    for dtype in (torch.float32, torch.float16):
        with torch.no_grad():
            predictions = model.model.predict(features.to(dtype).float())
        scores, maps = predictions.pred_score, predictions.anomaly_map
        for name in dict.fromkeys(categories):
            of = torch.from_numpy(categories == name)
            image = binary_auroc(scores[of], labels[of]).item()
            pixel = binary_auroc(maps[of].flatten(), masks[of].flatten()).item()
            rows.append({"method": str(dtype), "category": name, "image_AUROC": image, "pixel_AUROC": pixel})
    frame = pd.DataFrame(rows)
    command = shlex.join(["python", "-m", "anomalib_uniad.benchmark.float16_features", str(recipe), "model.ckpt"])
    frame = frame.assign(epochs=epochs, seed=model.seed, device="cpu", versions=versions(), command=command)
    for _, part in frame.groupby("method", sort=False):
        add_rows(output_dir / "float16_features.csv", part)


if __name__ == "__main__":
    auto_cli(float16_features)
