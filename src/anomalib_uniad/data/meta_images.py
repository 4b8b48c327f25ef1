# SPDX-License-Identifier: Apache-2.0
"""The files of a dataset with meta files: where they are, and whether images and masks can be read."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath

from anomalib.data.utils import Split
from PIL import Image
from tqdm import tqdm

from anomalib_uniad.data.meta_problems import Problems
from anomalib_uniad.data.meta_records import Record
from anomalib_uniad.data.strict_json import show


@dataclass(frozen=True)
class Sample:
    """A record with its files.

    Attributes:
        record (Record): The record.
        image (str): Absolute path of its image.
        masks (tuple[str, ...]): Absolute paths of its masks.
    """

    record: Record
    image: str
    masks: tuple[str, ...]


def find_meta_files(
    root: Path, train_meta: Path | str | None, test_meta: Path | str | None, ader_meta: Path | str | None
) -> list[Path]:
    """Find the meta files.

    Args:
        root (Path): Folder of the images.
        train_meta (Path | str | None): Given by the user, as the next two; see ``MetaFile``.
        test_meta (Path | str | None): The test file.
        ader_meta (Path | str | None): The file with both.

    Returns:
        list[Path]: The training and the test file, or the one that has both.

    Raises:
        FileNotFoundError: If the root or one of them is not there.
        ValueError: If they do not go together.
    """
    if ader_meta is not None and (train_meta is not None or test_meta is not None):
        msg = "ADer's meta.json lists training and test images: set ader_meta, or train_meta and test_meta."
        raise ValueError(msg)
    if not root.is_dir():
        msg = f"The root {root} is {'a file' if root.exists() else 'not there'}: set it to the folder of the images."
        raise FileNotFoundError(msg)
    if ader_meta is not None:
        files = [Path(ader_meta).expanduser()]
    else:
        train = Path(train_meta).expanduser() if train_meta is not None else root / "train.json"
        files = [train, Path(test_meta).expanduser() if test_meta is not None else train.parent / "test.json"]
    if missing := [str(file) for file in files if not file.is_file()]:
        msg = (
            f"There is no meta file {' and no '.join(missing)}. Paths of meta files are relative to the working "
            f"directory ({Path.cwd()}), not to the root; `anomalib-uniad make-meta` writes them."
        )
        raise FileNotFoundError(msg)
    if len(files) == 2 and files[0].samefile(files[1]):
        msg = f"train_meta and test_meta are the same file, {files[0]}."
        raise ValueError(msg)
    return files


def find_files(records: Iterable[Record], root: Path, allow_outside_root: bool, problems: Problems) -> list[Sample]:
    """Find the files of records.

    Args:
        records (Iterable[Record]): The records.
        root (Path): Folder that their paths are relative to; absolute and free of links.
        allow_outside_root (bool): Whether files may be elsewhere.
        problems (Problems): Gets what is wrong.

    Returns:
        list[Sample]: The records whose image and masks are there.
    """
    samples = []
    for record in records:
        paths: list[str] = []
        for kind, name in [("image", record.image), *(("mask", mask) for mask in record.masks)]:
            path = str(root / name)
            # Not pathlib's methods, which raise for names that are too long.
            problem = _outside(name, path, root) if not allow_outside_root else ""
            if not problem and not os.path.isfile(path):  # noqa: PTH113
                problem = "is a folder" if os.path.isdir(path) else "is not there"  # noqa: PTH112
                problem += f": {show(path)}"
            if problem:
                problems.add(record.place, f"the {kind} {show(name)} {problem}.")
            else:
                paths.append(path)
        if len(paths) == 1 + len(record.masks):
            samples.append(Sample(record, paths[0], tuple(paths[1:])))
    return samples


def check_use(samples: Sequence[Sample], allow_defective_train: bool, problems: Problems) -> None:
    """Refuse images that are used twice, defective images for training, and images as their own masks.

    Args:
        samples (Sequence[Sample]): Samples of all splits; those for training come first.
        allow_defective_train (bool): Whether defective images may be used for training.
        problems (Problems): Gets what is wrong.
    """
    first: dict[str, Record] = {}  # by what links lead to: another name makes no other image
    for sample in samples:
        record, real = sample.record, os.path.realpath(sample.image)
        other = first.setdefault(real, record)
        if other is not record:
            leak = "" if other.split == record.split else " A test image must not be used for training."
            problems.add(record.place, f"the image {show(record.image)} is the one of {other.place} again.{leak}")
        if real in map(os.path.realpath, sample.masks):
            problems.add(record.place, f"the mask of {show(record.image)} is the image itself.")
        if record.label == 1 and record.split == Split.TRAIN and not allow_defective_train:
            problems.add(
                record.place,
                f"the image {show(record.image)} is defective (label 1), but training is on normal ones: remove it, "
                "or set allow_defective_train=True.",
            )


def check_images(samples: Sequence[Sample], whole: bool, threads: int, problems: Problems) -> None:
    """Refuse images and masks that cannot be read, and masks that do not fit to their image.

    Args:
        samples (Sequence[Sample]): The samples.
        whole (bool): Whether to read files to their end, which finds those that are cut off or damaged: the check
            sums of PNG files are compared, other types are decoded. Otherwise only the head is read.
        threads (int): Number of files to read at once.
        problems (Problems): Gets what is wrong.
    """
    paths = list(dict.fromkeys(path for sample in samples for path in (sample.image, *sample.masks)))
    with ThreadPoolExecutor(max(1, threads)) as pool:
        looked = pool.map(lambda path: _look(path, whole), paths)
        # Only shown if it takes a while.
        results = dict(zip(paths, tqdm(looked, "Checking images", len(paths), unit="file", delay=3), strict=True))
    for sample in samples:
        place, size = sample.record.place, results[sample.image]
        if isinstance(size, str):
            problems.add(place, f"the image {show(sample.record.image)} cannot be read: {size}.")
        for name, path in zip(sample.record.masks, sample.masks, strict=True):
            found = results[path]
            if isinstance(found, str):
                problems.add(place, f"the mask {show(name)} cannot be read: {found}.")
            elif not isinstance(size, str) and found != size:
                problems.add(
                    place,
                    f"the mask {show(name)} has {_pixels(found)}, but its image {show(sample.record.image)} has "
                    f"{_pixels(size)}.",
                )
            elif sample.record.label == 0 and whole and _marks_something(path):
                problems.add(place, f"the label is 0 (normal), but the mask {show(name)} has defective pixels.")


def _outside(name: str, path: str, root: Path) -> str:
    """Say how a path leaves the root; empty if it does not."""
    advice = "paths are relative to the root and stay in it, unless allow_outside_root=True"
    if PurePath(name).is_absolute():
        return f"is an absolute path; {advice}"
    if ".." in PurePath(name).parts:
        return f"has '..' in it; {advice}"
    if not Path(os.path.realpath(path)).is_relative_to(root):
        return f"is a link that leaves the root {root}; {advice}"
    return ""


def _look(path: str, whole: bool) -> tuple[int, int] | str:
    """Return width and height of an image, or why it cannot be read."""
    try:
        with Image.open(path) as image:
            size = image.size
            if not whole:
                return size
            if image.format == "PNG":
                image.verify()
            else:
                image.draft(image.mode, (1, 1))  # JPEG: decode all of it, but to the smallest size
                image.load()
    except Exception as error:  # decoders raise anything from OSError to struct.error
        return f"{type(error).__name__}: {error}"
    return size


def _marks_something(path: str) -> bool:
    with Image.open(path) as mask:
        return mask.convert("L").getbbox() is not None


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} pixels"
