# SPDX-License-Identifier: Apache-2.0
"""The layout of MVTec AD: finds categories, and refuses what anomalib's reader would misread."""

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from anomalib.data import AnomalibDataModule, MVTecAD
from anomalib.data.datasets.image.mvtecad import CATEGORIES, IMG_EXTENSIONS

from anomalib_uniad.errors import InputError, MissingFileError

# Types of images that people have but that anomalib's reader leaves out, in lower case.
_OTHER_TYPES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"}
_SPLITS = ("train", "test", "ground_truth")
_SHOWN = 3


def has_mvtec_layout(cls: type[AnomalibDataModule]) -> bool:
    """Tell whether a datamodule class reads the layout of MVTec AD with anomalib's own reader of it."""
    return issubclass(cls, MVTecAD) and cls._setup is MVTecAD._setup


def find_categories(root: Path, names: Collection[str] = CATEGORIES) -> list[Path]:
    """Find the categories in a folder: all folders that have files in ``train``, and those with certain names.

    Args:
        root (Path): Folder with the categories.
        names (Collection[str]): Names of folders that are categories if they have files at all. Defaults to the
            categories of MVTec AD.

    Returns:
        list[Path]: Their folders, sorted by name.
    """
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [path for path in folders if has_files(path / "train") or (path.name in names and has_files(path))]


def has_files(folder: Path) -> bool:
    """Tell whether there is a file somewhere in a folder.

    What is behind linked folders is not searched, as in anomalib, but they are not taken for nothing either.
    """
    return folder.is_dir() and any(path.is_file() or path.is_symlink() for path in folder.rglob("*"))


def check_layout(root: Path, categories: Sequence[str]) -> None:
    """Refuse categories that anomalib cannot read, or of which it would leave images out.

    Args:
        root (Path): Folder with the categories.
        categories (Sequence[str]): Their names.

    Raises:
        FileNotFoundError: If the root does not exist or has none of the categories.
        ValueError: If something is wrong with the categories; the message has all of it.
    """
    if not any((root / category).is_dir() for category in categories):
        state = f"has none of the categories {', '.join(categories)}" if root.exists() else "does not exist"
        msg = f"{root} {state}: correct `root`, or call `prepare_data` first if the dataset can be downloaded."
        raise MissingFileError(msg)
    problems = [f"{category}: {text}" for category in categories for text in _problems(root / category)]
    if problems:
        lines = "".join(f"\n- {problem}" for problem in problems)
        msg = (
            f"{root} cannot be read in the layout of MVTec AD (PNG images in <category>/train/good, "
            f"<category>/test/good and <category>/test/<defect>, masks in <category>/ground_truth/<defect>):{lines}"
        )
        raise InputError(msg)


def _problems(folder: Path) -> Iterator[str]:
    """Yield what is wrong in the folder of one category."""
    if not folder.is_dir():
        yield f"the folder {folder} does not exist. Create it, or leave the category out."
        return
    folder = folder.resolve()
    links: list[str] = []
    files: dict[tuple[str, ...], list[str]] = defaultdict(list)  # folder below the category's -> names of images
    for place, name in _images(folder, links):
        files[place].append(name)

    for link in links:
        yield f"{link}, which anomalib does not follow. Put the files themselves there."
    for place, names in sorted(files.items()):
        yield from _of_other_types(place, names)
    for place, names in sorted(files.items()):
        yield from _misplaced(folder, place, names)
    if has_files(folder / "train") and not links and not any(place[:1] == ("train",) for place in files):
        yield "train/good has no images. Put the normal images for training there."
    yield from _mask_problems(files)


def _images(folder: Path, links: list[str]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the place below the folder and the name of each image, and collect the links that are not read."""
    for current, subfolders, names in os.walk(folder):
        place = Path(current).relative_to(folder).parts
        for name in subfolders:
            path = Path(current, name)
            if (*place, name)[0] in _SPLITS and len(place) < 2 and path.is_symlink():
                links.append(f"{'/'.join((*place, name))} is a link to a folder")
        for name in names:
            path = Path(current, name)
            if path.suffix not in IMG_EXTENSIONS and not _seems_meant(place, name):
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(folder):
                text = f"{'/'.join((*place, ''))} has links to images outside of {folder}"
                links += [text] if text not in links else []
                continue
            yield place, name


def _seems_meant(place: tuple[str, ...], name: str) -> bool:
    """Tell whether a file of another type is an image that its owner expects to be used."""
    hidden = any(part.startswith(".") for part in (*place, name))
    return not hidden and bool(place) and place[0] in _SPLITS and Path(name).suffix.lower() in _OTHER_TYPES


def _of_other_types(place: tuple[str, ...], names: Sequence[str]) -> Iterator[str]:
    types = Counter(Path(name).suffix for name in names if Path(name).suffix not in IMG_EXTENSIONS)
    for suffix, count in sorted(types.items()):
        yield f"{'/'.join(place)} has {_number(count, 'file')} of type {suffix}, not read. PNG is needed (.png)."


def _misplaced(folder: Path, place: tuple[str, ...], names: Sequence[str]) -> Iterator[str]:
    """Report images outside of the folders of the layout, except those that anomalib ignores."""
    if place == ("train", "good") or (len(place) == 2 and place[0] in ("test", "ground_truth")):
        return
    # anomalib takes the last two folders of each image for its split and label, at whatever depth.
    split, label = (*folder.parts, *place)[-2:]
    if label == "good" and split not in _SPLITS:
        return
    images = _number(len(names), "image")
    if place == ("train",):
        yield f"train has {images} directly in it. Move the normal images to train/good."
        return
    where = "/".join(place) or f"the folder {folder} itself"
    yield (
        f"{where} has {images}, where none belong. Move them to train/good (normal, for training), test/good or "
        "test/<defect> (masks to ground_truth/<defect>), or out of the category's folder."
    )


def _mask_problems(files: Mapping[tuple[str, ...], Sequence[str]]) -> Iterator[str]:
    """Compare the defective images with their masks."""
    places = [place for place in files if len(place) == 2]
    defects = {label for split, label in places if split == "test" and label != "good"}
    for defect in sorted(defects | {label for split, label in places if split == "ground_truth"}):
        images = sorted(files.get(("test", defect), [])) if defect in defects else []
        masks = sorted(files.get(("ground_truth", defect), []))
        if len(images) != len(masks):
            yield _count_mismatch(defect, images, masks)
        elif all(Path(name).suffix in IMG_EXTENSIONS for name in (*images, *masks)):
            yield from _name_mismatch(defect, images, masks)


def _count_mismatch(defect: str, images: Sequence[str], masks: Sequence[str]) -> str:
    if defect == "good":
        return f"ground_truth/good has {_number(len(masks), 'mask')}, but normal images have none. Remove them."
    there = {Path(mask).stem for mask in masks}
    without = [name for name in images if not {Path(name).stem, f"{Path(name).stem}_mask"} & there]
    example = ""
    if masks and 0 < len(without) < len(images):
        example = f" (none for {', '.join(without[:_SHOWN])}{', ...' if len(without) > _SHOWN else ''})"
    return (
        f"test/{defect} has {_number(len(images), 'image')}, but ground_truth/{defect} has "
        f"{_number(len(masks), 'mask')}{example}. Each defective image needs a mask "
        f"ground_truth/{defect}/<name>_mask.png, and each mask its image."
    )


def _name_mismatch(defect: str, images: Sequence[str], masks: Sequence[str]) -> Iterator[str]:
    """Pair images and masks as anomalib does, which is in the order of their names."""
    for image, mask in zip(images, masks, strict=True):
        stem = Path(image).stem
        if stem in Path(mask).stem:
            continue
        if f"{stem}_mask.png" in masks:
            what_to_do = "They are sorted differently: number the files with leading zeros (001.png, 001_mask.png)."
        else:
            what_to_do = f"Name the mask ground_truth/{defect}/{stem}_mask.png."
        yield f"test/{defect}/{image} would get the mask ground_truth/{defect}/{mask}. {what_to_do}"
        return


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
