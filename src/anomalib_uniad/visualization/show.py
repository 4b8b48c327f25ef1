# SPDX-License-Identifier: Apache-2.0
"""What models make of images: rendered features and reconstructions, maps and decisions, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from anomalib.data import AnomalibDataModule
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import track

from anomalib_uniad.captions import fit, font_of
from anomalib_uniad.category import categories_of
from anomalib_uniad.checks import check_at_least
from anomalib_uniad.errors import InputError, MissingFileError
from anomalib_uniad.files import check_output, file_names
from anomalib_uniad.geometry import Geometry
from anomalib_uniad.image_files import read_image
from anomalib_uniad.inference.heatmap import draw_heatmap
from anomalib_uniad.model import UniAD
from anomalib_uniad.model.products import Products
from anomalib_uniad.parity.inputs import normalises

from .feature_decoder import FeatureDecoder
from .inside import Panels, draw_attention, draw_queries, transformer_of
from .runs import checkpoint_of, folder_of, open_run
from .train_decoder import DECODER, seen, training_images

_SIDE, _GAP, _LINE = 176, 6, 18  # pixels: height of a panel, between panels, of a line of text
_RED, _WHITE, _GREY, _TEXT = (230, 30, 40), (255, 255, 255), (110, 118, 130), (25, 30, 40)


@dataclass
class Shown:
    """A test image, and its panels.

    Attributes:
        path (str): Its file.
        category (str): Its category.
        caption (str): What is written above it.
        panels (list[tuple[str, Image.Image]]): Title and picture of each.
        attention (list[tuple[str, list[tuple[str, Image.Image]]]]): Where a token of it looks: name and panels of each
            attention of the first run, if that is wanted.
    """

    path: str
    category: str
    caption: str
    panels: Panels = field(default_factory=list)
    attention: list[tuple[str, Panels]] = field(default_factory=list)


def show(
    runs: Sequence[Path],
    output: Path = Path("show"),
    images: Sequence[Path] = (),
    count: int = 3,
    failures: bool = False,
    point: Sequence[float] | None = None,
    queries: bool = False,
    decoder: Path | None = None,
    data: Path | None = None,
    data_class: str = "MultiCategory",
    overwrite: bool = False,
) -> list[Path]:
    """Draw chosen images, or the most and the least anomalous ones of each category.

    Args:
        runs (Sequence[Path]): Folders of runs of UniAD, or their checkpoints; of several, each shows the same images.
        output (Path): Folder of the pictures: a contact sheet for each category, and one picture of each image.
            Defaults to ``show``.
        images (Sequence[Path]): Test images. Defaults to ``()``, chosen by the scores in ``predictions.csv`` of the
            first run.
        count (int): How many of the most anomalous images of each category, and of the least anomalous.
            Defaults to ``3``.
        failures (bool): Instead, the false alarms and the missed defects of each category that are farthest on the
            wrong side of the threshold, at most ``count`` of each, beside the normal training image that looks most
            like them. Defaults to ``False``.
        point (Sequence[float] | None): Place in each image, in pixels of its file from the left and from the top, whose
            token's attention is drawn too, of the first run. Defaults to ``None``.
        queries (bool): Draw what the queries of the first run hold, too. Defaults to ``False``.
        decoder (Path | None): Decoder of the features. Defaults to ``None``, ``decoder.pt`` in the folder of each run.
        data (Path | None): Folder of the images. Defaults to ``None``, those of the first run.
        data_class (str): Datamodule that reads ``data``. Defaults to ``"MultiCategory"``.
        overwrite (bool): Replace pictures that are there. Defaults to ``False``.

    Returns:
        list[Path]: The files.

    Raises:
        OSError: If a checkpoint, a decoder or the images are not there, or pictures are.
        ValueError: If images are none of the test, or a decoder is of other features.
    """
    check_at_least("count", count, 1)
    checkpoints = [checkpoint_of(run) for run in runs]
    check_output(output, [], overwrite)
    if not overwrite and output.is_dir() and any(output.iterdir()):
        raise InputError(f"{output} has files in it: give another --output, or --overwrite true.")
    model, datamodule = open_run(checkpoints[0], data, data_class)
    models = [model, *(open_run(file, data, data_class)[0] for file in checkpoints[1:])]
    decoders = [
        FeatureDecoder.load(decoder or folder_of(file) / DECODER, of)
        for file, of in zip(checkpoints, models, strict=True)
    ]
    chosen = _choose(checkpoints[0], datamodule, images, count, failures)
    nearest = Nearest(model, datamodule) if failures else None
    if point is not None or queries:
        transformer_of(model)
    seen_by = dict(zip(_names(checkpoints), zip(models, decoders, strict=True), strict=True))
    drawn = [
        _draw(row, dataset, category, seen_by, point, nearest)
        for row, dataset, category in track(chosen, "Drawing", console=Console(stderr=True))
    ]
    files = _write(drawn, output)
    if queries:
        files.append(output / "queries.png")
        _sheet([Shown("", "", "learned queries", draw_queries(model, decoders[0]))], "").save(files[-1])
    return files


def _names(checkpoints: Sequence[Path]) -> list[str]:
    """What runs are called: by the part of their paths in which they differ."""
    parts = [folder_of(file).parts for file in checkpoints]
    length = min(map(len, parts))
    different = [place for place in range(length) if len({part[place] for part in parts}) > 1]
    return [" ".join(part[place] for place in different) or part[-1] for part in parts]


def _choose(
    checkpoint: Path, datamodule: AnomalibDataModule, images: Sequence[Path], count: int, failures: bool
) -> list[tuple[int, Any, str]]:
    """Row, dataset and category of the images that are drawn."""
    sets = [part for part in (datamodule.test_data, getattr(datamodule, "val_data", None)) if part is not None]
    places = {str(path): (row, part) for part in reversed(sets) for row, path in enumerate(part.samples["image_path"])}
    if images:
        by_file = {Path(path).resolve(): path for path in places}
        if unknown := [str(path) for path in images if path.resolve() not in by_file]:
            raise InputError(f"{unknown[0]} is none of the test images of {datamodule.name}.")
        paths = [by_file[path.resolve()] for path in images]
    else:
        file = folder_of(checkpoint) / "predictions.csv"
        if not file.is_file():
            raise MissingFileError(f"There is no {file} by which to choose images: give them with --images.")
        table = pd.read_csv(file, dtype={"category": str}, keep_default_na=False, na_values="")
        table = table[table["path"].isin(places) & table["raw_score"].notna()]
        if table.empty:
            raise InputError(f"No image of {file} is a test image of {datamodule.name}: give them with --data.")
        parts = [part for _, part in table.groupby("category", sort=False)]
        paths = [path for part in parts for path in (_failed(part, count) if failures else _extreme(part, count))]
        if not paths:
            raise InputError(f"There is neither a false alarm nor a missed defect in {file}.")
    return [(*places[path], category) for path, category in zip(paths, categories_of(paths, datamodule), strict=True)]


def _extreme(table: pd.DataFrame, count: int) -> list[str]:
    """The most and the least anomalous images of a category."""
    paths = list(table.sort_values("raw_score", ascending=False)["path"])
    return list(dict.fromkeys([*paths[:count], *paths[::-1][:count]]))


def _failed(table: pd.DataFrame, count: int) -> list[str]:
    """The false alarms and the misses of a category, those farthest from the threshold first."""
    alarms = table[(table["label"] == "normal") & table["decision"].isin(["anomalous", "unknown"])]
    missed = table[(table["label"] == "anomalous") & (table["decision"] == "normal")]
    alarms = alarms.sort_values("normalised_score", ascending=False)
    missed = missed.sort_values("normalised_score")
    return [*list(alarms["path"])[:count], *list(missed["path"])[:count]]


class Nearest:
    """Finds the normal training image that looks most like an image, by the mean features of both.

    Args:
        model (UniAD): The model, which computes the features.
        datamodule (AnomalibDataModule): Where the training images are from; at most 1,000 of them are looked at.
    """

    def __init__(self, model: UniAD, datamodule: AnomalibDataModule) -> None:
        loader, self._categories = training_images(datamodule, 1000)
        self._paths: list[str] = []
        pooled = []
        for batch in track(loader, "Normal images", console=Console(stderr=True)):
            with torch.no_grad():
                prepared = batch.image if model.pre_processor is None else model.pre_processor(batch.image)
                pooled.append(Products.pool(model.model.normalise(model.model.extract(prepared))))
            self._paths += map(str, batch.image_path)
        self._pooled = torch.cat(pooled)
        self._scale = self._pooled.std(dim=0).clamp(min=1e-6)

    def of(self, features: torch.Tensor, category: str) -> str:
        """Path of the one of a category, by normalised features ``(1, C, h, w)``."""
        distances = ((self._pooled - Products.pool(features)) / self._scale).square().sum(dim=1)
        other = torch.tensor([name != category for name in self._categories])
        return self._paths[int(distances.masked_fill(other, torch.inf).argmin())]


def _draw(
    row: int,
    dataset: Any,
    category: str,
    models: dict[str, tuple[UniAD, FeatureDecoder]],
    point: Sequence[float] | None,
    nearest: Nearest | None,
) -> Shown:
    """The panels of an image."""
    batch = dataset.collate_fn([dataset[row]])
    path = str(batch.image_path[0])
    height, width = batch.image.shape[-2:]
    shown: Shown | None = None
    for name, (model, decoder) in models.items():
        with torch.no_grad():
            prepared = batch.image if model.pre_processor is None else model.pre_processor(batch.image)
            features = model.model.normalise(model.model.extract(prepared))
            rebuilt = model.model.reconstruct(features)
            raw, judged = model.look(batch.image)
            found: Any = model.finish(raw, judged)
            rendered = [_pixels(decoder(part)) for part in (features, rebuilt)]
            image = _pixels(seen(model, prepared))
        size = _size(model, height, width)
        levels = _levels(found.anomaly_map[0, 0].numpy(), normalises(model))
        heatmap = draw_heatmap(_resized(image, size), cv2.resize(levels, size))
        decided = {None: "undecided", True: "anomalous", False: "normal"}[
            None if found.pred_label is None or not normalises(model) else bool(found.pred_label)
        ]
        decided = "unknown" if judged is not None and bool(judged.unknown) else decided
        score = f"{decided} {float(found.pred_score):.3g}"
        if shown is None:
            shown = Shown(path, category, f"{'/'.join(Path(path).parts[-2:])}")
            mask = None if batch.gt_mask is None else batch.gt_mask[0].squeeze(0).numpy()
            truth = "ground truth" if mask is not None and mask.any() else "no mask"
            shown.panels += [
                ("image", Image.fromarray(_resized(image, size))),
                (truth, _outlined(_resized(image, size), mask, _RED)),
                ("its features", Image.fromarray(_resized(rendered[0], size))),
            ]
            if nearest is not None:
                like = nearest.of(features, category)
                other = np.ascontiguousarray(read_image(like, model.value_range).round().clip(0, 255).astype(np.uint8))
                shown.panels.insert(2, (f"good: {Path(like).name}", Image.fromarray(_resized(other, size))))
            if point is not None:
                place = _place(model, (height, width), point, path)
                shown.attention = draw_attention(model, features, _resized(image, size), place)
        mark = f" {name}" if len(models) > 1 else ""
        shown.panels.append((f"rebuilt{mark}", Image.fromarray(_resized(rendered[1], size))))
        shown.panels.append((f"map{mark}", heatmap))
        outline = None if decided == "undecided" else (levels > 0.5).astype(np.uint8)
        shown.panels.append((score, _outlined(_resized(image, size), outline, _RED)))
    if shown is None:
        raise InputError("There is no run to show.")
    return shown


def _place(model: UniAD, size: tuple[int, int], point: Sequence[float], path: str) -> tuple[float, float]:
    """A place in an image, in pixels from the left and the top, as parts of width and height of the model's input."""
    geometry = model.geometry or Geometry(model.model.image_size)
    seen_part, covered = geometry.seen(size), geometry.covered(size)
    parts = (point[0] - seen_part.left) / seen_part.width, (point[1] - seen_part.top) / seen_part.height
    if not all(0 <= part <= 1 for part in parts):
        raise InputError(f"The point {[*point]} lies outside of what the model sees of {path}, {seen_part}.")
    height, width = geometry.image_size
    return (covered.left + parts[0] * covered.width) / width, (covered.top + parts[1] * covered.height) / height


def _levels(values: np.ndarray, normalised: bool) -> np.ndarray:
    """A map from 0 to 1: as it is, or by its own range."""
    if normalised:
        return values.clip(0, 1).astype(np.float32)
    return ((values - values.min()) / (np.ptp(values) or 1)).astype(np.float32)


def _size(model: UniAD, height: int, width: int) -> tuple[int, int]:
    """Width and height of a panel: with the proportions of what the model sees."""
    if model.geometry is not None:
        height, width = model.geometry.image_size
    ratio = min(max(width / height, 1 / 3), 3)
    return round(_SIDE * ratio), _SIDE


def _pixels(images: torch.Tensor) -> np.ndarray:
    """The first of ``images`` (B, 3, H, W) as (H, W, 3), uint8."""
    return (255 * images[0].clamp(0, 1)).round().byte().permute(1, 2, 0).numpy()


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)


def _outlined(pixels: np.ndarray, mask: np.ndarray | None, colour: tuple[int, int, int]) -> Image.Image:
    if mask is not None:
        # Thin defects stay when a mask is made smaller.
        small = cv2.resize(mask.astype(np.float32), pixels.shape[1::-1], interpolation=cv2.INTER_AREA)
        outlines, _ = cv2.findContours((small > 0).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        pixels = cv2.drawContours(pixels.copy(), outlines, -1, colour, 1)
    return Image.fromarray(pixels)


def _write(drawn: Sequence[Shown], output: Path) -> list[Path]:
    names = file_names(list(dict.fromkeys(item.category for item in drawn)))
    files: list[Path] = []
    for category, name in names.items():
        items = [item for item in drawn if item.category == category]
        folder = output / name
        folder.mkdir(parents=True, exist_ok=True)
        stems = file_names([item.caption for item in items])
        for item in items:
            files.append(folder / f"{stems[item.caption]}.png")
            _sheet([item], "").save(files[-1])
            if item.attention:
                files.append(folder / f"{stems[item.caption]}-attention.png")
                _sheet([Shown("", "", *named) for named in item.attention], item.caption).save(files[-1])
        files.append(output / f"{name}.png")
        _sheet(items, category or "all images").save(files[-1])
    return files


def _sheet(items: Sequence[Shown], title: str) -> Image.Image:
    """Rows of panels, each with a line of text above it; the title on top."""
    large, small = font_of(18), font_of(12)
    widths = [_GAP + sum(picture.width + _GAP for _, picture in item.panels) for item in items]
    row = _SIDE + 2 * _LINE + 2 * _GAP
    top = 32 if title else 0
    sheet = Image.new("RGB", (max(widths), top + row * len(items)), "white")
    canvas = ImageDraw.Draw(sheet)
    if title:
        canvas.text((_GAP, 6), fit(title, large, sheet.width - 2 * _GAP), _TEXT, large)
    for item in items:
        canvas.text((_GAP, top + 2), fit(item.caption, small, sheet.width - 2 * _GAP), _TEXT, small)
        left = _GAP
        for heading, picture in item.panels:
            canvas.text((left, top + _LINE + 2), fit(heading, small, picture.width), _GREY, small)
            sheet.paste(picture, (left, top + 2 * _LINE + 2))
            left += picture.width + _GAP
        top += row
    return sheet
