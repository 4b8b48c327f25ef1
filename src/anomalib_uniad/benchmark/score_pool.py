# SPDX-License-Identifier: Apache-2.0
"""What the size of the average pool before the maximum does to the image AUROC of a trained model.

python -m anomalib_uniad.benchmark.score_pool configs/benchmark/industrial-uniad_deep.yaml model.ckpt
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from jsonargparse import auto_cli
from torchmetrics.functional.classification import binary_auroc

from anomalib_uniad.benchmark.mean_image import extract, load_trained
from anomalib_uniad.benchmark.runner import add_rows
from anomalib_uniad.metrics.run_files import versions
from anomalib_uniad.model.anomaly_map import AnomalyScore


def score_pool(
    recipe: Path, checkpoint: Path, sizes: Sequence[int] = (1, 8, 16, 32, 48, 64), output_dir: Path = Path("results")
) -> None:
    """Compute image AUROC per category for several sizes of the pool; writes ``score_pool.csv``.

    Args:
        recipe: Config for ``anomalib train`` with UniAD.
        checkpoint: What the recipe trained.
        sizes: Sides of the pool, in pixels.
        output_dir: Folder of the csv file.
    """
    model, datamodule, epochs = load_trained(recipe, checkpoint)
    features, categories, labels, _ = extract(model, datamodule, datamodule.test_dataloader())
    with torch.no_grad():
        maps = model.model.predict(features).anomaly_map
    rows = []
    for size in sizes:
        scores = AnomalyScore("max", size)(maps)
        for name in dict.fromkeys(categories):
            of = torch.from_numpy(categories == name)
            rows.append({"size": size, "category": name, "image_AUROC": binary_auroc(scores[of], labels[of]).item()})
    frame = pd.DataFrame(rows)
    command = shlex.join(["python", "-m", "anomalib_uniad.benchmark.score_pool", str(recipe), "model.ckpt"])
    frame = frame.assign(epochs=epochs, seed=model.seed, device="cpu", versions=versions(), command=command)
    add_rows(output_dir / "score_pool.csv", frame, ("size", "seed"))


if __name__ == "__main__":
    auto_cli(score_pool)
