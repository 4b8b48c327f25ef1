# SPDX-License-Identifier: Apache-2.0
"""What models make of images: rendered features and reconstructions, maps and decisions, side by side."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch
from anomalib.data import AnomalibDataModule
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import track
from torchvision.tv_tensors import Mask

from anomalib_uniad.captions import fit, font_of
from anomalib_uniad.category import categories_of
from anomalib_uniad.checks import check_at_least
from anomalib_uniad.errors import ExistingFileError, InputError, MissingFileError
from anomalib_uniad.files import check_output, check_writable, file_names, save_picture
from anomalib_uniad.geometry import Geometry
from anomalib_uniad.image_files import size_of
from anomalib_uniad.inference.heatmap import draw_heatmap, outlined
from anomalib_uniad.model import UniAD
from anomalib_uniad.parity.inputs import load, normalises
from anomalib_uniad.pictures.visualizer import relative_map
from anomalib_uniad.report.decisions import find_failures, read_predictions
from anomalib_uniad.report.nearest_good import NearestGood
from anomalib_uniad.report.runs import find_newest, unique
from anomalib_uniad.trained_run import folder_of, look, open_run, pixels_of, resolved, test_images
from anomalib_uniad.transforms import steps_of

from .feature_decoder import FeatureDecoder
from .inside import Panels, draw_attention, draw_queries, transformer_of
from .train_decoder import checkpoints_of

_SIDE, _GAP, _LINE = 176, 6, 18  # pixels: height of a panel, between panels, of a line of text
_RED, _GREY, _TEXT = (230, 30, 40), (110, 118, 130), (25, 30, 40)


@dataclass
class Shown:
    """A test image, and its panels.

    Attributes:
        path (str): Its file.
        category (str): Its category.
        panels (Panels): Title and picture of each.
        attention (list[tuple[str, Panels]]): Where a token of it looks: name and panels of each attention of the first
            run, if that is wanted.
    """

    path: str
    category: str
    panels: Panels
    attention: list[tuple[str, Panels]] = field(default_factory=list)


class Chosen(NamedTuple):
    """A test image that is drawn: row, dataset, category, and whether the test of the first run called it defective."""

    row: int
    dataset: Any
    category: str
    decided: bool | None


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
        runs (Sequence[Path]): Folders of runs of UniAD, or their checkpoints, or of benchmarks, which stand for all of
            their trainings of UniAD; of several runs, each shows the same images.
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
        decoder (Path | None): Decoder of the features. Defaults to ``None``, ``decoder.pt`` in the folder of each.
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
    if point is not None and len(point) != 2:
        raise InputError(f"point must be two numbers, pixels from the left and from the top, got {[*point]}.")
    checkpoints, own_decoders = zip(*checkpoints_of(runs), strict=True)
    check_output(output, [], overwrite)
    if not overwrite and output.is_dir() and any(output.iterdir()):
        raise ExistingFileError(f"{output} has files in it: give another --output, or --overwrite true.")
    check_writable(output)
    model, datamodule = open_run(checkpoints[0], data, data_class)
    if point is not None:
        transformer_of(model)
    models = [model, *map(load, checkpoints[1:])]
    decoders = [FeatureDecoder.load(decoder or file, of) for file, of in zip(own_decoders, models, strict=True)]
    drawn_queries = draw_queries(model, decoders[0]) if queries else []
    chosen = _choose(checkpoints[0], datamodule, images, count, failures)
    if point is not None:
        for path in chosen:
            _place(model, size_of(path), point, path)
    nearest = NearestGood(model, datamodule) if failures else None
    seen_by = dict(zip(_names(checkpoints), zip(models, decoders, strict=True), strict=True))
    drawn = [
        _draw(item.dataset.collate_fn([item.dataset[item.row]]), item.category, seen_by, point, nearest, item.decided)
        for item in track(list(chosen.values()), "Drawing", console=Console(stderr=True))
    ]
    return _write(drawn, drawn_queries, output)


def _names(checkpoints: Sequence[Path]) -> list[str]:
    """What runs are called: by the part of their paths in which they differ."""
    parts = [folder_of(file).parts for file in checkpoints]
    length = min(map(len, parts))
    different = [place for place in range(length) if len({part[place] for part in parts}) > 1]
    return unique(" ".join(part[place] for place in different) or part[-1] for part in parts)


def _choose(
    checkpoint: Path, datamodule: AnomalibDataModule, images: Sequence[Path], count: int, failures: bool
) -> dict[str, Chosen]:
    """The images that are drawn, by their files."""
    places = test_images(datamodule)
    table = _predictions(checkpoint, needed=not images)
    table = table.assign(path=table["path"].map(resolved))
    if images:
        if unknown := [str(path) for path in images if resolved(path) not in places]:
            raise InputError(f"{unknown[0]} is none of the test images of {datamodule.name}.")
        paths = [resolved(path) for path in images]
    else:
        chosen = table[table["path"].isin(places) & table["raw_score"].notna()]
        if chosen.empty:
            raise InputError(
                f"None of the images in the predictions of {folder_of(checkpoint)} is a test image of "
                f"{datamodule.name}: name images with --images."
            )
        if failures:
            paths = list(find_failures(chosen, count)["path"])
        else:
            paths = [path for _, part in chosen.groupby("category", sort=False) for path in _extreme(part, count)]
        if not paths:
            raise InputError(f"There is neither a false alarm nor a missed defect in {folder_of(checkpoint)}.")
    files = {path: places[path][1].samples["image_path"].iloc[places[path][0]] for path in paths}
    decided = dict(zip(table["path"], table["decision"], strict=True))
    categories = categories_of(list(map(str, files.values())), datamodule)
    return {
        path: Chosen(*places[path], category, decided.get(path))
        for path, category in zip(files, categories, strict=True)
    }


def _predictions(checkpoint: Path, needed: bool) -> pd.DataFrame:
    """The newest ``predictions.csv`` of a run; an empty one if there is none and it is not needed."""
    file = find_newest(folder_of(checkpoint), ("predictions*.csv",))
    if file is None and not needed:
        return pd.DataFrame(columns=["path", "decision"])
    if file is None:
        raise MissingFileError(f"{folder_of(checkpoint)} has no predictions.csv: name images with --images.")
    return read_predictions(file)


def _extreme(table: pd.DataFrame, count: int) -> list[str]:
    """The most and the least anomalous images of a category."""
    paths = list(table.sort_values("raw_score", ascending=False)["path"])
    return list(dict.fromkeys([*paths[:count], *paths[::-1][:count]]))


def _draw(
    batch: Any,
    category: str,
    models: dict[str, tuple[UniAD, FeatureDecoder]],
    point: Sequence[float] | None,
    nearest: NearestGood | None,
    decided: bool | None = None,
) -> Shown:
    """The panels of an image, a batch of one; ``decided`` is what the test of the first model said."""
    path = str(batch.image_path[0])
    first = next(iter(models.values()))[0]
    looks = {name: look(model, batch.image) for name, (model, _) in models.items()}
    prepared, features = next(iter(looks.values()))
    size = _size(first, batch.image.shape[-2:])
    image = _resized(_pixels(pixels_of(first, prepared)), size)
    mask = _seen_mask(first, batch)
    truth = "ground truth" if batch.gt_mask is not None and batch.gt_mask.any() else "no mask"
    shown = Shown(path, category, [("image", Image.fromarray(image)), (truth, _outlined(image, mask))])
    if nearest is not None and (like := nearest.of(features, category)) is not None:
        other = _pixels(pixels_of(first, look(first, like.image)[0]))
        shown.panels.append((f"good: {Path(like.image_path[0]).name}", Image.fromarray(_resized(other, size))))
    if point is not None:
        place = _place(first, batch.image.shape[-2:], point, path)
        shown.attention = draw_attention(first, features, image, place)
    for name, (model, decoder) in models.items():
        features = looks[name][1]
        with torch.no_grad():
            rebuilt = model.model.reconstruct(features)
            parts = [_pixels(decoder(model.model.denormalise(part))) for part in (features, rebuilt)]
            raw, judged = model.look(batch.image)
            found: Any = model.finish(raw, judged)
        normalised, label = normalises(model), found.pred_label
        values = found.anomaly_map[0]
        values = values[0].numpy() if normalised else relative_map(values, values.shape[-2:], None)
        heatmap = draw_heatmap(image, cv2.resize(values.clip(0, 1).astype(np.float32), size))
        decision = "undecided" if label is None or not normalised else "anomalous" if bool(label) else "normal"
        decision = "unknown" if judged is not None and bool(judged.unknown) else decision
        outline = found.pred_mask[0, 0].numpy() if decision != "undecided" and found.pred_mask is not None else None
        if name == next(iter(models)):
            if decided is not None and decision != "unknown":  # the test may have thresholds of the category
                decision = "anomalous" if decided else "normal"
            shown.panels.append(("its features", Image.fromarray(_resized(parts[0], size))))
        mark = f" {name}" if len(models) > 1 else ""
        shown.panels.append((f"rebuilt{mark}", Image.fromarray(_resized(parts[1], size))))
        shown.panels.append((f"map{mark}", heatmap))
        shown.panels.append((f"{decision} {float(found.pred_score):.3g}", _outlined(image, outline)))
    return shown


def _seen_mask(model: UniAD, batch: Any) -> np.ndarray | None:
    """The mask of an image where the model sees it, ``(H, W)``."""
    if batch.gt_mask is None:
        return None
    mask = Mask(batch.gt_mask.reshape(1, *batch.gt_mask.shape[-2:]))
    for step in steps_of(getattr(model.pre_processor, "transform", None)):
        mask = step(mask)
    return mask[0].numpy() > 0


def _place(model: UniAD, size: Sequence[int], point: Sequence[float], path: str) -> tuple[float, float]:
    """A place in an image, in pixels from the left and the top, as parts of width and height of the model's input."""
    geometry = model.geometry or Geometry(model.model.image_size)
    seen_part, covered = geometry.seen(size), geometry.covered(size)
    parts = (point[0] - seen_part.left) / seen_part.width, (point[1] - seen_part.top) / seen_part.height
    if not all(0 <= part <= 1 for part in parts):
        raise InputError(f"The point {[*point]} lies outside of what the model sees of {path}, {seen_part}.")
    height, width = geometry.image_size
    return (covered.left + parts[0] * covered.width) / width, (covered.top + parts[1] * covered.height) / height


def _size(model: UniAD, size: Sequence[int]) -> tuple[int, int]:
    """Width and height of a panel: with the proportions of the image, or of what the model sees of it."""
    height, width = size if model.geometry is None else model.geometry.image_size
    return round(_SIDE * min(max(width / height, 1 / 3), 3)), _SIDE


def _pixels(images: torch.Tensor) -> np.ndarray:
    """The first of ``images`` (B, 3, H, W), from 0 to 1, as (H, W, 3), uint8."""
    return (255 * images[0].clamp(0, 1)).round().byte().permute(1, 2, 0).numpy()


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)


def _outlined(pixels: np.ndarray, mask: np.ndarray | None) -> Image.Image:
    if mask is not None:
        # Thin defects stay when a mask is made smaller.
        small = cv2.resize(mask.astype(np.float32), pixels.shape[1::-1], interpolation=cv2.INTER_AREA)
        pixels = outlined(pixels, small, _RED)
    return Image.fromarray(pixels)


def _write(drawn: Sequence[Shown], queries: Panels, output: Path) -> list[Path]:
    """A contact sheet for each category, and in a folder of its own each image."""
    names = file_names(["queries", *dict.fromkeys(item.category for item in drawn)])
    files: list[Path] = []
    for category, name in list(names.items())[1:]:
        items = [item for item in drawn if item.category == category]
        folder = output / "images" / name
        folder.mkdir(parents=True, exist_ok=True)
        root = os.path.commonpath([Path(item.path).parent.parent for item in items])
        captions = [Path(os.path.relpath(item.path, root)).as_posix() for item in items]
        for item, caption, stem in zip(items, captions, file_names(captions).values(), strict=True):
            files.append(folder / f"{stem}.png")
            save_picture(_sheet([(caption, item.panels)], ""), files[-1])
            if item.attention:
                files.append(folder / f"{stem}-attention.png")
                save_picture(_sheet(item.attention, caption), files[-1])
        files.append(output / f"{name}.png")
        rows = [(caption, item.panels) for caption, item in zip(captions, items, strict=True)]
        save_picture(_sheet(rows, category), files[-1])
    if queries:
        files.append(output / f"{names['queries']}.png")
        save_picture(_sheet([("learned queries", queries)], ""), files[-1])
    return files


def _sheet(rows: Sequence[tuple[str, Panels]], title: str) -> Image.Image:
    """Rows of panels, each with a line of text above it; the title on top."""
    large, small = font_of(18), font_of(12)
    widths = [_GAP + sum(picture.width + _GAP for _, picture in panels) for _, panels in rows]
    heights = [max(picture.height for _, picture in panels) + 2 * _LINE + 2 * _GAP for _, panels in rows]
    top = 32 if title else 0
    sheet = Image.new("RGB", (max(widths), top + sum(heights)), "white")
    canvas = ImageDraw.Draw(sheet)
    canvas.text((_GAP, 6), fit(title, large, sheet.width - 2 * _GAP), _TEXT, large)
    for (caption, panels), height in zip(rows, heights, strict=True):
        canvas.text((_GAP, top + 2), fit(caption, small, sheet.width - 2 * _GAP), _TEXT, small)
        left = _GAP
        for heading, picture in panels:
            canvas.text((left, top + _LINE + 2), fit(heading, small, picture.width), _GREY, small)
            sheet.paste(picture, (left, top + 2 * _LINE + 2))
            left += picture.width + _GAP
        top += height
    return sheet
