# SPDX-License-Identifier: Apache-2.0
"""What a model would reach that answers every image with the mean features of its category.

A yardstick for how far a training has come: UniAD learns this first. Takes backbone, image size and data from the
recipe of a run and adds its rows to the same file in ``results/``.

    python -m anomalib_uniad.benchmark.mean_image configs/benchmark/industrial-uniad_small.yaml
"""

import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anomalib.cli.cli import AnomalibCLI
from anomalib.data import AnomalibDataModule
from jsonargparse import auto_cli
from torchmetrics.functional.classification import binary_auroc
from tqdm.auto import tqdm

from anomalib_uniad.benchmark.runner import add_rows
from anomalib_uniad.category import categories_of
from anomalib_uniad.metrics.run_files import versions


def mean_image(recipe: Path, output_dir: Path = Path("results")) -> None:
    """Compute mean features per category, and their reconstruction error and AUROC.

    Args:
        recipe: Config for ``anomalib train`` with UniAD.
        output_dir: Folder of the csv file.
    """
    cli = AnomalibCLI(["fit", "--config", str(recipe)], run=False)
    model, datamodule = cli.model.eval(), cli.datamodule
    datamodule.prepare_data()
    datamodule.setup()
    features, categories, _, _ = extract(model, datamodule, datamodule.train_dataloader())
    means = {name: features[categories == name].mean(dim=0) for name in np.unique(categories)}
    errors = {name: (features[categories == name] - mean).square().mean().item() for name, mean in means.items()}
    features, categories, labels, masks = extract(model, datamodule, datamodule.test_dataloader())
    maps = model.model.anomaly_map(torch.stack([means[name] for name in categories]), features)  # (M, 1, H, W)
    scores = model.model.score(maps)
    rows = []
    for name in means:
        of = torch.from_numpy(categories == name)
        row = {"category": name, "image_AUROC": binary_auroc(scores[of], labels[of]).item(), "train_loss": errors[name]}
        if masks is not None:
            row["pixel_AUROC"] = binary_auroc(maps[of].flatten(), masks[of].flatten()).item()
        rows.append(row)
    frame = pd.DataFrame(rows)
    mean = {"category": "mean", **frame.drop(columns="category").mean().to_dict()}
    frame = pd.concat([frame, pd.DataFrame([mean])], ignore_index=True)
    command = shlex.join(["python", "-m", "anomalib_uniad.benchmark.mean_image", *sys.argv[1:]])
    frame = frame.assign(model="mean features", dataset=datamodule.name, epochs=None, seed=None, device="cpu")
    frame.insert(0, "method", "mean image of the category")
    add_rows(output_dir / f"{recipe.stem.split('-')[0]}.csv", frame.assign(versions=versions(), command=command))


def load_trained(recipe: Path, checkpoint: Path) -> tuple[Any, Any, int]:
    """Load a trained UniAD, and the data of its recipe.

    Args:
        recipe: Config for ``anomalib train`` with UniAD.
        checkpoint: What the recipe trained.

    Returns:
        The model, in evaluation mode; the datamodule, set up; and the epochs of the training.
    """
    cli = AnomalibCLI(["fit", "--config", str(recipe)], run=False)
    model, datamodule = type(cli.model).load_from_checkpoint(checkpoint).eval(), cli.datamodule
    datamodule.prepare_data()
    datamodule.setup()
    return model, datamodule, torch.load(checkpoint, map_location="cpu", weights_only=True)["epoch"] + 1


def extract(
    model: Any, datamodule: AnomalibDataModule, dataloader: torch.utils.data.DataLoader
) -> tuple[torch.Tensor, np.ndarray, torch.Tensor, Any]:
    """Extract all images of a dataloader.

    Args:
        model: The Lightning module.
        datamodule: The datamodule, which knows the categories.
        dataloader: One of its dataloaders.

    Returns:
        Features (M, C, h, w), categories (M,), labels (M,), masks (M, H, W) or None if there are none.
    """
    parts: list[tuple] = []
    with torch.no_grad():
        for batch in tqdm(dataloader, desc="Extracting features", unit="batch"):
            images, masks = model.pre_processor.transform(batch.image, batch.gt_mask)
            parts.append(
                (model.model.extract(images), categories_of(batch.image_path, datamodule), batch.gt_label, masks)
            )
    features, names, labels, masks = zip(*parts, strict=True)
    whole = None if masks[0] is None else torch.cat(masks).int()
    return torch.cat(features), np.concatenate(names), torch.cat(labels).int(), whole


if __name__ == "__main__":
    auto_cli(mean_image)
