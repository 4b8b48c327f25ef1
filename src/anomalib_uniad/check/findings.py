# SPDX-License-Identifier: Apache-2.0
"""What is wrong with images, or looks as if it were."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from anomalib.data.utils import Split

from anomalib_uniad.data.image_checks import Read, find_faults
from anomalib_uniad.data.layouts import Product
from anomalib_uniad.data.records import Record

from .features import FEWEST, Unlike
from .look import Look

UNEQUAL = 10  # times as many good images as another product has
# Part of the usual distance to the nearest other image. On the generated products, images that are saved as JPEG of
# quality 75, resized or have a little noise come to 0.38 at most, other test images to 0.60 at least.
NEAR = 0.4
_BLOCK = 512  # images whose distances are computed together
_MOST = 1000  # images of which the usual distance is told


class Finding(NamedTuple):
    """What is found.

    Attributes:
        stops (bool): Whether a training stops at it; otherwise a hint.
        product (str): Name of the product; empty if it is about several.
        kind (str): A few words, the same for all of a kind.
        file (str): Path of the file; empty if it is about a product.
        text (str): One sentence.
    """

    stops: bool
    product: str
    kind: str
    file: str
    text: str


@dataclass
class Inspected:
    """A product, and what was seen of it.

    Attributes:
        product (Product): The product.
        images (dict[str, Look]): Path of an image -> what was seen; without pixels.
        masks (dict[str, Read]): Path of a mask -> what was read.
        good (list[str]): Paths of the good training images whose features are known.
        unlike (Unlike | None): How much these differ from the others.
        groups (np.ndarray | None): The group of each, if they look like two products.
    """

    product: Product
    images: dict[str, Look] = field(default_factory=dict)
    masks: dict[str, Read] = field(default_factory=dict)
    good: list[str] = field(default_factory=list)
    unlike: Unlike | None = None
    groups: np.ndarray | None = None

    @property
    def name(self) -> str:
        """Name of the product."""
        return self.product.name

    def records(self, split: Split | None = None, label: int | None = None) -> list[Record]:
        """Records with a file, of a split and label if these are given."""
        return [
            record
            for record in self.product.records
            if record.paths and (split is None or record.split == split) and (label is None or record.label == label)
        ]


def find(products: Sequence[Inspected], strict: bool) -> list[Finding]:
    """Find what is wrong, first what stops a training.

    Args:
        products (Sequence[Inspected]): The products.
        strict (bool): Whether copies across training and test, and masks that contradict labels, stop a training.
    """
    found = [*_copies(products, strict), *_unequal(products)]
    for product in products:
        found += [*_listed(product), *_files(product, strict), *_count(product), *_dark(product)]
        found += [*_near_copies(product), *_unlike(product)]
    return sorted(found, key=lambda finding: not finding.stops)


def _listed(inspected: Inspected) -> Iterator[Finding]:
    """What was found when folders and lists were read."""
    product = inspected.product
    for text in product.problems:
        yield Finding(True, product.name, "layout", "", text)
    for text in product.notes:
        yield Finding(False, product.name, "layout", "", text)
    for record in product.records:
        for text in record.problems:
            yield Finding(
                True, product.name, "list", record.paths[0] if record.paths else "", f"{record.place}: {text}"
            )


def _files(inspected: Inspected, strict: bool) -> Iterator[Finding]:
    kinds = {"mask": "mask", "label": "mask against label"}
    turned = []
    for record in inspected.records():
        look = inspected.images[record.paths[0]]
        masks = [inspected.masks[path] for path in record.paths[1:]]
        for fault in find_faults(record, look.seen, masks):
            kind = kinds.get(fault.kind) or ("bits" if look.seen.depth else "unreadable")
            text = fault.text
            if look.limits and fault.kind == "image":
                text = f"{text[:-1]}; its values are {look.limits[0]:g} to {look.limits[1]:g}."
            yield Finding(strict or fault.kind != "label", inspected.name, kind, fault.file, text)
        full = [mask for mask in masks if mask.extrema and mask.extrema[0] > 0]
        if full:
            text = f"the mask of {record.image!r} marks the whole image as defective."
            yield Finding(False, inspected.name, "full mask", record.paths[1], text)
        if look.seen.turned:
            turned.append(record)
    for record in turned:
        text = (
            f"EXIF data of {record.image!r} say that it is to be shown turned, which is ignored in training and "
            "prediction: turn the pixels if all others are upright."
        )
        yield Finding(False, inspected.name, "EXIF orientation", record.paths[0], text)


def _count(inspected: Inspected) -> Iterator[Finding]:
    good = len(inspected.records(Split.TRAIN, 0))
    if not good and not inspected.product.problems:
        yield Finding(True, inspected.name, "few images", "", "there are no good images to train on.")
    elif good < FEWEST:
        text = f"{good} good image{'' if good == 1 else 's'} for training: {FEWEST} are few, 50 are better."
        yield Finding(False, inspected.name, "few images", "", text)


def _unequal(products: Sequence[Inspected]) -> Iterator[Finding]:
    counts = {product.name: len(product.records(Split.TRAIN, 0)) for product in products}
    most = max(counts, key=lambda name: counts[name], default="")
    for name, count in counts.items():
        if 0 < count * UNEQUAL <= counts[most]:
            images = f"{count} good image{'' if count == 1 else 's'}"
            text = f"it has {images}, {most} has {counts[most]}: the model sees it that much less often."
            yield Finding(False, name, "unequal products", "", text)


def _dark(inspected: Inspected) -> Iterator[Finding]:
    for what, attribute in (("black", "is_black"), ("white", "is_white")):
        paths = [path for path, look in inspected.images.items() if getattr(look, attribute)]
        if 2 * len(paths) > len(inspected.images):
            text = f"{len(paths)} of {len(inspected.images)} images are nearly {what}."
            yield Finding(False, inspected.name, f"nearly {what}", "", text)
            continue
        for path in paths:
            yield Finding(False, inspected.name, f"nearly {what}", path, f"the image is nearly {what}.")


def _copies(products: Iterable[Inspected], strict: bool) -> Iterator[Finding]:
    """Files that are equal byte for byte, those across training and test first of all."""
    first: dict[bytes, tuple[Record, str]] = {}
    for split in (Split.TRAIN, Split.TEST):
        for product in products:
            for record in product.records(split):
                digest = product.images[record.paths[0]].digest
                if not digest:
                    continue
                other, name = first.setdefault(digest, (record, product.name))
                if other is record:
                    continue
                across = other.split != record.split
                against = f", which is {_quality(other)}" if other.label != record.label else ""
                text = f"{_quality(record)} image {record.image!r} is the same file as {other.image!r}{against}"
                if name != product.name:
                    text += f" of {name}"
                text += ": it is trained on and tested." if across else ": it counts twice."
                kind = "copy across training and test" if across else "copy"
                yield Finding(across and strict, product.name, kind, record.paths[0], text)


def _quality(record: Record) -> str:
    return "defective" if record.label else "good"


def _near_copies(inspected: Inspected) -> Iterator[Finding]:
    """Test images that are much more like a training image than training images are like each other."""
    train = [r for r in inspected.records(Split.TRAIN) if inspected.images[r.paths[0]].thumb is not None]
    test = [r for r in inspected.records(Split.TEST) if inspected.images[r.paths[0]].thumb is not None]
    if len(train) < FEWEST or not test:
        return
    known, asked = _thumbs(inspected, train), _thumbs(inspected, test)
    rows = np.random.default_rng(0).permutation(len(train))[:_MOST]
    usual = float(np.median(_nearest(known[rows], known, rows)[0]))
    distances, nearest = _nearest(asked, known)
    for record, distance, index in zip(test, distances, nearest, strict=True):
        other = train[index]
        if (
            distance > NEAR * usual
            or inspected.images[record.paths[0]].digest == inspected.images[other.paths[0]].digest
        ):
            continue
        text = (
            f"{_quality(record)} test image {record.image!r} looks nearly the same as the training image "
            f"{other.image!r}."
        )
        yield Finding(False, inspected.name, "near-copy", record.paths[0], text)


def _thumbs(inspected: Inspected, records: Sequence[Record]) -> np.ndarray:
    return np.stack([np.asarray(inspected.images[record.paths[0]].thumb).ravel() for record in records])


def _nearest(asked: np.ndarray, known: np.ndarray, own: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Distance (n,) to the nearest of the known, and which that is (n,); ``own`` are rows not to compare with."""
    lengths = (known**2).sum(1)
    distances, indices = [], []
    for start in range(0, len(asked), _BLOCK):
        block = asked[start : start + _BLOCK]
        squared = (block**2).sum(1)[:, None] - 2 * block @ known.T + lengths  # (rows, known)
        if own is not None:
            squared[np.arange(len(block)), own[start : start + _BLOCK]] = np.inf
        indices.append(squared.argmin(1))
        distances.append(np.sqrt(np.maximum(squared.min(1), 0)))
    return np.concatenate(distances), np.concatenate(indices)


def _unlike(inspected: Inspected) -> Iterator[Finding]:
    names = {record.paths[0]: record.image for record in inspected.records()}
    if inspected.groups is not None:
        members = [
            [path for path, group in zip(inspected.good, inspected.groups, strict=True) if group == which]
            for which in (0, 1)
        ]
        counts = " and ".join(f"{len(paths)} like {names[paths[0]]!r}" for paths in members)
        text = f"its good images look like two products: {counts}. Put them into two folders if they are."
        yield Finding(False, inspected.name, "two products", "", text)
    if inspected.unlike is None or len(inspected.good) < FEWEST:
        return
    for index in inspected.unlike.outliers():
        path = inspected.good[index]
        text = (
            f"the good image {names[path]!r} looks least like the others ({inspected.unlike.deviations[index]:.1f} "
            "standard deviations): is it a defective one?"
        )
        yield Finding(False, inspected.name, "unlike the others", path, text)


def sizes(inspected: Inspected) -> str:
    """Sizes of the images, the most frequent first."""
    return _counted(
        f"{look.seen.size[0]} x {look.seen.size[1]}" for look in inspected.images.values() if look.seen.type
    )


def types(inspected: Inspected) -> str:
    """Types of the files and kinds of pixels, the most frequent first."""
    return _counted(f"{look.seen.type} {look.seen.mode}" for look in inspected.images.values() if look.seen.type)


def _counted(values: Iterable[str]) -> str:
    counts: Mapping[str, int] = Counter(values)
    shown = sorted(counts.items(), key=lambda item: -item[1])
    if len(shown) == 1:
        return shown[0][0]
    parts = [f"{value} ({count})" for value, count in shown[:3]]
    return ", ".join(parts) + (f", {len(shown) - 3} more" if len(shown) > 3 else "")
