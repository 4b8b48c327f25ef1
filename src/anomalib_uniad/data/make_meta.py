# SPDX-License-Identifier: Apache-2.0
"""Writes meta files for a folder in the layout of MVTec AD."""

import json
from pathlib import Path

from anomalib.data import MVTecADDataset
from anomalib.data.utils import Split

from anomalib_uniad.data.mvtec_layout import check_layout, find_categories
from anomalib_uniad.errors import ExistingFileError, InputError, MissingFileError
from anomalib_uniad.files import replacing


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
    files = [output / "train.json", output / "test.json"]
    there = [str(file) for file in files if file.exists() or file.is_symlink()]
    if there and not overwrite:
        msg = f"{' and '.join(there)} would be overwritten: choose another output folder, or set overwrite to true."
        raise ExistingFileError(msg)
    if not folder.is_dir():
        msg = f"{folder} is {'a file' if folder.exists() else 'not there'}: give the folder with the images."
        raise MissingFileError(msg)
    categories = [folder] if (folder / "train").is_dir() else find_categories(folder)
    if not categories:
        msg = f"Found no categories in {folder}: they need images in <category>/train/good."
        raise InputError(msg)
    check_layout(categories[0].parent, [category.name for category in categories])
    train, test = (
        [line for category in categories for line in _lines(folder, category, split)]
        for split in (Split.TRAIN, Split.TEST)
    )
    if not train or not test:
        msg = f"{folder} has no images for {'training' if not train else 'testing'}, so nothing is written."
        raise InputError(msg)
    output.mkdir(parents=True, exist_ok=True)
    with replacing(*files) as partial:
        for path, lines in zip(partial, (train, test), strict=True):
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return files, [len(train), len(test)]


def _lines(root: Path, category: Path, split: Split) -> list[str]:
    """Return a line per image of a split of one category."""
    real = category.resolve()  # a category may be a link, which anomalib follows

    def relative(path: str) -> str:
        name = (category / Path(path).relative_to(real)).relative_to(root).as_posix()
        if not name.isprintable():
            msg = f"The name {name!r} has control characters or is not UTF-8: rename the file."
            raise InputError(msg)
        return name

    lines = []
    samples = MVTecADDataset(root=category.parent, category=category.name, split=split).samples
    for row in samples.to_dict("records"):
        record = {"filename": relative(row["image_path"]), "label": int(row["label_index"]), "label_name": row["label"]}
        if row["mask_path"]:
            record["maskname"] = relative(row["mask_path"])
        lines.append(json.dumps({**record, "clsname": category.name}, ensure_ascii=False))
    return lines
