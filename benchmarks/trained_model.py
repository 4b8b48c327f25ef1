# SPDX-License-Identifier: Apache-2.0
"""What parts of a trained model do, on the test images of its recipe: padding, score, type of cached features.

python benchmarks/trained_model.py border configs/benchmark/border-uniad.yaml zeros.ckpt reflect.ckpt
python benchmarks/trained_model.py score_pool configs/benchmark/industrial-uniad_deep.yaml model.ckpt
python benchmarks/trained_model.py float16_features configs/benchmark/recipe-fast.yaml model.ckpt
python benchmarks/trained_model.py mean_image configs/benchmark/industrial-uniad_small.yaml
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anomalib.cli.cli import AnomalibCLI
from jsonargparse import auto_cli
from torchmetrics.functional.classification import binary_auroc
from tqdm.auto import tqdm

from anomalib_uniad import UniAD
from anomalib_uniad.category import categories_of
from anomalib_uniad.metrics.functional import rank, tpr_at_fpr
from anomalib_uniad.model.anomaly_map import AnomalyScore
from harness import CPU, RESULTS, add_rows, origin, show

Row = dict[str, Any]
AUROC = ("image_AUROC", "pixel_AUROC")
MODES = ("zeros", "reflect")


@dataclass
class Features:
    """All images of a dataloader: features ``(M, C, h, w)``, categories, labels ``(M,)`` and masks ``(M, H, W)``."""

    features: torch.Tensor
    categories: np.ndarray
    labels: torch.Tensor
    masks: torch.Tensor | None

    def of(self, category: str) -> torch.Tensor:
        """Which images are of a category: ``(M,)``."""
        return torch.from_numpy(self.categories == category)

    def auroc(self, scores: torch.Tensor, maps: torch.Tensor | None = None) -> list[Row]:
        """A row for each category: AUROC and TPR@FPR of scores ``(M,)``, pixel AUROC of maps ``(M, 1, H, W)``."""
        rows = []
        for category in dict.fromkeys(self.categories):
            of = self.of(category)
            row: Row = {"category": category, "image_AUROC": binary_auroc(scores[of], self.labels[of]).item()}
            defective, normal = (scores[of][self.labels[of] == label].numpy(force=True) for label in (1, 0))
            for percent in (2, 5):
                row[f"image_TPR@FPR{percent}"] = tpr_at_fpr(rank(defective, normal), percent / 100)
            if maps is not None and self.masks is not None:
                row["pixel_AUROC"] = binary_auroc(maps[of].flatten(), self.masks[of].flatten()).item()
            rows.append(row)
        return rows


def read_recipe(recipe: Path) -> tuple[UniAD, Any]:
    """The untrained model and the datamodule of a config for ``anomalib train``."""
    cli = AnomalibCLI(["fit", "--config", str(recipe)], run=False)
    cli.datamodule.prepare_data()
    cli.datamodule.setup()
    return cli.model.eval(), cli.datamodule


def load(datamodule: Any, checkpoint: Path, **arguments: Any) -> tuple[UniAD, Features, Row]:
    """A trained model with other arguments in place of those of the checkpoint, the test images, epochs and seed."""
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    given = {**content["hyper_parameters"], "pre_trained": False, **arguments}
    model = UniAD(**{**given, "evaluator": False, "visualizer": False, "post_processor": False}).eval()
    network = {key: value for key, value in content["state_dict"].items() if key.startswith("model.")}
    model.load_state_dict(network, strict=False)
    features = extract(model, datamodule, datamodule.test_dataloader())
    return model, features, {"epochs": content["epoch"] + 1, **origin(CPU, model.seed)}


def extract(model: UniAD, datamodule: Any, dataloader: Any) -> Features:
    """Extract the features of all images of a dataloader."""
    parts = []
    with torch.no_grad():
        for batch in tqdm(dataloader, desc="Extracting features", unit="batch"):
            images, masks = model.pre_processor.transform(batch.image, batch.gt_mask)
            names = categories_of(batch.image_path, datamodule)
            parts.append((model.model.extract(images), names, batch.gt_label, masks))
    features, names, labels, masks = zip(*parts, strict=True)
    whole = None if masks[0] is None else torch.cat(masks).int()
    return Features(torch.cat(features), np.concatenate(names), torch.cat(labels).int(), whole)


def mean_image(recipe: Path, output_dir: Path = RESULTS) -> None:
    """What a model would reach that answers every image with the mean features of its category.

    A yardstick for how far a training has come: UniAD learns this first. The rows go to the file of the recipe's runs.

    Args:
        recipe: Config for ``anomalib train`` with UniAD.
        output_dir: Folder of the csv file.
    """
    model, datamodule = read_recipe(recipe)
    train = extract(model, datamodule, datamodule.train_dataloader())
    means = {name: train.features[train.of(name)].mean(dim=0) for name in np.unique(train.categories)}
    errors = {name: (train.features[train.of(name)] - mean).square().mean().item() for name, mean in means.items()}
    test = extract(model, datamodule, datamodule.test_dataloader())
    maps = model.model.anomaly_map(torch.stack([means[name] for name in test.categories]), test.features)
    frame = pd.DataFrame(test.auroc(model.model.score(maps), maps))
    frame["train_loss"] = [errors[name] for name in frame["category"]]
    mean = {"category": "mean", **frame.drop(columns="category").mean().to_dict()}
    frame = pd.concat([frame, pd.DataFrame([mean])], ignore_index=True)
    frame.insert(0, "method", "mean image of the category")
    about = {"model": "mean features", "dataset": datamodule.name, "epochs": None, **origin(CPU, None)}
    path = output_dir / f"{recipe.stem.split('-')[0]}.csv"
    add_rows(path, frame.assign(**about), ("method", "seed"))
    show(path, ("method", "category", *AUROC, "train_loss"))


def score_pool(
    recipe: Path, checkpoint: Path, sizes: Sequence[int] = (1, 8, 16, 32, 48, 64), output_dir: Path = RESULTS
) -> None:
    """Image AUROC per category for several sizes of the average pool before the maximum; writes ``score_pool.csv``.

    Args:
        recipe: Config for ``anomalib train`` with UniAD.
        checkpoint: What the recipe trained.
        sizes: Sides of the pool, in pixels.
        output_dir: Folder of the csv file.
    """
    _, datamodule = read_recipe(recipe)
    model, test, about = load(datamodule, checkpoint)
    with torch.no_grad():
        maps = model.model.predict(test.features).anomaly_map
    rows = [{"size": size, **row, **about} for size in sizes for row in test.auroc(AnomalyScore("max", size)(maps))]
    add_rows(output_dir / "score_pool.csv", rows, ("size", "seed"))
    show(output_dir / "score_pool.csv", ("size", "category", "image_AUROC"))


def float16_features(recipe: Path, checkpoint: Path, output_dir: Path = RESULTS) -> None:
    """AUROC per category from features in float32 and in float16, as caches keep them; ``float16_features.csv``.

    The weights are the same on both sides: two trainings that differ in nothing but rounding drift apart as two seeds
    do.

    Args:
        recipe: Config for ``anomalib train`` with UniAD.
        checkpoint: What the recipe trained.
        output_dir: Folder of the csv file.
    """
    _, datamodule = read_recipe(recipe)
    model, test, about = load(datamodule, checkpoint)
    rows = []
    for dtype in (torch.float32, torch.float16):
        with torch.no_grad():
            predictions = model.model.predict(test.features.to(dtype).float())
        found = test.auroc(predictions.pred_score, predictions.anomaly_map)
        rows += [{"method": str(dtype), **row, **about} for row in found]
    add_rows(output_dir / "float16_features.csv", rows, ("method", "seed"))
    show(output_dir / "float16_features.csv", ("method", "category", *AUROC))


def border(recipe: Path, zeros: Path, reflect: Path, output_dir: Path = RESULTS) -> None:
    """Compare the border of the maps of normal test images with their inside, by the backbone's padding.

    The border is the ring of pixels that are nearer to the edge than one token. The two checkpoints are of the same
    recipe and seed. Each is tested with both paddings, so that rows also tell the effect on the same weights. Writes
    ``border.csv`` and ``border.png``.

    Args:
        recipe: Config for ``anomalib train`` that both were trained with.
        zeros: Checkpoint of the training with backbone_padding_mode zeros.
        reflect: Checkpoint of the training with backbone_padding_mode reflect.
        output_dir: Folder of the files.
    """
    _, datamodule = read_recipe(recipe)
    rows: list[Row] = []
    maps: dict[tuple[str, str], np.ndarray] = {}
    for trained, path in zip(MODES, (zeros, reflect), strict=True):
        for tested in MODES:
            model, test, about = load(datamodule, path, backbone_padding_mode=tested)
            with torch.no_grad():
                prediction = model.model.predict(test.features)
            ring = border_ring(tuple(prediction.anomaly_map.shape[2:]), model.hparams["feature_stride"])
            for row in test.auroc(prediction.pred_score, prediction.anomaly_map):
                normal = prediction.anomaly_map[test.of(row["category"]) & (test.labels == 0), 0]  # (M, H, W)
                at_border, inside = normal[:, ring].mean().item(), normal[:, ~ring].mean().item()
                scores = {"border": at_border, "inside": inside, "ratio": at_border / inside}
                rows.append({"trained_with": trained, "tested_with": tested, **row, **scores, **about})
                if trained == tested:
                    maps[row["category"], tested] = normal.mean(dim=0).numpy()
    add_rows(output_dir / "border.csv", rows, ("trained_with", "tested_with", "category", "seed"))
    draw(maps, output_dir / "border.png")
    show(output_dir / "border.csv", ("trained_with", "tested_with", "category", "ratio", *AUROC))


def border_ring(size: tuple[int, ...], width: int) -> torch.Tensor:
    """Mark the pixels nearer to the edge than a width: (H, W), bool.

    Example:
        >>> border_ring((4, 4), 1).int().sum().item()
        12
    """
    ring = torch.ones(*size, dtype=torch.bool)
    ring[width:-width, width:-width] = False
    return ring


def edge_profile(anomaly_map: np.ndarray) -> np.ndarray:
    """Mean of a map (H, W) over all pixels of the same distance to the edge: (min(H, W) // 2,), from the edge inwards.

    Example:
        >>> edge_profile(np.pad(np.zeros((2, 2)), 1, constant_values=3.0))
        array([3., 0.])
    """
    height, width = anomaly_map.shape
    rows, columns = np.arange(height)[:, None], np.arange(width)[None]
    distance = np.minimum(np.minimum(rows, height - 1 - rows), np.minimum(columns, width - 1 - columns))
    return np.array([anomaly_map[distance == step].mean() for step in range(min(height, width) // 2)])


def draw(maps: dict[tuple[str, str], np.ndarray], path: Path) -> None:
    """Draw the mean map of normal images of each category and padding, and its profile from the edge inwards."""
    from matplotlib.figure import Figure

    categories = list(dict.fromkeys(category for category, _ in maps))
    figure = Figure(figsize=(10, 3 * len(categories)), layout="constrained")
    for axes, category in zip(figure.subplots(len(categories), 3, squeeze=False), categories, strict=True):
        relative = {mode: maps[category, mode] / np.median(maps[category, mode]) for mode in MODES}
        highest = max(map(np.max, relative.values()))
        for place, (mode, values) in zip(axes, relative.items(), strict=False):
            image = place.imshow(values, vmin=0, vmax=highest, cmap="magma")
            place.set(title=f"{category}, {mode}", xticks=[], yticks=[])
            figure.colorbar(image, ax=place, shrink=0.8)
            axes[2].plot(edge_profile(values), label=mode)
        axes[2].set(xlabel="distance to the edge, px", ylabel="mean score / median", ylim=(0, None))
        axes[2].legend()
    figure.suptitle("Mean anomaly map of normal test images, in units of its median")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    auto_cli([border, score_pool, float16_features, mean_image])
