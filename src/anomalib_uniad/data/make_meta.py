# SPDX-License-Identifier: Apache-2.0
"""Writes meta files for folders of products."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anomalib.data.utils import Split

from anomalib_uniad.data.layouts import Dirs, find_root, raise_product_problems, read_products, set_test_images_aside
from anomalib_uniad.data.records import Record
from anomalib_uniad.errors import InputError
from anomalib_uniad.files import check_output, replacing
from anomalib_uniad.splits import MIXED_RATIO, check_ratios


def make_meta(
    folder: Path,
    output: Path | None = None,
    overwrite: bool = False,
    categories: Sequence[str] | None = None,
    normal_dir: Dirs = None,
    abnormal_dir: Dirs = None,
    normal_test_dir: Dirs = None,
    mask_dir: Dirs = None,
    normal_split_ratio: float = MIXED_RATIO,
    extensions: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[list[Path], list[int]]:
    """Write ``train.json`` and ``test.json`` with all images of a folder, for ``MetaFile(root=folder)``.

    Images are found as by ``MultiCategory(root=folder)``, whose arguments are those from ``categories`` on. Both files
    are complete or are not there.

    Args:
        folder (Path): Folder with a folder per product.
        output (Path | None): Folder of the files; made if it is not there. ``None`` is ``folder``.
            Defaults to ``None``.
        overwrite (bool): Replace files that are there. Defaults to ``False``.
        categories (Sequence[str] | None): Names of the products; ``None`` is all. Defaults to ``None``.
        normal_dir (Dirs): Folders of good training images in each product. Defaults to ``None``.
        abnormal_dir (Dirs): Folders of defective images in each product. Defaults to ``None``.
        normal_test_dir (Dirs): Folders of good test images in each product. Defaults to ``None``.
        mask_dir (Dirs): Folders of masks in each product. Defaults to ``None``.
        normal_split_ratio (float): Part of the good images that become test images of a product without good test
            images. Defaults to ``0.2``.
        extensions (Sequence[str] | None): Types of files; ``None`` is all. Defaults to ``None``.
        seed (int): Seed of that draw. Defaults to ``0``.

    Returns:
        tuple[list[Path], list[int]]: The two files, and the number of images in each.

    Raises:
        FileNotFoundError: If the folder is not there.
        FileExistsError: If one of the files is there.
        ValueError: If the folder has no products, or something is wrong in one of them.
    """
    folder = find_root(folder)
    output = folder if output is None else output.expanduser()
    files = [output / "train.json", output / "test.json"]
    check_output(output, files, overwrite)
    check_ratios(normal_split_ratio=normal_split_ratio)
    products = read_products(
        folder,
        categories,
        normal_dir=normal_dir,
        abnormal_dir=abnormal_dir,
        normal_test_dir=normal_test_dir,
        mask_dir=mask_dir,
        extensions=extensions,
    )
    raise_product_problems(folder, products)
    for product in products:
        set_test_images_aside(product, normal_split_ratio, seed)
    train, test = (
        [_line(record) for product in products for record in product.records if record.split == split]
        for split in (Split.TRAIN, Split.TEST)
    )
    if not test:
        raise InputError(f"{folder} has no images for testing, so nothing is written.")
    output.mkdir(parents=True, exist_ok=True)
    with replacing(*files, overwrite=overwrite) as partial:
        for path, lines in zip(partial, (train, test), strict=True):
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return files, [len(train), len(test)]


def _line(record: Record) -> str:
    """Return the line of an image."""
    for name in (record.image, *record.masks):
        if not name.isprintable():
            raise InputError(f"The name {name!r} has control characters or is not UTF-8: rename the file.")
    content: dict[str, Any] = {"filename": record.image, "label": record.label, "label_name": record.label_name}
    if record.masks:
        content["maskname"] = record.masks[0] if len(record.masks) == 1 else list(record.masks)
    return json.dumps({**content, "clsname": record.category}, ensure_ascii=False)
