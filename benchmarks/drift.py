# SPDX-License-Identifier: Apache-2.0
"""What other light and a lens out of focus do to good images: false alarms, and whether ``anomalib-uniad drift`` warns.

python benchmarks/drift.py --model model.xml
"""

import csv
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from jsonargparse import auto_cli
from PIL import Image, ImageEnhance, ImageFilter

from anomalib_uniad.drift.command import TABLE, UNKNOWN, report_drift
from anomalib_uniad.inference import predict
from anomalib_uniad.inference.images import TABLE as PREDICTIONS
from anomalib_uniad.synthetic import PRODUCTS
from harness import CPU, RESULTS, add_rows, origin, show

_FRESH = 2026  # no seed of the data set
CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "none": lambda image: image,
    "brightness +10 %": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "brightness -10 %": lambda image: ImageEnhance.Brightness(image).enhance(0.9),
    "blur of 1 px": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "blur of 3 px": lambda image: image.filter(ImageFilter.GaussianBlur(3)),
}


def drift(
    model: Path,
    folder: Path | None = None,
    output: Path = RESULTS / "drift.csv",
    good: str = "test/good",
    count: int = 120,
    seed: int = 0,
) -> None:
    """Change every second good image, predict them and look for drift; add the rows to a csv file.

    The others are the reference, as they are.

    Args:
        model: Exported file of a model with `product_calibration`.
        folder: A folder for each product, as the model calls it. Default: fresh images of the six generated products,
            which are not in their data set.
        output: The csv file.
        good: Where the good images of each product are that were not trained on.
        count: How many images of each product are generated.
        seed: Of these images.
    """
    with tempfile.TemporaryDirectory() as place:
        if folder is None:
            folder = Path(place) / "fresh SyntheticProducts"
            _generate(folder, good, count, seed)
        found = list(_of_changes(model, folder, good, Path(place)))
    rows = [{"images_of": folder.name, **row, **origin(CPU, seed)} for row in found]
    same = ["images_of", "change", "compared_with", "product"]
    add_rows(output, rows, same)
    show(output, [*same[1:], "images", "false_alarms", "unknown", "times", "lowest", "highest", "drift"])


def _generate(folder: Path, good: str, count: int, seed: int) -> None:
    for index, (name, product) in enumerate(PRODUCTS.items()):
        (folder / name / good).mkdir(parents=True)
        for number in range(count):
            pixels, _ = product.render(np.random.default_rng([_FRESH, seed, index, number]))
            Image.fromarray(pixels).save(folder / name / good / f"{number:03}.png")


def _of_changes(model: Path, folder: Path, good: str, place: Path) -> Iterator[dict[str, object]]:
    """Of each change, compared with the calibration, and with every second image as it is."""
    reference = _predict(model, folder, good, CHANGES["none"], 1, place / "reference")
    for name, change in CHANGES.items():
        predicted = _predict(model, folder, good, change, 0, place / name)
        for to, known in {"calibration": None, "reference": reference}.items():
            report = report_drift([predicted], model, known, output=place / name / to)
            print(f"{name}, compared with the {to}", *report.sentences, sep="\n  ")
            for row in _rows(predicted, place / name / to / TABLE):
                yield {"change": name, "compared_with": to, **row}


def _predict(
    model: Path, folder: Path, good: str, change: Callable[[Image.Image], Image.Image], half: int, place: Path
) -> Path:
    """Predict every second image of each product, changed; return the table."""
    for product in sorted(folder.iterdir()):
        for file in sorted((product / good).glob("*"))[half::2]:
            target = place / "images" / product.name / f"{file.stem}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(file) as image:
                change(image.convert("RGB")).save(target)
    predict(model, [place / "images"], place / "predictions", heatmaps=False)
    return place / "predictions" / PREDICTIONS


def _rows(predictions: Path, table: Path) -> list[dict[str, object]]:
    """A row for each product, by the folder of its images, and one for all of them."""
    with predictions.open(newline="", encoding="utf-8") as opened:
        predicted = list(csv.DictReader(opened))
    with table.open(newline="", encoding="utf-8") as opened:
        compared = {row["product"]: row for row in csv.DictReader(opened) if row["window"] == "all"}
    rows: list[dict[str, object]] = []
    for product in sorted({Path(row["path"]).parent.name for row in predicted}):
        decisions = np.array([row["decision"] for row in predicted if Path(row["path"]).parent.name == product])
        of = compared.get(product, {})
        rows.append(
            {
                "product": product,
                "images": len(decisions),
                "false_alarms": int((decisions == "anomalous").sum()),
                "unknown": int((decisions == "unknown").sum()),
                **{name: of.get(name, "") for name in ("times", "lowest", "highest")},
                "drift": of.get("drift", "too few images"),
            }
        )
    whole = {name: sum(int(str(row[name])) for row in rows) for name in ("images", "false_alarms", "unknown")}
    return [*rows, {"product": "(all)", **whole, "drift": compared[UNKNOWN]["drift"]}]


if __name__ == "__main__":
    auto_cli(drift, as_positional=False)
