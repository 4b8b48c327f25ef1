# SPDX-License-Identifier: Apache-2.0
"""Own images of every layout, type and depth: trained for one step, tested, exported and predicted."""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_uniad import MultiCategory, UniAD
from anomalib_uniad.cli import main
from anomalib_uniad.data.layouts import read_products
from small import SMALL, quiet_engine

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of others about themselves

RANGE = (0, 4080)  # 16 times the range of 8 bits, so that all depths can show the very same picture


class Kind(NamedTuple):
    """A type of file and a depth, as Pillow names it."""

    suffix: str
    mode: str
    exact: bool = True  # holds any grey picture as it is


KINDS = (
    *(Kind(".png", mode, mode != "1") for mode in ("1", "L", "RGB", "P", "LA", "RGBA", "I;16")),
    *(Kind(suffix, mode, exact=False) for suffix in (".jpg", ".JPG", ".jpeg") for mode in ("L", "RGB", "CMYK")),
    *(Kind(".bmp", mode, mode != "1") for mode in ("1", "L", "P", "RGB")),
    *(Kind(".tif", mode, mode != "1") for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F")),
    Kind(".TIFF", "L"),
    Kind(".PNG", "RGB"),
    *(Kind(".webp", mode) for mode in ("RGB", "RGBA")),
    *(Kind(".pgm", mode) for mode in ("L", "I;16")),
    Kind(".ppm", "RGB"),
)


@dataclass
class Layout:
    """Folders of a product; ``""`` is its own."""

    product: str
    train: str
    defects: str = ""
    test: str = ""
    masks: Callable[[str], str] | None = None
    said: str = ""


LAYOUTS = (
    Layout(
        "Blister Packung Größe 1",
        "train/good",
        "test/Kratzer, tief",
        "test/good",
        "ground_truth/Kratzer, tief/{}_mask.png".format,
        "MVTec AD: train/good, test, ground_truth",
    ),
    Layout("螺丝", "good", "bad", said="good, bad"),
    Layout("Œillet n° 3", "Normal", "Abnormal", masks="mask/{}.png".format, said="Normal, Abnormal, mask"),
    Layout("washer", "OK", "NG", said="OK, NG"),
    Layout("mean", "good", said="only good images: good"),
    Layout("ワッシャー", "", said="only good images: images directly in its folder"),
)


def picture(number: int, defect: bool) -> np.ndarray:
    """A grey picture ``(H, W)``; its size depends on the number."""
    height, width = [(24, 32), (40, 36), (32, 20)][number % 3]
    pixels = np.random.default_rng(number).integers(60, 180, (height, width), dtype=np.uint8)
    if defect:
        pixels[4:12, 4:12] = 250
    return pixels


def write(path: Path, pixels: np.ndarray, mode: str) -> None:
    """Write a grey picture as an image of any mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode in {"I;16", "I", "F"}:
        types = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
        image = Image.fromarray((pixels.astype(float) * RANGE[1] / 255).astype(types[mode]))
    else:
        grey = Image.fromarray(pixels)
        image = (grey.convert("RGB") if mode == "CMYK" else grey).convert(mode)
        if mode in {"LA", "RGBA"}:
            image.putalpha(Image.fromarray(255 - pixels))  # dropped when it is read
    assert image.mode == mode
    image.save(path, **({"lossless": True, "exact": True} if path.suffix == ".webp" else {}))


def file_of(number: int, kind: Kind) -> str:
    """Name of a file, with spaces and an umlaut."""
    return f"Größe {number} {kind.suffix[1:]} {kind.mode.replace(';', '')}{kind.suffix}"


def write_product(root: Path, layout: Layout, first: int) -> None:
    """Write a product with three good and, if the layout has them, two defective images of each kind."""
    folder = root / layout.product
    for kind in KINDS:
        for number in range(3):
            where = layout.test if number == 2 and layout.test else layout.train
            write(folder / where / file_of(first + number, kind), picture(first + number, False), kind.mode)
        for number in range(3, 5) if layout.defects else ():
            pixels = picture(first + number, True)
            write(folder / layout.defects / file_of(first + number, kind), pixels, kind.mode)
            if layout.masks:
                mask = layout.masks(Path(file_of(first + number, kind)).stem)
                write(folder / mask, np.uint8(255) * (pixels == 250), "L")


class Run(NamedTuple):
    """What came of a root: the data and model after training and test, and what an exported file says."""

    data: MultiCategory
    model: UniAD
    tested: dict[str, dict[str, str]]  # path -> row of predictions.csv
    predicted: dict[str, dict[str, str]]
    metrics: dict[str, dict[str, str]]  # category -> row of metrics.csv


def rows(path: Path, key: str) -> dict[str, dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return {row[key]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Train one step on products of all layouts, test, export, and predict all images with the file."""
    folder = tmp_path_factory.mktemp("own")
    root = folder / "Eigene Bilder"
    for index, layout in enumerate(LAYOUTS):
        write_product(root, layout, 10 * index)
    data = MultiCategory(root=root, train_batch_size=1000, num_workers=0, value_range=RANGE)
    tiny = {**SMALL, "image_size": 32, "feature_stride": 8, "layers": [1], "neighbor_size": 1}
    model = UniAD(**tiny, visualizer=False, seed=0)
    engine = quiet_engine(folder, max_epochs=1)
    engine.train(model=model, datamodule=data)
    assert engine.trainer.global_step == 1  # all training images at once
    results = Path(engine.trainer.default_root_dir)
    file = model.to_openvino(folder / "exported")
    main(["predict", str(file), str(root), "--output", str(folder / "predictions"), "--heatmaps", "false"])
    predicted = rows(folder / "predictions" / "predictions.csv", "path")
    tested, metrics = rows(results / "predictions.csv", "path"), rows(results / "metrics.csv", "category")
    return Run(data, model, tested, predicted, metrics)


def samples_of(data: MultiCategory) -> Iterator[Any]:
    for dataset in (data.train_data, data.val_data, data.test_data):
        yield from dataset.samples.itertuples()


def test_every_image_has_its_place(run: Run) -> None:
    """Training, validation and test share the images of each product, and no defect is trained on."""
    of_product: dict[str, set[str]] = {}
    for sample in samples_of(run.data):
        assert sample.image_path not in of_product.setdefault(sample.category, set())
        of_product[sample.category].add(sample.image_path)
        assert sample.label_index == (Path(sample.image_path).stem.split()[1][-1] in "34")  # last digit of the number
    assert set(of_product) == {layout.product for layout in LAYOUTS}
    for layout in LAYOUTS:
        assert len(of_product[layout.product]) == len(KINDS) * (5 if layout.defects else 3)
    assert not run.data.train_data.samples["label_index"].any()
    assert sorted(run.data.categories_with_masks) == sorted(layout.product for layout in LAYOUTS if layout.masks)


def test_scores_of_the_exported_file_are_those_of_the_test(run: Run) -> None:
    assert {sample.image_path for sample in samples_of(run.data)} <= run.predicted.keys()  # masks are images, too
    assert not any(row["error"] for row in run.predicted.values())
    assert len(run.tested) == len(run.data.test_data)
    for path, row in run.tested.items():
        assert np.isfinite(float(row["raw_score"]))
        assert float(run.predicted[path]["raw_score"]) == pytest.approx(float(row["raw_score"]), rel=1e-3)
        assert float(run.predicted[path]["threshold"]) == pytest.approx(float(row["threshold"]), rel=1e-4)


def test_scores_of_all_other_images_are_those_of_the_model(run: Run) -> None:
    """Images of training and validation, as the datasets read them."""
    for dataset in (run.data.train_data, run.data.val_data):
        items = [dataset[index] for index in range(len(dataset))]
        with torch.inference_mode():
            images = torch.cat([run.model.pre_processor(item.image[None]) for item in items])
            scores = run.model.model(images).pred_score.tolist()
        predicted = [float(run.predicted[item.image_path]["raw_score"]) for item in items]
        assert predicted == pytest.approx(scores, rel=1e-3)


def test_the_same_picture_has_the_same_score(run: Run) -> None:
    """Whatever the type and depth of its file, if that loses nothing; another picture has another score."""
    for index, layout in enumerate(LAYOUTS):
        means = []
        for number in range(5 if layout.defects else 3):
            names = {file_of(10 * index + number, kind) for kind in KINDS if kind.exact}
            paths = [
                sample.image_path
                for sample in samples_of(run.data)
                if sample.category == layout.product and Path(sample.image_path).name in names
            ]
            here = [float(run.predicted[path]["raw_score"]) for path in paths]
            assert len(here) == len(names)
            assert np.ptp(here) < 1e-4 * max(here)
            means.append(np.mean(here))
        assert np.diff(sorted(means)).min() > 1e-3 * max(means)


def test_cells_are_empty_where_there_is_nothing_to_measure(run: Run) -> None:
    for layout in LAYOUTS:
        row = run.metrics[layout.product]
        assert bool(row["image_AUROC"]) == bool(layout.defects)
        assert bool(row["pixel_AUROC"]) == bool(layout.masks)
        assert bool(row["note"]) == (not layout.masks)


def test_layouts_are_recognised(run: Run) -> None:
    said = {product.name: product.layout for product in read_products(run.data.root)}
    assert said == {layout.product: layout.said for layout in LAYOUTS}
