# SPDX-License-Identifier: Apache-2.0
"""Folders of products as people have them: finds the images, their labels and masks by the names of folders and files.

No image is opened.
"""

import difflib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath
from typing import NamedTuple

from anomalib.data.utils import Split

from anomalib_uniad.data.records import Record
from anomalib_uniad.errors import InputError, MissingFileError
from anomalib_uniad.files import real_path
from anomalib_uniad.image_files import EXTENSIONS
from anomalib_uniad.label_names import ABNORMAL, NORMAL, TEST, folder_key
from anomalib_uniad.splits import draw

EXPECTED = (
    "expected are <root>/<product>/good and, where there are defects, <root>/<product>/bad (or normal and abnormal, ok "
    "and ng), or the layout of MVTec AD: <product>/train/good, test/good, test/<defect>, ground_truth/<defect>"
)

# Names of folders, as `folder_key` writes them; those of good and defective images are in label_names.
_TRAIN = frozenset({"train", "training"})
_MASKS = frozenset({"groundtruth", "gt", "mask", "masks"})
_MASK_SUFFIXES = ("", "_mask", "-mask", "_gt", "_ground_truth", "_label", "_seg")

# Images that people have and that are not read.
_OTHER_TYPES = frozenset(
    {".gif", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".dcm", ".dng", ".raw", ".npy", ".tga", ".exr", ".svg"}
)
_SHOWN = 3
_CLOSE = 0.7  # similarity of names from which one may be meant for the other
_DEEPEST = 6  # folders in which images are looked for, to tell what a folder is

Dirs = str | Path | Sequence[str | Path] | None


@dataclass
class Product:
    """A product: its folder, and what is in it.

    Attributes:
        name (str): Name of the folder.
        folder (Path): The folder.
        layout (str): The layout that was recognised, in words; empty if none was.
        records (list[Record]): Its images, those for training first. Good images of a layout without training and test
            folders are all for training.
        problems (list[str]): What has to be mended before it can be used.
        notes (list[str]): What its owner may not expect.
    """

    name: str
    folder: Path
    layout: str = ""
    records: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def has_masks(self) -> bool:
        """Whether one of its defective images has a mask."""
        return any(record.masks for record in self.records if record.label == 1)


def read_products(
    root: Path | str,
    categories: Sequence[str] | None = None,
    *,
    normal_dir: Dirs = None,
    abnormal_dir: Dirs = None,
    normal_test_dir: Dirs = None,
    mask_dir: Dirs = None,
    extensions: Sequence[str] | None = None,
) -> list[Product]:
    """Find the products in a folder and read the layout of each.

    Recognised are, in upper or lower case: the layout of MVTec AD (``train/good``, ``test/<defect>``,
    ``ground_truth/<defect>``), ``good`` and ``bad`` with their usual other names, a folder of good images alone, and
    images directly in the product's folder. Folders may have folders in them, and may be links. Hidden files and
    folders are left out. The mask of an image has its name, with or without ``_mask``; it is in the folder of masks,
    there in a folder of the defect or not, or beside the image.

    Args:
        root (Path | str): Folder with a folder per product.
        categories (Sequence[str] | None): Names of the products; ``None`` takes all folders that have images.
            Defaults to ``None``.
        normal_dir (Dirs): Folder of good training images in each product, or several. Only folders that are given are
            read then; otherwise, the names of the others are recognised. Defaults to ``None``.
        abnormal_dir (Dirs): Folder of defective images in each product, or several. Defaults to ``None``.
        normal_test_dir (Dirs): Folder of good test images in each product, or several. Defaults to ``None``.
        mask_dir (Dirs): Folder of masks in each product, or several. Defaults to ``None``.
        extensions (Sequence[str] | None): Types of files that are read, such as ``[".png"]``; ``None`` is all of
            :data:`~anomalib_uniad.image_files.EXTENSIONS`. Defaults to ``None``.

    Returns:
        list[Product]: The products, sorted by name or in the order of ``categories``, with their problems.

    Raises:
        FileNotFoundError: If the root is not there.
        ValueError: If the root has no products, is one itself, or has not all that are asked for.
    """
    types = _types(extensions)
    dirs = {
        "normal_dir": _relative("normal_dir", normal_dir),
        "abnormal_dir": _relative("abnormal_dir", abnormal_dir),
        "normal_test_dir": _relative("normal_test_dir", normal_test_dir),
        "mask_dir": _relative("mask_dir", mask_dir),
    }
    root = find_root(root)
    top = _Folder(str(root), types)
    folders = {folder.name: folder for folder in top.listing.folders}
    if categories is None:
        _refuse_a_product(root, top, dirs["normal_dir"])
        chosen = {name: folder for name, folder in folders.items() if folder.has_images()}
        if not chosen:
            raise InputError(_nothing(root, top))
        _refuse_too_high(root, chosen, dirs["normal_dir"])
    else:
        if missing := [name for name in categories if name not in folders]:
            _refuse_a_product(root, top, dirs["normal_dir"])
            deeper = [folder.path for folder in folders.values() if folder.find(missing[0])]
            there = f" It is in {deeper[0]}: set root to that." if deeper else ""
            raise InputError(no_category(missing[0], root, list(folders)) + there)
        chosen = {name: folders[name] for name in categories}
    products = [_read_product(folder, root, dirs) for folder in chosen.values()]
    for name, given in dirs.items():
        absent = [part for part in given if not any((product.folder / part).is_dir() for product in products)]
        if absent:
            close = nearest(absent[0], [path.name for product in products for path in _subfolders(product.folder)])
            raise InputError(f"{name} is {absent[0]!r}, but none of the products in {root} has such a folder{close}.")
    return products


def set_test_images_aside(product: Product, ratio: float, seed: int | None) -> int:
    """Turn part of the good training images of a product into test images, if it has no good ones there.

    Args:
        product (Product): The product; its records are changed.
        ratio (float): The part that becomes test images.
        seed (int | None): Seed of the draw; ``None`` is 0.

    Returns:
        int: How many there are.
    """
    if any(record.split == Split.TEST and record.label == 0 for record in product.records):
        return 0
    drawn = draw([record for record in product.records if record.split == Split.TRAIN], ratio, seed)
    for record in drawn:
        record.split = Split.TEST
    product.records.sort(key=lambda record: (record.split != Split.TRAIN, record.paths[0]))
    return len(drawn)


def raise_product_problems(root: Path, products: Iterable[Product]) -> None:
    """Raise an error with all problems of products; nothing if there are none.

    Args:
        root (Path): Folder of the products.
        products (Iterable[Product]): The products.

    Raises:
        ValueError: If there are problems.
    """
    problems = [f"{product.name}: {text}" for product in products for text in product.problems]
    if problems:
        more = f"\n- ... and {len(problems) - 20} more" if len(problems) > 20 else ""
        lines = "".join(f"\n- {problem}" for problem in problems[:20])
        raise InputError(f"The products in {root} cannot be used as they are:{lines}{more}")


def find_root(root: Path | str, otherwise: str = "") -> Path:
    """Return a root without links, and refuse one that is not there.

    Args:
        root (Path | str): A folder.
        otherwise (str): What to do if it is not there on purpose. Defaults to ``""``.

    Returns:
        Path: The folder, absolute and free of links.

    Raises:
        FileNotFoundError: If it is not there; the message has the nearest name.
        ValueError: If it is a file.
    """
    root = real_path(Path(root).expanduser())
    if root.is_dir():
        return root
    if root.exists():
        raise InputError(f"The root {root} is a file: set root to the folder with the products.")
    msg = f"The root {root} is not there; {_nearest_folder(root)}{otherwise and f' Else, {otherwise}.'}"
    raise MissingFileError(msg)


def no_category(name: str, root: Path | None, there: Sequence[str]) -> str:
    """Write the message for a category that is not there.

    Examples:
        >>> no_category("botle", Path("data"), ["bottle", "cable"])
        "There is no category 'botle' in data; did you mean 'bottle'? There are: bottle, cable."
    """
    close = nearest(name, there)
    return f"There is no category {name!r} in {root}{close or '.'} There are: {', '.join(there) or 'none'}."


def nearest(name: str, names: Iterable[str]) -> str:
    """Ask whether a similar name was meant; empty if there is none.

    Examples:
        >>> nearest("botle", ["bottle", "cable"])
        "; did you mean 'bottle'?"
    """
    folded = {other.casefold(): other for other in names}
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=_CLOSE)
    return f"; did you mean {folded[close[0]]!r}?" if close else ""


class _Listing(NamedTuple):
    """What is in a folder, sorted by name."""

    images: list[str]
    folders: list["_Folder"]
    others: Counter[str]  # types of files that are no images
    problems: list[str]


class _Folder:
    """A folder, listed when it is asked for what is in it."""

    def __init__(self, path: str, types: frozenset[str], chain: tuple[str, ...] = ()) -> None:
        self.path = path
        self.name = os.path.basename(path)  # noqa: PTH119
        self.key = folder_key(self.name)
        self._types = types
        self._chain = chain or (path,)  # real paths of the folders that lead here

    @cached_property
    def listing(self) -> _Listing:
        images, folders, problems = [], [], []
        others: Counter[str] = Counter()
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
                    if _is_dir(entry):
                        real = os.path.realpath(entry.path) if entry.is_symlink() else f"{self._chain[-1]}/{entry.name}"
                        if real in self._chain:
                            problems.append(f"the link {entry.path} leads back to {real}, in a circle: remove it.")
                        else:
                            folders.append(_Folder(entry.path, self._types, (*self._chain, real)))
                    elif entry.is_symlink() and not Path(entry.path).exists() and suffix in {*self._types, ""}:
                        problems.append(f"{entry.path} is a link to a file that is not there: remove it.")
                    elif suffix not in self._types:
                        others[suffix] += 1
                    elif entry.is_file():
                        images.append(entry.name)
                    else:
                        problems.append(f"{entry.path} is a pipe, socket or device, not a file: remove it.")
        except OSError as error:
            problems.append(f"the folder {self.path} cannot be read: {error.strerror}.")
        return _Listing(sorted(images), sorted(folders, key=lambda folder: folder.name), others, problems)

    def has_images(self, depth: int = _DEEPEST) -> bool:
        """Tell whether there are images here or in one of the folders below."""
        return bool(self.listing.images) or (
            depth > 0 and any(folder.has_images(depth - 1) for folder in self.listing.folders)
        )

    def walk(self) -> Iterator[tuple[tuple[str, ...], "_Folder"]]:
        """Yield this folder and those below it, with the names of the folders that lead there."""
        yield (), self
        for folder in self.listing.folders:
            for place, below in folder.walk():
                yield (folder.name, *place), below

    def find(self, relative: str) -> "_Folder | None":
        """Return a folder below this one."""
        found: _Folder | None = self
        for part in PurePath(relative).parts:
            found = next((folder for folder in found.listing.folders if folder.name == part), None) if found else None
        return found


def _is_dir(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


class _Place(NamedTuple):
    """A folder with images of one label."""

    folder: _Folder
    split: Split
    label: int
    directly: bool = False  # without the folders in it


def _read_product(folder: _Folder, root: Path, dirs: Mapping[str, Sequence[str]]) -> Product:
    product = Product(folder.name, Path(folder.path))
    masks = _given_folders(folder, dirs["mask_dir"])
    places = [
        _Place(found, split, label, directly=found is folder)
        for name, split, label in (
            ("normal_dir", Split.TRAIN, 0),
            ("normal_test_dir", Split.TEST, 0),
            ("abnormal_dir", Split.TEST, 1),
        )
        for found in _given_folders(folder, dirs[name])
    ]
    if dirs["normal_dir"]:
        used = [part for name in dirs for part in dirs[name] if (product.folder / part).is_dir()]
        product.layout = f"as given: {', '.join(used)}"
    else:
        taken = {part for given in dirs.values() for path in given for part in PurePath(path).parts[:1]}
        _recognise(product, folder, taken, places, masks)
    _add_images(product, root, places, masks)
    if not product.problems and not any(record.split == Split.TRAIN for record in product.records):
        product.problems.append("there are no good images to train on.")
    return product


def _given_folders(folder: _Folder, given: Sequence[str]) -> list[_Folder]:
    return [found for path in given if (found := folder.find(path)) is not None]


def _recognise(product: Product, folder: _Folder, taken: set[str], places: list[_Place], masks: list[_Folder]) -> None:
    """Add the folders whose names are known to the places and masks, and name the layout."""
    product.problems += folder.listing.problems
    others = [child for child in folder.listing.folders if child.name not in taken and child.has_images()]
    by_role: dict[str, list[_Folder]] = defaultdict(list)
    for child in others:
        by_role[_role(child)].append(child)
    masks += by_role["masks"]
    images = len(folder.listing.images)
    for role in ("train", "test", "normal"):
        if len(by_role[role]) > 1:
            names = " and ".join(child.name for child in by_role[role])
            product.problems.append(f"{names} are names of the same: rename one, or say what they are by normal_dir.")
    in_mvtec_layout = bool(by_role["train"] or by_role["test"])
    simple = [*by_role["normal"], *by_role["abnormal"]]
    if in_mvtec_layout and simple:
        names = ", ".join(child.name for child in simple)
        splits = ", ".join(child.name for child in [*by_role["train"], *by_role["test"]])
        product.problems.append(f"it has {splits} and {names} beside each other: say what is what by normal_dir.")
    elif images and (in_mvtec_layout or by_role["normal"]):
        names = ", ".join(child.name for child in [*by_role["train"], *by_role["test"], *by_role["normal"]])
        product.problems.append(f"{_number(images, 'image')} directly in its folder, beside {names}: move them.")
    elif in_mvtec_layout:
        _recognise_mvtec(product, by_role["train"], by_role["test"], places)
    else:
        places += [_Place(child, Split.TRAIN, 0) for child in by_role["normal"]]
        places += [_Place(child, Split.TEST, 1) for child in by_role["abnormal"]]
        if images:
            places.append(_Place(folder, Split.TRAIN, 0, directly=True))
    if unknown := by_role[""]:
        product.problems.append(_unknown(product, unknown, bool(places or images)))
    product.layout = _in_words(by_role, directly=bool(images), given=sorted(taken))


def _in_words(by_role: Mapping[str, Sequence[_Folder]], directly: bool, given: Sequence[str]) -> str:
    """Name a layout by its folders."""
    names = {role: [child.name for child in children] for role, children in by_role.items()}
    for index, child in enumerate(by_role.get("train", [])):
        inside = [folder.name for folder in child.listing.folders if folder.has_images()]
        names["train"][index] += f"/{inside[0]}" if inside else ""
    normal = [*names.get("normal", []), *(["images directly in its folder"] if directly else [])]
    others = [*names.get("test", []), *names.get("abnormal", []), *given, *names.get("masks", [])]
    if names.get("train") or names.get("test"):
        return f"MVTec AD: {', '.join([*names.get('train', []), *normal, *others])}"
    return ", ".join([*normal, *others]) if others else f"only good images: {', '.join(normal)}"


def _recognise_mvtec(product: Product, train: Sequence[_Folder], test: Sequence[_Folder], places: list[_Place]) -> None:
    for folder in train:
        if folder.listing.images:
            places.append(_Place(folder, Split.TRAIN, 0, directly=True))
        for child in folder.listing.folders:
            if child.key in NORMAL:
                places.append(_Place(child, Split.TRAIN, 0))
            elif child.has_images():
                text = f"{folder.name}/{child.name} has images, but training is on good ones, in {folder.name}/good."
                product.problems.append(text)
    for folder in test:
        if count := len(folder.listing.images):
            product.problems.append(
                f"{_number(count, 'image')} directly in {folder.name}: move them to {folder.name}/good or to a folder "
                "with the name of the defect."
            )
        places += [_Place(child, Split.TEST, int(child.key not in NORMAL)) for child in folder.listing.folders]


def _unknown(product: Product, unknown: Sequence[_Folder], has_others: bool) -> str:
    names = [child.name for child in unknown]
    deeper = [child.name for child in unknown if _is_product(child)]
    if deeper and not has_others:
        return (
            f"it has no images of its own, but folders that look like products ({_first(deeper)}): set root to "
            f"{product.folder}, or move them up."
        )
    if not has_others:
        return (
            f"there are images in {_first(names)}, and the names do not say of which kind: if these are products, set "
            f"root to {product.folder}, else set normal_dir to the folder of the good ones."
        )
    return (
        f"there are images in {_first(names)}, and the names do not say of which kind: set normal_dir, abnormal_dir or "
        f"mask_dir, such as abnormal_dir: [{', '.join(names[:_SHOWN])}], or move them out of the product's folder."
    )


class _Image(NamedTuple):
    """An image that was found."""

    place: _Place
    where: tuple[str, ...]  # names of its folders, from that of the place
    path: str
    stem: str


class _Masks:
    """The masks of a product, by their folders and names."""

    def __init__(self) -> None:
        self._by_name: dict[tuple[tuple[str, ...], str], list[str]] = defaultdict(list)
        self._by_folder: dict[tuple[str, ...], list[str]] = defaultdict(list)  # several of an image, as in MVTec LOCO
        self.owners: dict[str, _Image] = {}
        self.shared: list[tuple[str, _Image, _Image]] = []

    def add(self, where: tuple[str, ...], stem: str, path: str) -> None:
        """Add a mask that is in a folder below that of the masks."""
        self._by_name[where, stem].append(path)
        self._by_folder[where].append(path)

    def take(self, image: _Image) -> list[str]:
        """Return the masks of an image, those in the folder that is most like the image's if there are several."""
        found = next(filter(None, self._candidates(image)), [])
        for path in found:
            other = self.owners.setdefault(path, image)
            if other is not image:
                self.shared.append((path, other, image))
        return found

    def left(self, good: set[str]) -> tuple[list[str], list[str]]:
        """Return the masks that no image has taken: those of good images, whose names are given, and others."""
        of_good: list[str] = []
        lost: list[str] = []
        for (where, stem), paths in self._by_name.items():
            in_good = not where or any(folder_key(name) in NORMAL for name in where)
            is_good = in_good and not good.isdisjoint({stem, _image_of(stem)})
            (of_good if is_good else lost).extend(path for path in paths if path not in self.owners)
        return of_good, lost

    def _candidates(self, image: _Image) -> Iterator[list[str]]:
        for start in range(len(image.where) + 1):
            folders = image.where[start:]
            for suffix in _MASK_SUFFIXES:
                yield self._by_name.get((folders, image.stem + suffix), [])
            yield self._by_folder.get((*folders, image.stem), [])


def _add_images(product: Product, root: Path, places: Sequence[_Place], mask_folders: Sequence[_Folder]) -> None:
    """Add a record per image, with its masks."""
    masks = _Masks()
    for folder in mask_folders:
        for where, below in folder.walk():
            _add_problems(product, below.listing)
            for name in below.listing.images:
                masks.add(where, _stem(name), f"{below.path}/{name}")
    found = list(_find_images(product, places, masks))
    images = sorted(found, key=lambda image: (image.place.split != Split.TRAIN, image.path))
    without = []
    for image in images:
        mask = masks.take(image) if image.place.label else []
        if image.place.label and not mask:
            without.append(_below(image.path, product.folder))
        product.records.append(
            Record(
                product.folder,
                _below(image.path, product.folder),
                image.place.split,
                image=_below(image.path, root),
                label=image.place.label,
                label_name=_label_name(image),
                masks=tuple(_below(path, root) for path in mask),
                category=product.name,
                paths=(image.path, *mask),
            )
        )
    for path, first, second in masks.shared:
        product.problems.append(
            f"the mask {_below(path, product.folder)} fits {_below(first.path, product.folder)} and "
            f"{_below(second.path, product.folder)}: put masks into folders of the same names as those of the images."
        )
    of_good, lost = masks.left({image.stem for image in images if not image.place.label})
    if of_good:
        names = _first([_below(path, product.folder) for path in of_good])
        product.notes.append(f"{_number(len(of_good), 'mask')} of good images ({names}), not used.")
    if lost:
        names = _first([_below(path, product.folder) for path in lost])
        text = f"{_number(len(lost), 'mask')} without an image ({names}): masks have the names of their images."
        product.problems.append(text)
    if without and masks.owners:
        product.notes.append(
            f"{_number(len(without), 'defective image')} without a mask ({_first(without)}) beside others that have "
            "one: all of their pixels count as defective."
        )


def _find_images(product: Product, places: Sequence[_Place], masks: _Masks) -> Iterator[_Image]:
    """Yield the images of all places; masks that are beside their images go to the others."""
    seen: set[str] = set()
    skipped: Counter[str] = Counter()
    for place in places:
        for inside, below in [((), place.folder)] if place.directly else place.folder.walk():
            _add_problems(product, below.listing)
            skipped.update({suffix: n for suffix, n in below.listing.others.items() if suffix in _OTHER_TYPES})
            where = (place.folder.name, *inside)
            stems = {_stem(name) for name in below.listing.images}
            for name in below.listing.images:
                path, stem = f"{below.path}/{name}", _stem(name)
                if (image := _image_of(stem)) in stems:
                    masks.add(where, image, path)
                elif path in seen:
                    product.problems.append(f"{_below(path, product.folder)} is in two of the folders that are given.")
                else:
                    seen.add(path)
                    yield _Image(place, where, path, stem)
    for suffix, count in skipped.items():
        product.notes.append(f"{_number(count, 'file')} of type {suffix}, which is not read.")


def _add_problems(product: Product, listing: _Listing) -> None:
    product.problems += [text for text in listing.problems if text not in product.problems]


def _label_name(image: _Image) -> str:
    """Return the name of the folder that says what an image shows."""
    if image.place.directly and not image.place.label:
        return "good"
    inside = image.place.folder.key in ABNORMAL and len(image.where) > 1  # bad/scratch
    return image.where[1 if inside else 0]


def _refuse_a_product(root: Path, top: _Folder, normal_dir: Sequence[str]) -> None:
    """Refuse a root that is a product, or a folder in one."""
    inside = [child.name for child in top.listing.folders if child.has_images()]
    parent = root.parent
    if (
        root.name
        and folder_key(root.name) in _TRAIN | TEST | _MASKS
        and any(_role(child) for child in top.listing.folders)
    ):
        product = parent
    elif _is_product(top) or _given_folders(top, normal_dir):
        product = root
    else:
        return
    what = "a product" if product == root else "inside of a product"
    raise InputError(
        f"The root {root} is {what} (it has {_first(inside)}): set root to {product.parent}, and categories to "
        f"[{product.name}] if only this one is meant."
    )


def _refuse_too_high(root: Path, chosen: Mapping[str, _Folder], normal_dir: Sequence[str]) -> None:
    """Refuse a root whose products are all in deeper folders."""

    def is_product(folder: _Folder) -> bool:
        return bool(folder.listing.images) or _is_product(folder) or bool(_given_folders(folder, normal_dir))

    if any(is_product(folder) for folder in chosen.values()):
        return

    def roots(folder: _Folder) -> Iterator[str]:
        if any(_is_product(child) or _given_folders(child, normal_dir) for child in folder.listing.folders):
            yield folder.path
        else:
            for child in folder.listing.folders:
                yield from roots(child)

    deeper = [path for folder in chosen.values() for path in roots(folder)]
    if deeper:
        raise InputError(
            f"The products are deeper than the root {root}: set root to {deeper[0]}"
            f"{f' or {deeper[1]}' if len(deeper) > 1 else ''}{', ...' if len(deeper) > 2 else ''}."
        )


def _nothing(root: Path, top: _Folder) -> str:
    """Say what a root has that has no products."""
    listing = top.listing
    found = [_number(len(listing.images), "image")] if listing.images else []
    found += [
        f"{_number(count, 'file')} of type {suffix or '(none)'}" for suffix, count in listing.others.most_common(3)
    ]
    names = [folder.name for folder in listing.folders]
    found += [f"{_number(len(names), 'folder')} without images ({_first(names)})"] if names else []
    what = ", ".join(found) or "; ".join(listing.problems) or "nothing"
    more = ""
    if listing.images:
        more = f" If they are of one product, set root to {root.parent} and categories to [{root.name}]."
    return f"The root {root} has no folders of products. It has {what}; {EXPECTED}.{more}"


def _is_product(folder: _Folder) -> bool:
    """Tell whether the names of folders say that this is a product."""
    known = {child.key for child in folder.listing.folders if child.key in NORMAL | _TRAIN and child.has_images()}
    return bool(known)


def _role(folder: _Folder) -> str:
    roles = {"normal": NORMAL, "abnormal": ABNORMAL, "train": _TRAIN, "test": TEST, "masks": _MASKS}
    return next((role for role, names in roles.items() if folder.key in names), "")


def _nearest_folder(path: Path) -> str:
    """Ask whether a similar path was meant, or say what is there instead."""
    there = next(parent for parent in path.parents if parent.is_dir())
    missing, *rest = path.relative_to(there).parts
    names = [folder.name for folder in _subfolders(there)]
    folded = {name.casefold(): name for name in names}
    if close := difflib.get_close_matches(missing.casefold(), folded, n=1, cutoff=_CLOSE):
        return f"did you mean {there.joinpath(folded[close[0]], *rest)}?"
    return f"{there} has {_first(names) or 'no folders'}."


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []


def _types(extensions: Sequence[str] | None) -> frozenset[str]:
    if extensions is None:
        return frozenset(EXTENSIONS)
    types = frozenset(extension.lower() for extension in ([extensions] if isinstance(extensions, str) else extensions))
    if not types or types - set(EXTENSIONS):
        wrong = sorted(types - set(EXTENSIONS))
        msg = f"extensions has {wrong[0]!r}" if wrong else "extensions is empty"
        raise InputError(f"{msg}: types of images that can be read are {', '.join(EXTENSIONS)}.")
    return types


def _relative(name: str, given: Dirs) -> list[str]:
    """Return folders as a list, without those that leave the product's folder."""
    parts = [] if given is None else [given] if isinstance(given, str | Path) else list(given)
    paths = [PurePath(part) for part in parts]
    for path in paths:
        if path.is_absolute() or ".." in path.parts:
            msg = f"{name} is {str(path)!r}: give it relative to the folder of each product, such as 'good'."
            raise InputError(msg)
    return [str(path) for path in paths]


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _image_of(stem: str) -> str:
    """Return the stem of the image that a mask beside it belongs to; empty if the name is not that of a mask."""
    return next((stem.removesuffix(suffix) for suffix in _MASK_SUFFIXES[1:] if stem.endswith(suffix)), "")


def _below(path: str, folder: Path) -> str:
    return path[len(str(folder).rstrip("/")) + 1 :]


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
