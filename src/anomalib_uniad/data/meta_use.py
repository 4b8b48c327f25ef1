# SPDX-License-Identifier: Apache-2.0
"""What the images of meta files are used for: none twice, and none for training and test."""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from anomalib.data.utils import Split

from anomalib_uniad.data.meta_images import Sample
from anomalib_uniad.data.meta_problems import Problems
from anomalib_uniad.data.strict_json import show

logger = logging.getLogger(__name__)

_LEAK = " A test image must not be used for training."


def check_use(samples: Sequence[Sample], allow_defective_train: bool, problems: Problems) -> None:
    """Refuse images that are used twice, defective images for training, and images as their own masks.

    Args:
        samples (Sequence[Sample]): Samples of all splits; those for training come first.
        allow_defective_train (bool): Whether defective images may be used for training.
        problems (Problems): Gets what is wrong.
    """
    first: dict[str, Sample] = {}  # by what links lead to: another name makes no other image
    training: dict[object, Sample] = {}  # nor does a hard link
    for sample in samples:
        record, real, file = sample.record, os.path.realpath(sample.image), _file(sample.image)
        other = first.setdefault(real, sample)
        if record.split == Split.TRAIN:
            training.setdefault(file, sample)
        elif other is sample:
            other = training.get(file, sample)
        if other is not sample:
            leak = "" if other.record.split == record.split else _LEAK
            text = f"the image {show(record.image)} is the one of {other.record.place} again.{leak}"
            problems.add(record.place, text)
        if file in map(_file, sample.masks):
            problems.add(record.place, f"the mask of {show(record.image)} is the image itself.")
        if record.label == 1 and record.split == Split.TRAIN and not allow_defective_train:
            problems.add(
                record.place,
                f"the image {show(record.image)} is defective (label 1), but training is on normal ones: remove it, "
                "or set allow_defective_train=True.",
            )


def check_copies(samples: Sequence[Sample], threads: int, problems: Problems) -> None:
    """Refuse test images that are copies of training images, byte for byte; warn of other copies.

    Args:
        samples (Sequence[Sample]): Samples of all splits; those for training come first.
        threads (int): Number of files to read at once.
        problems (Problems): Gets what is wrong.
    """
    files: dict[str, Sample] = {}
    for sample in samples:
        files.setdefault(os.path.realpath(sample.image), sample)
    counts = Counter(map(_size, files))
    shared = {path: sample for path, sample in files.items() if counts[_size(path)] > 1}  # others have no copies
    with ThreadPoolExecutor(max(1, threads)) as pool:
        digests = list(pool.map(_digest, shared))
    first: dict[tuple[Split, bytes], Sample] = {}
    twice: dict[Split, list[tuple[Sample, Sample]]] = {Split.TRAIN: [], Split.TEST: []}
    for sample, digest in zip(shared.values(), digests, strict=True):
        record = sample.record
        training = first.get((Split.TRAIN, digest)) if record.split == Split.TEST else None
        same = first.setdefault((record.split, digest), sample)
        if training is not None:
            if _file(training.image) != _file(sample.image):  # else it is refused already
                text = f"the image {show(record.image)} is a copy of the one of {training.record.place}.{_LEAK}"
                problems.add(record.place, text)
        elif same is not sample:
            twice[record.split].append((sample, same))
    for split, pairs in twice.items():
        if pairs:
            text = "%d %s images are copies of others, so they count twice (first: %s is that of %s)"
            name = "training" if split == Split.TRAIN else "test"
            logger.warning(text, len(pairs), name, pairs[0][0].record.place, pairs[0][1].record.place)


def report_categories(samples: Sequence[Sample]) -> None:
    """Say which categories have images in one split only, which a misspelt name leads to.

    Args:
        samples (Sequence[Sample]): Samples of all splits.
    """
    places: dict[Split, dict[str, str]] = {Split.TRAIN: {}, Split.TEST: {}}
    for sample in samples:
        places[sample.record.split].setdefault(sample.record.category, str(sample.record.place))
    for split, other, level, text in (
        (Split.TEST, Split.TRAIN, logging.WARNING, "no training images, so the model does not learn them: %s"),
        (Split.TRAIN, Split.TEST, logging.INFO, "no test images: %s"),
    ):
        alone = [f"{show(name)} (first: {place})" for name, place in places[split].items() if name not in places[other]]
        if alone:
            logger.log(level, f"Categories with {text}. Are their names misspelt?", "; ".join(alone))


def _file(path: str) -> object:
    """Return what is the same for all names of a file."""
    stat = os.stat(path)  # noqa: PTH116
    return (stat.st_dev, stat.st_ino) if stat.st_ino else os.path.realpath(path)  # some file systems have no numbers


def _size(path: str) -> int:
    return os.stat(path).st_size  # noqa: PTH116


def _digest(path: str) -> bytes:
    try:
        return hashlib.sha256(Path(path).read_bytes()).digest()
    except OSError:  # which is reported as an image that cannot be read
        return os.fsencode(path)
