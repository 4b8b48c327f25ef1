# SPDX-License-Identifier: Apache-2.0
"""The files of a dataset with meta files: where they are, and whether images and masks can be read."""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath

from PIL import Image
from tqdm import tqdm

from anomalib_uniad.data.meta_problems import Problems
from anomalib_uniad.data.meta_records import Record
from anomalib_uniad.data.strict_json import show
from anomalib_uniad.image_files import CUT_OFF, read_whole


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


@dataclass(frozen=True)
class _Seen:
    """What a file has: width and height, and of a mask that was read to its end, whether it marks anything."""

    size: tuple[int, int]
    marks: bool | None = None


# Pillow cuts the decimals of these off. A mask is whatever is not zero then, so larger numbers do no harm.
_CUT_MASKS = frozenset({"F"})
_ADVICE = "convert it to 8 bit first"


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


def check_images(samples: Sequence[Sample], whole: bool, threads: int, problems: Problems) -> None:
    """Refuse images and masks that cannot be read, and masks that do not fit to their image or its label.

    Args:
        samples (Sequence[Sample]): The samples.
        whole (bool): Whether to read files to their end, which finds those that are cut off or damaged: the check
            sums of PNG files are compared, other types are decoded, and so are masks. Otherwise only the head is read.
        threads (int): Number of files to read at once.
        problems (Problems): Gets what is wrong.
    """
    parts = [[(sample.image, False), *((mask, True) for mask in sample.masks)] for sample in samples]
    files = list(dict.fromkeys(file for part in parts for file in part))
    with ThreadPoolExecutor(max(1, threads)) as pool:
        looked = pool.map(lambda file: _look(file[0], file[1], whole), files)
        # Only shown if it takes a while.
        results = dict(zip(files, tqdm(looked, "Checking images", len(files), unit="file", delay=3), strict=True))
    for sample, part in zip(samples, parts, strict=True):
        for text in _judge(sample.record, *(results[file] for file in part)):
            problems.add(sample.record.place, text)


def _judge(record: Record, image: _Seen | str, *masks: _Seen | str) -> Iterator[str]:
    """Say what is wrong with an image and its masks."""
    if isinstance(image, str):
        yield f"the image {show(record.image)} cannot be read: {image}."
    empty = 0
    for name, mask in zip(record.masks, masks, strict=True):
        if isinstance(mask, str):
            yield f"the mask {show(name)} cannot be read: {mask}."
        elif not isinstance(image, str) and mask.size != image.size:
            yield (
                f"the mask {show(name)} has {_pixels(mask.size)}, but its image {show(record.image)} has "
                f"{_pixels(image.size)}."
            )
        elif record.label == 0 and mask.marks:
            yield f"the label is 0 (normal), but the mask {show(name)} has defective pixels."
        else:
            empty += mask.marks is False
    if record.label == 1 and masks and empty == len(masks):
        names = " and ".join(map(show, record.masks))
        yield f"the label is 1 (defective), but there is no defective pixel in the mask {names}."


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


def _look(path: str, is_mask: bool, whole: bool) -> _Seen | str:
    """Look at an image or a mask; if it cannot be read, say why."""
    try:
        with Image.open(path) as image:
            size = image.size
            if image.mode in (_CUT_MASKS if is_mask else CUT_OFF):
                return f"it has more than 8 bits (Pillow's mode {image.mode}), which would be cut off: {_ADVICE}"
            if not whole:
                return _Seen(size)
            read_whole(image)
        return _Seen(size, _marks_something(path) if is_mask else None)
    except Exception as error:  # decoders raise anything from OSError to struct.error
        return f"{type(error).__name__}: {error}"


def _marks_something(path: str) -> bool:
    with Image.open(path) as mask:
        return mask.convert("L").getbbox() is not None


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} pixels"
