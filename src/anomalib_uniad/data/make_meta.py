# SPDX-License-Identifier: Apache-2.0
"""Writes meta files for a folder in the layout of MVTec AD."""

import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anomalib.data import MVTecADDataset
from anomalib.data.utils import Split

from anomalib_uniad.data.multi_category_datamodule import replace_prefix
from anomalib_uniad.data.mvtec_layout import check_layout
from anomalib_uniad.data.wrapped import WrappedSource

NAMES = {Split.TRAIN: "train.json", Split.TEST: "test.json"}


def make_meta(folder: Path, output: Path | None = None, overwrite: bool = False) -> tuple[list[Path], list[int]]:
    """Write ``train.json`` and ``test.json`` with all images of a folder, for ``MetaFile(root=folder)``.

    Images are listed as anomalib's ``MVTecAD`` finds them. Both files are complete or are not there.

    Args:
        folder (Path): Folder with the categories in the layout of MVTec AD, or with one category alone.
        output (Path | None): Folder of the files; made if it is not there. ``None`` is ``folder``.
            Defaults to ``None``.
        overwrite (bool): Replace files that are there. Defaults to ``False``.

    Returns:
        tuple[list[Path], list[int]]: The two files, and the number of images in each.

    Raises:
        FileNotFoundError: If the folder is not there.
        FileExistsError: If one of the files is there.
        ValueError: If the folder has no categories, or their layout is not that of MVTec AD.
    """
    folder = folder.expanduser().resolve()
    output = folder if output is None else output.expanduser()
    files = [output / name for name in NAMES.values()]
    there = [str(file) for file in files if file.exists() or file.is_symlink()]
    if there and not overwrite:
        msg = f"{' and '.join(there)} would be overwritten: choose another output folder, or set overwrite to true."
        raise FileExistsError(msg)
    categories = _categories(folder)
    lines = [_lines(folder, categories, split) for split in NAMES]
    if not lines[0] or not lines[1]:
        msg = f"{folder} has no images for {'training' if not lines[0] else 'testing'}, so nothing is written."
        raise ValueError(msg)
    output.mkdir(parents=True, exist_ok=True)
    _write(files, lines)
    return files, [len(part) for part in lines]


def _categories(folder: Path) -> dict[str, Path]:
    """Find the categories: names and folders."""
    if not folder.is_dir():
        msg = f"{folder} is {'a file' if folder.exists() else 'not there'}: give the folder with the images."
        raise FileNotFoundError(msg)
    if (folder / "train").is_dir():
        found = {folder.name: folder}
    else:
        found = WrappedSource("MVTecAD", {"root": folder}).folders()
    if not found:
        msg = f"Found no categories in {folder}: they need images in <category>/train/good."
        raise ValueError(msg)
    check_layout(next(iter(found.values())).parent, list(found))
    return found


def _lines(root: Path, categories: dict[str, Path], split: Split) -> list[str]:
    """Write a line per image of a split."""
    lines = []
    for category, folder in categories.items():
        samples = MVTecADDataset(root=folder.parent, category=category, split=split).samples
        # A category may be a link, which anomalib follows.
        for row in replace_prefix(samples, folder.resolve(), folder).to_dict("records"):
            record: dict[str, Any] = {
                "filename": _relative(row["image_path"], root),
                "label": int(row["label_index"]),
                "label_name": row["label"],
            }
            if row["mask_path"]:
                record["maskname"] = _relative(row["mask_path"], root)
            lines.append(json.dumps({**record, "clsname": category}, ensure_ascii=False))
    return lines


def _relative(path: Any, root: Path) -> str:
    relative = Path(path).relative_to(root).as_posix()
    if not relative.isprintable():
        msg = f"The name {relative!r} has control characters or is not UTF-8: rename the file."
        raise ValueError(msg)
    return relative


def _write(files: Sequence[Path], lines: Sequence[Sequence[str]]) -> None:
    """Write all files, each under another name first, so that nobody sees half of one."""
    partial = [file.with_name(f".{file.name}.{uuid.uuid4().hex}.partial") for file in files]
    try:
        for path, part in zip(partial, lines, strict=True):
            path.write_text("".join(f"{line}\n" for line in part), encoding="utf-8")
        for path, file in zip(partial, files, strict=True):
            path.replace(file)
    finally:
        for path in partial:
            path.unlink(missing_ok=True)
