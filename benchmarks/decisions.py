# SPDX-License-Identifier: Apache-2.0
"""False alarms and misses of several ways to find thresholds, how products are recognised, and what that costs.

python benchmarks/decisions.py decisions CONFIG CHECKPOINT          # of a training whose split is mixed
python benchmarks/decisions.py cost CHECKPOINT                      # of a training with calibration
python benchmarks/decisions.py fresh '[CHECKPOINT, CHECKPOINT]'     # of trainings of the quickstart
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jsonargparse import auto_cli
from torch.utils.data import DataLoader, Subset
from torchvision.io import decode_jpeg, encode_jpeg
from tqdm.auto import tqdm

from anomalib_uniad import UniAD
from anomalib_uniad.category import categories_of
from anomalib_uniad.metrics.functional import f1_threshold, rank, tpr_at_fpr
from anomalib_uniad.metrics.limits import KnownScores, limits
from anomalib_uniad.model.calibration import MOST_TRAINED
from anomalib_uniad.model.products import Products
from anomalib_uniad.parity.models import ExportedModel
from anomalib_uniad.parity.timing import latencies
from anomalib_uniad.synthetic import PRODUCTS
from harness import CPU, RESULTS, add_rows, origin, show
from trained_model import load, read_recipe

RATE = 0.01
FRESH = 7  # part of the seed of images that are in no split
SETS = ("training", "validation", "test")
Known = Mapping[str, KnownScores]
Rule = Callable[[Known], dict[str, float]]


def best_f1(known: list[KnownScores]) -> float:
    """The threshold of best F1; without defects, the highest good score."""
    good = np.concatenate([scores.good for scores in known])
    defective = np.concatenate([scores.defective for scores in known])
    return float(f1_threshold(rank(defective, good))) if len(defective) else float(good.max())


def one_for_all(known: Known) -> dict[str, float]:
    """One threshold for all products, as anomalib learns it."""
    return dict.fromkeys(known, best_f1(list(known.values())))


def one_for_each(known: Known) -> dict[str, float]:
    """The same for each product, which has to be told."""
    return {name: best_f1([scores]) for name, scores in known.items()}


def as_jpeg(images: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, H, W) from 0 to 1, as JPEG files of quality 80 show them."""
    files = encode_jpeg(list((255 * images).round().byte()), quality=80)
    return torch.stack([decode_jpeg(file) for file in files]) / 255


CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "10 % lighter": lambda images: (1.1 * images).clamp(max=1),
    "as JPEG": as_jpeg,
    "with noise": lambda images: (images + torch.randn_like(images) * 2 / 255).clamp(0, 1),  # 2 grey levels
}
"""What good images may be changed by without becoming another product; images (B, 3, H, W) from 0 to 1."""

VALIDATIONS: dict[str, Callable[[np.ndarray, np.ndarray, int], tuple[int, int]]] = {
    "good and defective": lambda good, defective, _: (len(good), len(defective)),
    "good alone": lambda good, _defective, _: (len(good), 0),
    "good, and defects of every other product": lambda good, defective, row: (len(good), len(defective) * (row % 2)),
    "3 good of each": lambda _good, _defective, _: (3, 0),
    "none": lambda _good, _defective, _: (0, 0),
}
"""How many of the images that are set aside are looked at, of the product with a number."""


def decisions(recipe: Path, checkpoint: Path, draws: int = 20, output_dir: Path = RESULTS) -> None:
    """Draw again and again which unseen images the thresholds are from, and decide about the others.

    Each draw has as many good and defective images of each product as the split of the training set aside, from all
    images that were not trained on. Rows of ``decisions.csv`` are means over draws; ``recognition.csv`` has, for each
    product, how many of its images are recognised, called unknown, also when changed a little, and found to be unknown
    when the others alone are known.

    Args:
        recipe: Config for ``anomalib train`` of the training.
        checkpoint: Its checkpoint.
        draws: Number of draws.
        output_dir: Folder of the csv files.
    """
    model, about = load(checkpoint)
    _, datamodule = read_recipe(recipe)
    table = scores_of(model, datamodule)
    about = {"dataset": datamodule.name, **about}
    write_recognition(table, about, output_dir)
    names = list(dict.fromkeys(table["category"]))
    products = Products()
    alike = products.learn([pooled_of(table, name, trained=True) for name in names])
    number, unknown = products.recognise(torch.from_numpy(np.stack(table["pooled"]))[:, :, None, None])
    table["recognised"] = ["" if far else names[row] for row, far in zip(number, unknown, strict=True)]
    groups = [[names[row] for row in group] for group in alike]
    rules: dict[str, Rule] = {
        "one threshold for all": one_for_all,
        "one for each product, told": one_for_each,
        "calibrated": lambda known: {name: limit.threshold for name, limit in limits(known, RATE, groups).items()},
    }
    rows = []
    for validation in VALIDATIONS:
        for number in range(draws):
            known, rest = draw(table, names, validation, number)
            for rule, find in rules.items():
                if validation == "none" and rule != "calibrated":
                    continue  # there is nothing to find
                thresholds = find(known)
                for name in names:
                    about_it = {"validation": validation, "rule": rule, "category": name}
                    rows.append({**about_it, **decide(thresholds, *rest[name], told=rule != "calibrated")})
    frame = pd.DataFrame(rows).groupby(["validation", "rule", "category"], sort=False)
    means = frame.mean(numeric_only=True).reset_index()
    means["false_alarms_deviation"] = frame["false_alarms"].std().to_numpy()
    path = output_dir / "decisions.csv"
    add_rows(path, means.assign(draws=draws, **about), ("dataset", "seed", "validation", "rule", "category"))
    every = pd.read_csv(path).groupby(["validation", "rule"], sort=False)
    print((100 * every[["false_alarms", "missed", "possible"]].mean()).round(1))


def scores_of(model: UniAD, datamodule: Any) -> pd.DataFrame:
    """A row for each image, with raw score and pooled features: some trained ones, and all that were not."""
    loaders = [datamodule.train_dataloader(), datamodule.val_dataloader(), datamodule.test_dataloader()]
    parts = []
    for number, loader in enumerate(loaders):
        batches: Any = loader
        if number == 0:  # some of each product
            of = pd.Series(categories_of(list(loader.dataset.samples["image_path"]), datamodule))
            kept = [part.index[:: -(-len(part) // MOST_TRAINED)] for _, part in of.groupby(of)]
            data = Subset(loader.dataset, sorted(row for part in kept for row in part))
            batches = DataLoader(data, 16, collate_fn=loader.dataset.collate_fn)
        for batch in tqdm(batches, desc=SETS[number], unit="batch"):
            good = ~batch.gt_label.bool()
            with torch.no_grad():
                features = model.model.extract(model.pre_processor(batch.image))
                raw = model.model.predict(features)
                pooled = Products.pool(model.model.normalise(features))
                columns = {
                    "category": categories_of(batch.image_path, datamodule),
                    "score": raw.pred_score.tolist(),
                    "defective": (~good).tolist(),
                    "pooled": list(pooled.numpy()),
                }
                for name, change in CHANGES.items() if number else ():
                    changed = torch.full_like(pooled, torch.nan)  # of defective images
                    if good.any():
                        features = model.model.extract(model.pre_processor(change(batch.image[good])))
                        changed[good] = Products.pool(model.model.normalise(features))
                    columns[name] = list(changed.numpy())
            parts.append(pd.DataFrame(columns).assign(split=SETS[number]))
    return pd.concat(parts, ignore_index=True)


def pooled_of(table: pd.DataFrame, name: str, trained: bool, column: str = "pooled") -> torch.Tensor:
    """Pooled features of a product's images that were trained on, or not (M, C)."""
    rows = (table["category"] == name) & ((table["split"] == "training") == trained)
    return torch.from_numpy(np.stack(table.loc[rows, column]))


def draw(
    table: pd.DataFrame, names: list[str], validation: str, seed: int
) -> tuple[dict[str, KnownScores], dict[str, tuple[pd.DataFrame, pd.DataFrame]]]:
    """What thresholds may be from, and good and defective images that are decided about, of each product."""
    random = np.random.default_rng(seed)
    known, rest = {}, {}
    for row, name in enumerate(names):
        of = table[table["category"] == name]
        unseen = of[of["split"] != "training"]
        parts = [unseen[unseen["defective"] == kind] for kind in (False, True)]
        good, defective = (part.iloc[random.permutation(len(part))] for part in parts)
        aside = [int((of["defective"] == kind)[of["split"] == "validation"].sum()) for kind in (False, True)]
        scores = [part["score"].to_numpy()[:count] for part, count in zip((good, defective), aside, strict=True)]
        shown = VALIDATIONS[validation](*scores, row)
        trained = of.loc[of["split"] == "training", "score"].to_numpy()
        known[name] = KnownScores(trained, scores[0][: shown[0]], scores[1][: shown[1]])
        rest[name] = (good[aside[0] :], defective[aside[1] :])
    return known, rest


def decide(
    thresholds: Mapping[str, float], good: pd.DataFrame, defective: pd.DataFrame, told: bool
) -> dict[str, float]:
    """Shares of false alarms and misses, and what is missed at the least at 2 % false alarms.

    By the product that is told or recognised; an image of none is stopped, one without a threshold is undecided.
    """
    column = "category" if told else "recognised"
    limits_of = [part[column].map({**thresholds, "": -np.inf}) for part in (good, defective)]
    stopped = [part["score"] > limit for part, limit in zip((good, defective), limits_of, strict=True)]
    passed = [part["score"] <= limit for part, limit in zip((good, defective), limits_of, strict=True)]
    return {
        "good": len(good),
        "defective": len(defective),
        "false_alarms": float(stopped[0].mean()),
        "missed": float(passed[1].mean()),
        "undecided": float(pd.concat([~(one | other) for one, other in zip(stopped, passed, strict=True)]).mean()),
        "possible": 1 - tpr_at_fpr(rank(*(part["score"].to_numpy(copy=True) for part in (defective, good))), 0.02),
    }


def fresh(checkpoints: Sequence[Path], images: int = 150, output_dir: Path = RESULTS) -> None:
    """Judge good images of the quickstart's products that are in no split, generated with another seed.

    The test has 14 good images of a product, of which one more or less called anomalous is 7 %. Writes ``fresh.csv``.

    Args:
        checkpoints: Of trainings of the quickstart, whose thresholds are from good images alone.
        images: How many of each product.
        output_dir: Folder of the csv file.
    """
    rows = []
    for checkpoint in checkpoints:
        model = UniAD.load_from_checkpoint(checkpoint).eval()
        for number, (name, product) in enumerate(tqdm(PRODUCTS.items(), desc=f"seed {model.seed}")):
            generators = [np.random.default_rng([FRESH, number, row]) for row in range(images)]
            pixels = np.stack([product.render(generator, None)[0] for generator in generators])
            parts = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255).split(25)
            with torch.no_grad():
                called = torch.cat([model(part).pred_label.flatten() for part in parts])
            rows.append(
                {"category": name, "images": images, "false_alarms": int(called.sum()), **origin(CPU, model.seed)}
            )
    path = output_dir / "fresh.csv"
    add_rows(path, rows, ("seed", "category"))
    show(path, ("seed", "category", "images", "false_alarms"))


def write_recognition(table: pd.DataFrame, about: Mapping[str, Any], output_dir: Path) -> None:
    """Recognise every image that was not trained on; then again with its product left out of what is known."""
    names = list(dict.fromkeys(table["category"]))
    trained = {name: pooled_of(table, name, trained=True) for name in names}
    shown = {name: pooled_of(table, name, trained=False)[:, :, None, None] for name in names}
    products = Products()
    products.learn(list(trained.values()))
    rows = []
    for number, name in enumerate(names):
        product, unknown = products.recognise(shown[name])
        others = Products()
        others.learn([pooled for other, pooled in trained.items() if other != name])
        found = others.recognise(shown[name])[1]
        row = {"images": len(product), "recognised": share(product == number)}
        unseen = (table["category"] == name) & (table["split"] != "training")
        defective = torch.tensor(table.loc[unseen, "defective"].tolist())
        row |= {"good_called_unknown": share(unknown[~defective]), "defects_called_unknown": share(unknown[defective])}
        for change in CHANGES:
            changed = pooled_of(table, name, trained=False, column=change)[~defective]
            row[f"good_called_unknown_{change}"] = share(products.recognise(changed[:, :, None, None])[1])
        rows.append({"category": name, **row, "found_unknown": share(found), **about})
    path = output_dir / "recognition.csv"
    add_rows(path, rows, ("dataset", "seed", "category"))
    columns = ("recognised", "good_called_unknown", "defects_called_unknown", "found_unknown")
    changes = [f"good_called_unknown_{change}" for change in CHANGES]
    show(path, ("category", "seed", "images", *columns, *changes))


def cost(checkpoint: Path, rounds: int = 7, images: int = 100, output_dir: Path = RESULTS) -> None:
    """Time of an image in OpenVINO with and without calibration, in turn: ``calibration_cost.csv``, a row per round.

    Args:
        checkpoint: Of a training with calibration.
        rounds: Number of rounds.
        images: Images of a round.
        output_dir: Folder of the csv file.
    """
    model = UniAD.load_from_checkpoint(checkpoint, evaluator=False, visualizer=False).eval()
    about = {"products": len(model.products), "pixels": model.input_size[0], **origin(CPU, model.seed)}
    shown = [np.random.default_rng(0).integers(0, 256, (*model.input_size, 3), np.uint8) for _ in range(images)]
    with tempfile.TemporaryDirectory() as folder:
        files = {"calibrated": model.to_openvino(Path(folder) / "calibrated", input_size=model.input_size)}
        model.model.products, model.products = None, []
        files["not calibrated"] = model.to_openvino(Path(folder) / "plain", input_size=model.input_size)
        exported = [ExportedModel(Path(file), normalises=True) for file in files.values()]
        measured = [latencies(exported, shown) for _ in range(rounds)]
    rows = [
        {"file": name, "round": number, "latency_ms": 1000 * seconds, **about}
        for number, found in enumerate(measured)
        for name, seconds in zip(files, found, strict=True)
    ]
    path = output_dir / "calibration_cost.csv"
    add_rows(path, rows, ("device", "products", "pixels", "file", "round"))
    show(path, ("file", "round", "latency_ms"))


def share(which: torch.Tensor) -> float:
    """Share of images (M,) of which something is true."""
    return float(which.float().mean())


if __name__ == "__main__":
    auto_cli([decisions, cost, fresh])
