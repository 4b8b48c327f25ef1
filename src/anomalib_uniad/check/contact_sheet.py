# SPDX-License-Identifier: Apache-2.0
"""A picture per product: some good images, some defective ones with their masks outlined, those that stand out."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from anomalib_uniad.captions import fit, font_of, printable
from anomalib_uniad.data.records import Record
from anomalib_uniad.image_files import read_image, read_mask

from .features import FEWEST
from .findings import Inspected

COLUMNS = 8
_SIDE, _GAP, _LINE = 168, 8, 20  # pixels: of an image, between images, of a line of text
_RED, _AMBER, _GREY, _TEXT = (230, 30, 40), (224, 120, 0), (110, 118, 130), (25, 30, 40)


def draw(inspected: Inspected, value_range: tuple[float, float] | None = None) -> Image.Image:
    """Draw the contact sheet of a product.

    Args:
        inspected (Inspected): The product.
        value_range (tuple[float, float] | None): Range of images with more than 8 bits. Defaults to ``None``.

    Returns:
        Image.Image: The picture.
    """
    usable = [record for record in inspected.records() if inspected.images[record.paths[0]].thumb is not None]
    by_path = {record.paths[0]: record for record in usable}
    rows: list[tuple[str, list[Record], list[str]]] = []

    def add(title: str, records: Sequence[Record], notes: Sequence[str] = ()) -> None:
        if records:
            rows.append((title, list(records), list(notes)))

    good = [record for record in usable if record.label == 0]
    add(f"good, {min(COLUMNS, len(good))} of {len(good)}", _spread(good))
    bad = [record for record in usable if record.label == 1]
    has_masks = any(record.masks for record in bad)
    shown = _spread_over_labels(bad)
    masks = ", masks outlined" if has_masks else ", without masks"
    add(f"defective, {len(shown)} of {len(bad)}{masks}", shown, [record.label_name for record in shown])
    if inspected.unlike is not None and len(inspected.good) >= FEWEST:
        indices = inspected.unlike.most(COLUMNS)
        notes = [f"{inspected.unlike.deviations[index]:.1f}" for index in indices]
        title = "good images that look least like the others, in standard deviations: is one of them defective?"
        add(title, [by_path[inspected.good[index]] for index in indices], notes)
    if inspected.groups is not None:
        for group, name in enumerate(("one of two kinds of good images", "the other kind")):
            paths = [path for path, of in zip(inspected.good, inspected.groups, strict=True) if of == group]
            add(f"{name}, {min(COLUMNS, len(paths))} of {len(paths)}", _spread([by_path[path] for path in paths]))

    width = COLUMNS * (_SIDE + _GAP) + _GAP
    tile = _SIDE + _LINE + _GAP
    sheet = Image.new("RGB", (width, 36 + len(rows) * (tile + _LINE + _GAP) + (0 if rows else 40)), "white")
    canvas = ImageDraw.Draw(sheet)
    large, small = font_of(20), font_of(13)
    canvas.text((_GAP, 6), printable(inspected.name), _TEXT, large)
    if not rows:
        canvas.text((_GAP, 44), "None of its images can be shown.", _GREY, small)
    top = 36
    for heading, records, notes in rows:
        canvas.text((_GAP, top + 2), heading, _TEXT, small)
        for column, record in enumerate(records):
            left = _GAP + column * (_SIDE + _GAP)
            sheet.paste(_tile(record, value_range), (left, top + _LINE + 2))
            note = f"{notes[column]}  " if notes else ""
            caption = fit(f"{note}{Path(record.paths[0]).name}", small, _SIDE)
            canvas.text((left, top + _LINE + _SIDE + 4), caption, _GREY, small)
        top += tile + _LINE + _GAP
    return sheet


def _spread(records: Sequence[Record]) -> list[Record]:
    """Some records, evenly over all of them."""
    count = min(COLUMNS, len(records))
    return [records[index] for index in np.linspace(0, len(records) - 1, count).round().astype(int)]


def _spread_over_labels(records: Sequence[Record]) -> list[Record]:
    """Some records, of as many kinds of defects as possible; those with masks first."""
    by_label: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: not record.masks):
        by_label.setdefault(record.label_name, []).append(record)
    turns = [(turn, record) for group in by_label.values() for turn, record in enumerate(group[:COLUMNS])]
    return [record for _, record in sorted(turns, key=lambda item: item[0])[:COLUMNS]]


def _tile(record: Record, value_range: tuple[float, float] | None) -> Image.Image:
    """An image, as large as fits, with the outlines of its masks."""
    pixels = np.asarray(read_image(record.paths[0], value_range))
    height, width = pixels.shape[:2]
    scale = _SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    # Single pixels stay pixels when an image is enlarged.
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    small = np.ascontiguousarray(np.clip(small, 0, 255).astype(np.uint8))
    for path in record.paths[1:]:
        if (mask := _mask(path, size)) is not None:
            outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(small, outlines, -1, _RED, 1)
    tile = Image.new("RGB", (_SIDE, _SIDE), (238, 240, 243))
    tile.paste(Image.fromarray(small), ((_SIDE - size[0]) // 2, (_SIDE - size[1]) // 2))
    return tile


def _mask(path: str, size: tuple[int, int]) -> np.ndarray | None:
    try:
        marked = read_mask(path)
    except Exception:  # it is in the list of problems
        return None
    # Thin defects stay when a mask is made smaller.
    return (cv2.resize(marked.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0).astype(np.uint8)
