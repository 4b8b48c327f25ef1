# SPDX-License-Identifier: Apache-2.0
"""Predictions as one page of html in which thresholds are moved and images labelled; it loads and sends nothing."""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from anomalib_uniad.checks import check_at_least
from anomalib_uniad.errors import InputError
from anomalib_uniad.files import ODD, check_output, is_there, replacing
from anomalib_uniad.image_files import size_of
from anomalib_uniad.inference.heatmap import caption_height
from anomalib_uniad.inference.thresholds_file import GivenThresholds
from anomalib_uniad.pages import render
from anomalib_uniad.report.decisions import nearest_good
from anomalib_uniad.report.pictures import data_uri, encode, read_picture

from .labels import Labels
from .table import EVERYWHERE, Group, Image, Table, find_table, read_table

PAGE_BYTES, PICTURE_BYTES = 9_000_000, 60_000
"""Of all pictures of a page, so that it can be mailed, and of one of them; base64 adds a third."""

_LABELS = {True: "defective", False: "good", None: ""}


def write_page(
    source: Path,
    output: Path,
    labels: Path | None = None,
    thresholds: Path | None = None,
    pictures: int = 200,
    overwrite: bool = False,
    images: Path | None = None,
) -> Table:
    """Write the page of a table of predictions.

    Args:
        source (Path): ``predictions.csv``, or a folder, see :func:`~anomalib_uniad.review.table.find_table`.
        output (Path): The page, ``.html``.
        labels (Path | None): ``labels.csv`` of an earlier review. Defaults to ``None``.
        thresholds (Path | None): ``thresholds.yaml`` by which was predicted; what the page does not show of it, it
            keeps in the file that it saves. Defaults to ``None``.
        pictures (int): Pictures of each product, of the images nearest to its threshold. Defaults to ``200``.
        overwrite (bool): Replace a page that is there. Defaults to ``False``.
        images (Path | None): Folder of the images, to show those without a heatmap. Defaults to ``None``: those in the
            folder of the table and in the working directory.

    Returns:
        Table: What is in the page.

    Raises:
        OSError: If there are no predictions, or there is a page.
        ValueError: If a file is something else.
    """
    check_at_least("pictures", pictures, 0)
    if output.suffix not in {".html", ".htm"}:
        raise InputError(f"output must be a file that ends in .html, got {output}.")
    check_output(output.parent, [output], overwrite)
    file = find_table(source)
    table = read_table(file, Labels(labels), images)
    given = GivenThresholds() if thresholds is None else GivenThresholds.read(thresholds)
    contents = [path.read_bytes() for path in (file, labels, thresholds) if path is not None]
    data = {
        "key": hashlib.sha256(b"\0".join(contents)).hexdigest(),
        "groups": _groups(table, _pictures(table, pictures), _good_ones(table, pictures)),
        "leftOut": table.left_out,
        "given": {"everywhere": given.everywhere, "products": list(given.products.items())},
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output, overwrite=overwrite) as (page,):
        page.write_text(_render(table, data), encoding="utf-8", errors=ODD)
    return table


def _groups(table: Table, uris: Mapping[int, str], good: Mapping[int, tuple[str, str]]) -> list[dict[str, Any]]:
    """Groups as the script has them; lists, since names may be anything."""

    def of_image(image: Image) -> list[Any]:
        label, uri, like = _LABELS[image.defective], uris.get(image.number, ""), good.get(image.number, ("", ""))
        return [image.number, image.path, image.score, label, uri, *like]

    return [
        {
            "name": group.name,
            "everywhere": group.name == EVERYWHERE,
            "threshold": group.threshold,
            "images": [of_image(image) for image in group.images],
        }
        for group in table.groups
    ]


def _pictures(table: Table, count: int) -> dict[int, str]:
    """Data URIs of the pictures of the images nearest to the threshold of their group, by number of the image."""

    def nearest(group: Group) -> list[Image]:
        return sorted(group.images, key=group.distance)[:count]

    chosen = [image for group in table.groups for image in nearest(group) if image.picture is not None]
    limit = min(PICTURE_BYTES, PAGE_BYTES // max(1, len(chosen)))
    console = Console(stderr=True)
    with ThreadPoolExecutor() as pool:
        uris = pool.map(lambda image: _data_uri(image, limit), chosen)
        shown = track(uris, "Pictures", len(chosen), console=console, transient=True, disable=not console.is_terminal)
        return {image.number: uri for image, uri in zip(chosen, shown, strict=True) if uri}


def _good_ones(table: Table, count: int) -> dict[int, tuple[str, str]]:
    """Name and data URI of the good training image most like each that was decided wrong, if the table is of a run."""
    wrong = [image for group in table.groups for image in sorted(group.wrong(), key=group.distance)[:count]]
    found = nearest_good(table.file.parent, [(image.path, image.category) for image in wrong])
    limit = min(PICTURE_BYTES, PAGE_BYTES // 3 // max(1, len(found)))
    return {
        image.number: (found[image.path].name, uri)
        for image in wrong
        if image.path in found and (uri := data_uri(found[image.path], "jpeg", limit))
    }


def _data_uri(image: Image, limit: int) -> str:
    picture = None if image.picture is None else read_picture(image.picture)
    if picture is None:
        return ""
    # A caption says what was decided, which changes here; the pictures of a test have two panels above it.
    panels = 1 if image.has_caption else 2 if _has_two_panels(picture, Path(image.path)) else 0
    if panels:
        height = picture.height - caption_height(picture.width // panels)
        picture = picture.crop((0, 0, picture.width, max(1, height)))
    return encode(picture, "jpeg", limit)


def _has_two_panels(picture: Any, file: Path) -> bool:
    """Whether a picture is that of UniAD's visualizer, and not another one, by the size of the image."""
    with suppress(OSError, ValueError):  # the image is not there any more, damaged, no file, or its name is none
        if is_there(file):
            height, width = size_of(file)
            return picture.size == (2 * width, height + caption_height(width))
    return False


def _render(table: Table, data: Mapping[str, Any]) -> str:
    return render(
        "review",
        "review.html.j2",
        name=str(table.file),
        images=sum(len(group.images) for group in table.groups),
        data=data,
    )
