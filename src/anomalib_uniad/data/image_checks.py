# SPDX-License-Identifier: Apache-2.0
"""Images and masks of records: whether they are there, can be read, fit to each other, and are used once."""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import NamedTuple

from anomalib.data.utils import Split
from tqdm import tqdm

from anomalib_uniad.checks import show
from anomalib_uniad.data.records import Record
from anomalib_uniad.image_files import Seen, look, open_image, reason_of

logger = logging.getLogger(__name__)

# Pillow cuts the decimals of these off. A mask is whatever is not zero then, so larger numbers do no harm.
_CUT_MASKS = frozenset({"F"})
_LEAK = " A test image must not be used for training."


class Read(NamedTuple):
    """An image or mask that was read, and the smallest and largest value of a mask that was read to its end."""

    seen: Seen
    extrema: tuple[float, float] | None = None


class Fault(NamedTuple):
    """What is wrong with the files of a record.

    Attributes:
        file (str): Path of the image or mask.
        kind (str): ``"image"``, ``"mask"``, or ``"label"`` if a mask can be used but contradicts the label.
        text (str): One sentence.
        reason (str): The same in a few words, without names; empty for ``"label"``.
    """

    file: str
    kind: str
    text: str
    reason: str = ""


def find_files(records: Iterable[Record], root: Path, allow_outside_root: bool) -> list[Record]:
    """Set the paths of records and return those whose image and masks are there.

    The root, which the paths are relative to, has to be absolute and free of links.
    """
    found = []
    for record in records:
        names = [("image", record.image), *(("mask", mask) for mask in record.masks)] if record.image else []
        paths = []
        for kind, name in names:
            path = str(root / name)
            # Not pathlib's methods, which raise for names that are too long.
            problem = _outside(name, path, root) if not allow_outside_root else ""
            if not problem and not os.path.isfile(path):  # noqa: PTH113
                problem = f"is {'a folder' if os.path.isdir(path) else 'not there'}: {show(path)}"  # noqa: PTH112
            if problem:
                record.problems.append(f"the {kind} {show(name)} {problem}.")
            else:
                paths.append(path)
        if names and len(paths) == len(names):
            record.paths = tuple(paths)
            found.append(record)
    return found


def check_use(records: Iterable[Record], allow_defective_train: bool) -> None:
    """Refuse images that are used twice, defective images for training, and images as their own masks.

    Records for training come first.
    """
    first: dict[str, Record] = {}  # by what links lead to: another name makes no other image
    training: dict[object, Record] = {}  # nor does a hard link
    for record in records:
        image, *masks = map(_file, record.paths)
        other = first.setdefault(os.path.realpath(record.paths[0]), record)
        if record.split == Split.TRAIN:
            training.setdefault(image, record)
        elif other is record:
            other = training.get(image, record)
        if other is not record:
            leak = "" if other.split == record.split else _LEAK
            record.problems.append(f"the image {show(record.image)} is the one of {other.place} again.{leak}")
        if image in masks:
            record.problems.append(f"the mask of {show(record.image)} is the image itself.")
        if record.label == 1 and record.split == Split.TRAIN and not allow_defective_train:
            record.problems.append(
                f"the image {show(record.image)} is defective (label 1), but training is on normal ones: remove it, "
                "or set allow_defective_train=True."
            )


def check_images(
    records: Sequence[Record],
    whole: bool,
    threads: int,
    value_range: tuple[float, float] | None = None,
    strict: bool = True,
) -> list[Fault]:
    """Refuse images and masks that cannot be read, and masks that do not fit to their image or its label.

    What is wrong is added to the problems of the records, and returned.

    Whole files are read to find those that are cut off or damaged: the checksums of PNG files are compared, other types
    are decoded, and so are masks. Otherwise only the head is read. Images with more than 8 bits need a range. If not
    strict, masks that contradict the label are warned of.
    """
    files = list(dict.fromkeys((path, i > 0) for record in records for i, path in enumerate(record.paths)))
    with ThreadPoolExecutor(max(1, threads)) as pool:
        looked = pool.map(lambda file: _look(file[0], file[1], value_range, whole), files)
        # Only shown if it takes a while.
        found = dict(zip(files, tqdm(looked, "Checking images", len(files), unit="file", delay=3), strict=True))
    tolerated, refused = [], []
    for record in records:
        image, *masks = (found[path, i > 0] for i, path in enumerate(record.paths))
        faults = list(find_faults(record, image.seen, masks))
        tolerated += [fault for fault in faults if fault.kind == "label" and not strict]
        wrong = [fault for fault in faults if fault.kind != "label" or strict]
        record.problems += [fault.text for fault in wrong]
        refused += wrong
    if tolerated:
        logger.warning("%d masks contradict their labels, first: %s", len(tolerated), tolerated[0].text)
    return refused


def find_faults(record: Record, image: Seen, masks: Sequence[Read]) -> Iterator[Fault]:
    """Yield what is wrong with the image and the masks of a record.

    Args:
        record (Record): The record.
        image (Seen): What was seen of its image.
        masks (Sequence[Read]): Its masks, as they were read.
    """
    if image.problem:
        text = f"the image {show(record.image)} cannot be read: {image.problem}."
        yield Fault(record.paths[0], "image", text, image.problem)
    for name, path, mask in zip(record.masks, record.paths[1:], masks, strict=True):
        if mask.seen.reason:
            text = f"the mask {show(name)} cannot be read: {mask.seen.reason}."
            yield Fault(path, "mask", text, mask.seen.reason)
        elif not image.reason and mask.seen.size != image.size:
            own, others = _pixels(mask.seen.size), _pixels(image.size)
            text = f"the mask {show(name)} has {own}, but its image {show(record.image)} has {others}."
            yield Fault(path, "mask", text, f"it has {own}, but its image has {others}")
        elif record.label == 0 and mask.extrema and mask.extrema[1] > 0:
            yield Fault(path, "label", f"the label is 0 (normal), but the mask {show(name)} has defective pixels.")
    if record.label == 1 and masks and all(mask.extrema and mask.extrema[1] == 0 for mask in masks):
        names = " and ".join(map(show, record.masks))
        text = f"the label is 1 (defective), but there is no defective pixel in the mask {names}."
        yield Fault(record.paths[1], "label", text)


def check_copies(records: Iterable[Record], threads: int, strict: bool = True) -> None:
    """Refuse test images that are copies of training images, byte for byte; warn of other copies.

    Records for training come first. If not strict, all copies are warned of.
    """
    files: dict[str, Record] = {}
    for record in records:
        files.setdefault(os.path.realpath(record.paths[0]), record)
    sizes = {path: os.stat(path).st_size for path in files}  # noqa: PTH116
    counts = Counter(sizes.values())
    shared = {path: record for path, record in files.items() if counts[sizes[path]] > 1}  # others have no copies
    with ThreadPoolExecutor(max(1, threads)) as pool:
        digests = list(pool.map(_digest, shared))
    first: dict[tuple[Split, bytes], Record] = {}
    leaks: list[tuple[Record, str]] = []
    twice: dict[Split, list[tuple[Record, Record]]] = {Split.TRAIN: [], Split.TEST: []}
    for record, digest in zip(shared.values(), digests, strict=True):
        training = first.get((Split.TRAIN, digest)) if record.split == Split.TEST else None
        same = first.setdefault((record.split, digest), record)
        if training is not None:
            if _file(training.paths[0]) != _file(record.paths[0]):  # else it is refused already
                text = f"the image {show(record.image)} is a copy of the one of {training.place}.{_LEAK}"
                leaks.append((record, text))
        elif same is not record:
            twice[record.split].append((record, same))
    if strict:
        for record, text in leaks:
            record.problems.append(text)
    elif leaks:
        logger.warning("%d test images are copies of training images, first: %s", len(leaks), leaks[0][1])
    for split, pairs in twice.items():
        if pairs:
            text = "%d %s images are copies of others, so they count twice (first: %s is that of %s)"
            name = "training" if split == Split.TRAIN else "test"
            logger.warning(text, len(pairs), name, pairs[0][0].place, pairs[0][1].place)


def report_categories(records: Iterable[Record]) -> None:
    """Log which categories have images in one split only, which a misspelt name leads to."""
    places: dict[Split, dict[str, str]] = {Split.TRAIN: {}, Split.TEST: {}}
    for record in records:
        places[record.split].setdefault(record.category, record.place)
    for split, other, level, text in (
        (Split.TEST, Split.TRAIN, logging.WARNING, "no training images, so the model does not learn them: %s"),
        (Split.TRAIN, Split.TEST, logging.INFO, "no test images: %s"),
    ):
        alone = [f"{show(name)} (first: {place})" for name, place in places[split].items() if name not in places[other]]
        if alone:
            logger.log(level, f"Categories with {text}. Are their names misspelt?", "; ".join(alone))


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


def _look(path: str, is_mask: bool, value_range: tuple[float, float] | None, whole: bool) -> Read:
    return read_mask_file(path, whole) if is_mask else Read(look(path, value_range, whole))


def read_mask_file(path: str, whole: bool = True) -> Read:
    """Read a mask, to its end or only its head.

    Args:
        path (str): The file.
        whole (bool): To its end. Defaults to ``True``.

    Returns:
        Read: What is known of it.
    """
    seen = look(path, whole=whole)
    if seen.reason:
        return Read(seen)
    if seen.mode in _CUT_MASKS:
        reason = f"it has decimals (Pillow's mode {seen.mode}), which would be cut off: convert it to 8 bits"
        return Read(seen._replace(reason=reason))
    if not whole:
        return Read(seen)
    try:
        with open_image(path) as mask:
            return Read(seen, mask.convert("L").getextrema())
    except Exception as error:  # decoders raise anything from OSError to struct.error
        return Read(seen._replace(reason=reason_of(error, path)))


def _file(path: str) -> object:
    """Identity of a file, the same for all its names."""
    stat = os.stat(path)  # noqa: PTH116
    return (stat.st_dev, stat.st_ino) if stat.st_ino else os.path.realpath(path)  # some file systems have no numbers


def _digest(path: str) -> bytes:
    try:
        return hashlib.sha256(Path(path).read_bytes()).digest()
    except OSError:  # which is reported as an image that cannot be read
        return os.fsencode(path)


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} pixels"
