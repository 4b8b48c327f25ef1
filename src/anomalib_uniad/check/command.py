# SPDX-License-Identifier: Apache-2.0
"""Looks at all images of a folder or config, and writes what was found."""

import csv
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from anomalib.data.utils import Split
from tqdm import tqdm

from anomalib_uniad.data.image_checks import read_mask_file
from anomalib_uniad.files import ODD, file_names, plain, plain_path, replacing, save_picture
from anomalib_uniad.pages import render

from .contact_sheet import draw
from .features import BATCH, Extractor, Usual, two_groups
from .findings import Finding, Inspected, find, sizes, types
from .look import in_order, look_closely
from .source import Source

SHEETS = "contact_sheets"
_NAMES = ("check.html", "problems.csv")
_SHOWN = 4  # examples of a kind of finding


@dataclass
class Checked:
    """What was found.

    Attributes:
        source (Source): What was checked.
        products (list[Inspected]): The products.
        findings (list[Finding]): What is wrong with them, first what stops a training.
    """

    source: Source
    products: list[Inspected]
    findings: list[Finding]

    @property
    def stops(self) -> int:
        """Number of findings that stop a training."""
        return sum(finding.stops for finding in self.findings)

    def rows(self) -> list[dict[str, Any]]:
        """What is known of each product."""
        return [
            {
                "product": each.name,
                "good_train": len(each.records(Split.TRAIN, 0)),
                "good_test": len(each.records(Split.TEST, 0)),
                "defective": len(each.records(label=1)),
                "with_masks": sum(bool(record.masks) for record in each.records(label=1)),
                "sizes": sizes(each),
                "types": types(each),
                "layout": each.product.layout,
            }
            for each in self.products
        ]

    def groups(self) -> Iterator[dict[str, Any]]:
        """Findings of the same kind and product together."""
        together: dict[tuple[bool, str, str], list[Finding]] = {}
        for finding in self.findings:
            together.setdefault((finding.stops, finding.product, finding.kind), []).append(finding)
        for (stops, product, kind), found in together.items():
            texts = [finding.text for finding in found[:_SHOWN]]
            more = len(found) - len(texts)
            yield {"stops": stops, "product": product, "kind": kind, "count": len(found), "texts": texts, "more": more}


def output_files(output: Path, names: Sequence[str]) -> list[Path]:
    """Files of the results for the products of these names."""
    return [output / name for name in (*_NAMES, *_sheets(names).values())]


def inspect(source: Source, backbone: str | None) -> Checked:
    """Look at all files.

    Args:
        source (Source): The products.
        backbone (str | None): Name in timm of what sees how images look; ``None`` leaves that out.

    Returns:
        Checked: What was found.

    Raises:
        ValueError: If timm does not know the backbone.
        ConnectionError: If its weights cannot be fetched.
    """
    extractor = None if backbone is None else Extractor(backbone)
    products = [Inspected(product) for product in source.products]
    total = sum(len(record.paths) for product in products for record in product.records())
    with tqdm(total=total, desc="Checking", unit="file") as bar:
        for product in products:
            _inspect(product, source, extractor, bar)
    return Checked(source, products, find(products, source.strict))


def _inspect(inspected: Inspected, source: Source, extractor: Extractor | None, bar: "tqdm[Any]") -> None:
    """Read the files of a product, and compute the features of its good training images."""
    records = inspected.records()
    good = {record.paths[0] for record in records if record.split == Split.TRAIN and record.label == 0}
    images = list(dict.fromkeys(record.paths[0] for record in records))
    random.Random(0).shuffle(images)  # what is usual is learnt from the first of them
    usual = Usual()
    whole: list[np.ndarray] = []
    batch: list[tuple[str, np.ndarray]] = []

    def see() -> None:
        features, places = extractor([pixels for _, pixels in batch])  # type: ignore[misc]
        usual.add(places)
        whole.append(features)
        inspected.good += [path for path, _ in batch]
        batch.clear()

    looks = in_order(lambda path: look_closely(path, source.value_range), images)
    for path, look in zip(images, looks, strict=True):
        inspected.images[path] = look._replace(pixels=None)
        # Black and white images are found anyway, and would change what is usual.
        if extractor and path in good and look.pixels is not None and not look.is_black and not look.is_white:
            batch.append((path, look.pixels))
            if len(batch) == BATCH:
                see()
        bar.update()
    masks = list(dict.fromkeys(path for record in records for path in record.paths[1:]))
    for path, read in zip(masks, in_order(read_mask_file, masks), strict=True):
        inspected.masks[path] = read
        bar.update()
    if batch:
        see()
    if whole:
        inspected.unlike = usual.unlike()
        inspected.groups = two_groups(np.concatenate(whole))


def write(checked: Checked, output: Path) -> list[Path]:
    """Write check.html, problems.csv and a contact sheet per product; what is there is replaced.

    Args:
        checked (Checked): What was found.
        output (Path): Folder; made if it is not there.

    Returns:
        list[Path]: The page, the table, and the folder of the contact sheets.
    """
    names = _sheets([product.name for product in checked.products])
    (output / SHEETS).mkdir(parents=True, exist_ok=True)
    for product in tqdm(checked.products, "Contact sheets", unit="product", delay=3):
        save_picture(draw(product, checked.source.value_range), output / names[product.name], quality=88)
    files = [output / name for name in _NAMES]
    with replacing(*files) as (page, table):
        page.write_text(_page(checked, names), encoding="utf-8", errors=ODD)
        with table.open("w", encoding="utf-8", errors=ODD, newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(("stops_training", "product", "kind", "file", "text"))
            for finding in checked.findings:
                about = map(plain, (finding.product, finding.kind, plain_path(finding.file), finding.text))
                writer.writerow(("yes" if finding.stops else "no", *about))
    return [*files, output / SHEETS]


def _page(checked: Checked, sheets: dict[str, str]) -> str:
    rows = [{**row, "sheet": sheets[row["product"]]} for row in checked.rows()]
    return render(
        "check",
        "page.html.j2",
        name=checked.source.name,
        summary=summary(checked),
        products=rows,
        groups=list(checked.groups()),
        stops=checked.stops,
        command=checked.source.command,
    )


def summary(checked: Checked) -> str:
    """Count products, images, problems and hints, in words."""
    images = sum(len(product.images) for product in checked.products)
    hints = len(checked.findings) - checked.stops
    parts = [
        _number(len(checked.products), "product"),
        _number(images, "image"),
        f"{_number(checked.stops, 'problem')} that stop{'s' if checked.stops == 1 else ''} a training"
        if checked.stops
        else "no problem that stops a training",
        _number(hints, "hint"),
    ]
    return ", ".join(parts)


def _sheets(names: Sequence[str]) -> dict[str, str]:
    return {name: f"{SHEETS}/{file}.jpg" for name, file in file_names(names).items()}


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
