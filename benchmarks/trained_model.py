# SPDX-License-Identifier: Apache-2.0
"""What trained models make of images: features in float16, several scores, half of the images; and the mean image.

python benchmarks/trained_model.py float16_features config.yaml model.ckpt
python benchmarks/trained_model.py image_scores config.yaml '[model.ckpt, another.ckpt]'
python benchmarks/trained_model.py unseen_half '[configs/benchmark/methods.yaml, configs/benchmark/fast.yaml]'
python benchmarks/trained_model.py mean_image configs/benchmark/cifar10-uniad_small.yaml
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anomalib.cli.cli import AnomalibCLI
from jsonargparse import auto_cli
from tqdm.auto import tqdm

from anomalib_uniad import UniAD
from anomalib_uniad.benchmark.config import read_config
from anomalib_uniad.benchmark.expand import expand
from anomalib_uniad.benchmark.trainings import RESULT
from anomalib_uniad.category import categories_of
from anomalib_uniad.metrics.functional import auroc, rank, tpr_at_fpr
from anomalib_uniad.model.anomaly_map import AnomalyScore
from harness import CPU, RESULTS, add_rows, origin, show

Row = dict[str, Any]
AUROC = ("image_AUROC", "pixel_AUROC")


@dataclass
class Features:
    """Images of a dataloader: features ``(M, C, h, w)``, paths, categories, labels ``(M,)`` and masks ``(M, H, W)``."""

    features: torch.Tensor
    paths: Sequence[str]
    categories: np.ndarray
    labels: torch.Tensor
    masks: torch.Tensor | None

    def of(self, category: str) -> torch.Tensor:
        """Which images are of a category: ``(M,)``."""
        return torch.from_numpy(self.categories == category)

    def auroc(
        self, scores: torch.Tensor, maps: torch.Tensor | None = None, kept: torch.Tensor | None = None
    ) -> list[Row]:
        """A row for each category: AUROC and TPR@FPR of scores ``(M,)``, pixel AUROC of maps ``(M, 1, H, W)``.

        Of the images that are ``kept`` ``(M,)``, by default all.
        """
        rows = []
        for category in dict.fromkeys(self.categories):
            of = self.of(category) if kept is None else self.of(category) & kept
            ranking = ranked(scores[of], self.labels[of])
            row: Row = {"category": category, "image_AUROC": auroc(ranking)}
            for percent in (2, 5):
                row[f"image_TPR@FPR{percent}"] = tpr_at_fpr(ranking, percent / 100)
            if maps is not None and self.masks is not None:
                row["pixel_AUROC"] = auroc(ranked(maps[of].flatten(), self.masks[of].flatten()))
            rows.append(row)
        return rows


def ranked(scores: torch.Tensor, labels: torch.Tensor) -> Any:
    """Scores and labels (M,) as the metrics take them: as they are, without a sigmoid that makes large ones equal."""
    return rank(*(scores[labels == label].numpy(force=True) for label in (1, 0)))


def read_recipe(recipe: Path) -> tuple[UniAD, Any]:
    """The untrained model and the datamodule of a config for ``anomalib train``."""
    cli = AnomalibCLI(["fit", "--config", str(recipe)], run=False)
    cli.datamodule.prepare_data()
    cli.datamodule.setup()
    return cli.model.eval(), cli.datamodule


def load(checkpoint: Path) -> tuple[UniAD, Row]:
    """A trained model, its epochs and seed."""
    without = {"evaluator": False, "visualizer": False, "post_processor": False}
    model = UniAD.load_from_checkpoint(checkpoint, strict=False, **without).eval()
    return model, {"epochs": model.training_summary.get("epochs"), **origin(CPU, model.seed)}


def extract(model: UniAD, datamodule: Any, dataloader: Any) -> Features:
    """Extract the features of all images of a dataloader."""
    parts = []
    with torch.no_grad():
        for batch in tqdm(dataloader, desc="Extracting features", unit="batch"):
            images, masks = model.pre_processor.transform(batch.image, batch.gt_mask)
            names = categories_of(batch.image_path, datamodule)
            parts.append((model.model.extract(images), batch.image_path, names, batch.gt_label, masks))
    features, paths, names, labels, masks = zip(*parts, strict=True)
    whole = None if masks[0] is None else torch.cat(masks).int()
    return Features(torch.cat(features), list(chain(*paths)), np.concatenate(names), torch.cat(labels).int(), whole)


def chosen_half(paths: Sequence[str], categories: np.ndarray, labels: torch.Tensor) -> np.ndarray:
    """Which test images the fast recipe was chosen on, half of them, drawn per category and label: ``(M,)``."""
    chosen, random = np.zeros(len(paths), dtype=bool), np.random.default_rng(0)
    order = np.array(sorted(range(len(paths)), key=lambda row: Path(paths[row])))
    for category in sorted(set(categories)):
        for label in (0, 1):
            rows = [row for row in order if categories[row] == category and labels[row] == label]
            random.shuffle(rows)
            chosen[rows[: len(rows) // 2]] = True
    return chosen


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
    model, about = load(checkpoint)
    test = extract(model, datamodule, datamodule.test_dataloader())
    rows = []
    for dtype in (torch.float32, torch.float16):
        with torch.no_grad():
            predictions = model.model.predict(test.features.to(dtype).float())
        found = test.auroc(predictions.pred_score, predictions.anomaly_map)
        rows += [{"method": str(dtype), **row, **about} for row in found]
    add_rows(output_dir / "float16_features.csv", rows, ("method", "seed"))
    show(output_dir / "float16_features.csv", ("method", "category", *AUROC))


def image_scores(recipe: Path, checkpoints: list[Path], output_dir: Path = RESULTS) -> None:
    """Image AUROC of several scores of the same maps, on half of the test images; ``image_scores.csv``.

    Args:
        recipe: Config for ``anomalib train`` with the images.
        checkpoints: Trainings of one recipe with several seeds.
        output_dir: Folder of the csv file.
    """
    _, datamodule = read_recipe(recipe)
    trained = [load(checkpoint) for checkpoint in checkpoints]
    images = extract(trained[0][0], datamodule, datamodule.test_dataloader())  # the backbone of all is the same
    half = torch.from_numpy(chosen_half(images.paths, images.categories, images.labels))
    rows = []
    for model, about in trained:
        with torch.no_grad():
            maps = model.model.predict(images.features).anomaly_map
        mean = AnomalyScore("mean")(maps)
        scores = {f"maximum after a pool of {size} px": AnomalyScore("max", size)(maps) for size in (1, 8, 16, 32, 48)}
        for percent in (0.5, 1, 2, 3, 5):
            top = AnomalyScore("top", top_fraction=percent / 100)(maps) + mean / 2
            name = f"highest {percent} %"
            scores |= {name: top, f"{name} - mean / 2": top - mean / 2, f"{name} - mean": top - mean}
        for name, score in scores.items():
            rows += [{"method": name, **row, **about} for row in images.auroc(score, kept=half)]
    add_rows(output_dir / "image_scores.csv", rows, ("method", "seed"))
    show(output_dir / "image_scores.csv", ("method", "category", "seed", AUROC[0]))


def unseen_half(
    benchmarks: list[Path], data: str | None = None, name: str = "unseen_half", output_dir: Path = RESULTS
) -> None:
    """Image AUROC of finished trainings on the half that the fast recipe was not chosen on.

    Args:
        benchmarks: Configs of ``anomalib-uniad benchmark``, which was run in this folder.
        data: Data of the benchmarks; default: all. Halves are those of the products that are tested together.
        name: Name of the csv file.
        output_dir: Folder of the csv file.
    """
    rows: dict[tuple[str, int], list[Row]] = {}
    for file in benchmarks:
        for training in expand(read_config(file), Path("runs", "benchmark", file.stem).absolute()):
            if data not in {None, training.data}:
                continue
            metrics = (training.read(RESULT) or {})["metrics"]
            tested = pd.read_csv((training.folder / metrics).with_name("predictions.csv"), dtype={"category": str})
            scores = torch.tensor(tested["raw_score"].to_numpy())
            labels = torch.tensor((tested["label"] == "anomalous").to_numpy()).int()
            images = Features(scores, list(tested["path"]), tested["category"].to_numpy(), labels, None)
            unseen = torch.from_numpy(~chosen_half(images.paths, images.categories, labels))
            found = images.auroc(scores, kept=unseen)
            about = {"method": training.method, **origin(CPU, training.seed)}
            rows[training.method, training.seed] = [{**about, **row} for row in found]
    add_rows(output_dir / f"{name}.csv", list(chain(*rows.values())), ("method", "seed"))
    show(output_dir / f"{name}.csv", ("method", "category", "seed", AUROC[0]))


if __name__ == "__main__":
    auto_cli([float16_features, image_scores, mean_image, unseen_half])
