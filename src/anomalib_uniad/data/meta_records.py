# SPDX-License-Identifier: Apache-2.0
"""From the text of meta files to records, with a place in the file for everything that is wrong."""

import difflib
from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from anomalib.data.utils import Split

from anomalib_uniad.data.meta_problems import Place, Problems
from anomalib_uniad.data.strict_json import BrokenJSONError, parse, show, strange_keys, strange_values


@dataclass(frozen=True)
class Record:
    """One image of a meta file.

    Attributes:
        place (Place): Where it stands.
        split (Split): Training or test.
        image (str): Path of the image as written there.
        label (int | None): 0 (normal) or 1 (defective); ``None`` if what is there is a problem.
        label_name (str): What it is called; "good" or "defective" if that is not given.
        masks (tuple[str, ...]): Paths of the masks as written there; empty if there are none.
        category (str): Its category.
    """

    place: Place
    split: Split
    image: str
    label: int | None
    label_name: str
    masks: tuple[str, ...]
    category: str


@dataclass(frozen=True)
class _Keys:
    image: str
    label: str
    label_name: str
    masks: str
    category: str
    optional: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        return self.image, self.label, self.label_name, self.masks, self.category


_LINES = _Keys("filename", "label", "label_name", "maskname", "clsname", ("label_name", "maskname", "clsname"))
_LABEL_NAMES = {0: "good", 1: "defective", None: ""}
_ADER = _Keys("img_path", "anomaly", "specie_name", "mask_path", "cls_name")


def read_lines(file: Path, split: Split, problems: Problems) -> list[Record]:
    """Read a file with one JSON object per line, as UniAD's authors have them.

    Args:
        file (Path): The file; UTF-8, with or without byte order mark, blank lines are skipped.
        split (Split): What its images are for.
        problems (Problems): Gets what is wrong.

    Returns:
        list[Record]: The records that can be read.
    """
    data = file.read_bytes().removeprefix(BOM_UTF8)
    number_of_file = int(split == Split.TEST)
    records, empty = [], True
    for number, line in enumerate(data.split(b"\n"), 1):  # str.splitlines would also split inside of strings
        if not line.strip(b" \t\r"):
            continue
        place = Place(file, f"line {number}", (number_of_file, number))
        try:
            content = parse(line)
        except BrokenJSONError as error:
            hint = _whole_document(data) if empty else ""
            problems.add(place, hint or str(error))
            if hint:
                return []
        else:
            if isinstance(content, dict) and content.keys() >= {"train", "test"}:
                problems.add(place, "is in the format of ADer's meta.json: give it as `ader_meta`.")
                return []
            empty = False
            if isinstance(content, list) and any(isinstance(item, dict) for item in content):
                problems.add(place, "is a JSON array; it has to be one object per line, for each image.")
                continue
            record = _record(content, place, split, _LINES, problems)
            records += [record] if record else []
        empty = False
    if empty:
        problems.add(Place(file, "line 1", (number_of_file, 1)), "the file has no records.")
    return records


def read_ader(file: Path, problems: Problems) -> list[Record]:
    """Read a ``meta.json`` of ADer: ``{"train": {category: [record, ...]}, "test": {...}}``.

    Args:
        file (Path): The file.
        problems (Problems): Gets what is wrong.

    Returns:
        list[Record]: The records that can be read.
    """
    try:
        content = parse(file.read_bytes().removeprefix(BOM_UTF8))
    except BrokenJSONError as error:
        problems.add(Place(file, f"line {error.line}", (0, 0)), str(error))
        return []
    if not isinstance(content, dict):
        text = f"is {show(content)}, not an object with the keys 'train' and 'test'."
        problems.add(Place(file, "line 1", (0, 0)), text)
        return []
    records: list[Record] = []
    for text in strange_keys(content):
        problems.add(Place(file, "line 1", (0, 0)), text)
    count = 0  # of what has been looked at, which sorts the problems
    for split in (Split.TRAIN, Split.TEST):
        found = len(problems) + len(records)
        for where, category, item in _items(content.get(split.value)):
            count += 1
            place = Place(file, "/".join((split.value, *where)), (0, count))
            if category is None:
                problems.add(place, item)
                continue
            record = _record(item, place, split, _ADER, problems)
            if record is None:
                continue
            if record.category and record.category != category:
                problems.add(place, f"cls_name is {show(record.category)}, but it is listed under {show(category)}.")
            records.append(record)
        if len(problems) + len(records) == found:
            problems.add(Place(file, split.value, (0, count)), "has no records.")
    return records


def _items(content: Any) -> Iterator[tuple[tuple[str, ...], str | None, Any]]:
    """Yield place, category and content of each record of a split; without a category, what is wrong."""
    if not isinstance(content, dict):
        found = "is missing" if content is None else f"is {show(content)}"
        yield (), None, f"{found}; it has to be an object: category -> list of records."
        return
    for text in strange_keys(content):
        yield (), None, text
    for category, items in content.items():
        name = category if category.isprintable() else show(category)
        if not isinstance(items, list):
            yield (name,), None, f"is {show(items)}, not a list of records."
            continue
        for index, item in enumerate(items):
            yield (name, str(index)), category, item


def _record(content: Any, place: Place, split: Split, keys: _Keys, problems: Problems) -> Record | None:
    """Check the values of one object; None if there is not even an image."""

    def refuse(text: str) -> None:
        problems.add(place, text)

    if not isinstance(content, dict):
        refuse(f'is {show(content)}, not an object such as {{"{keys.image}": ..., "{keys.label}": 0, ...}}.')
        return None
    for text in (*strange_keys(content), *strange_values(content), *_misspelt(content, keys)):
        refuse(text)
    for key in keys.all:
        if key not in content and key not in keys.optional:
            refuse(f"the key {key!r} is missing.")

    def text_of(key: str) -> str:
        value: Any = content.get(key)
        if key not in content or (key in keys.optional and value in (None, "")):
            return ""
        if problem := _not_a_name(value):
            refuse(f"{key} {problem}")
            return ""
        return value

    image, label_name, category = (text_of(key) for key in (keys.image, keys.label_name, keys.category))
    label = content.get(keys.label)
    if type(label) is not int or label not in (0, 1):  # True is an int as well
        if keys.label in content:
            refuse(f"{keys.label} is {show(label)}, it has to be the number 0 (normal) or 1 (defective).")
        label = None
    label_name = label_name or _LABEL_NAMES[label]
    masks: tuple[str, ...] = ()
    given = content.get(keys.masks)
    if given not in (None, ""):
        listed = given if isinstance(given, list) and given else [given]
        wrong = [problem for problem in map(_not_a_name, listed) if problem]
        for problem in wrong:
            refuse(f"{keys.masks} {problem}")
        masks = () if wrong else tuple(listed)
    if image and not content.get(keys.category) and keys.category in keys.optional:
        category = _category_of(image)
        if not category:
            refuse(
                f"{keys.category} is missing, and {show(image)} has fewer than 4 parts to take it from "
                f"(<category>/<split>/<label>/<image>): add {keys.category}."
            )
    if category and (set(category) & set("/\\") or category in (".", "..") or category != category.strip()):
        refuse(f"the category is {show(category)}: it may not have slashes or blanks at its ends, or be dots.")
    return Record(place, split, image, label, label_name, masks, category) if image else None


def _category_of(image: str) -> str:
    """Take the category from the fourth part of the path from its end, as UniAD's authors do."""
    path = PurePosixPath(image)
    parts = path.parts[1:] if path.anchor else path.parts
    return parts[-4] if len(parts) >= 4 else ""


def _not_a_name(value: Any) -> str:
    """Say why a value is no path or name; empty if it is one."""
    if not isinstance(value, str):
        return f"is {show(value)}, it has to be a string."
    if not value.strip():
        return f"is {show(value)}, it must not be empty."
    return "" if value.isprintable() else f"is {show(value)}, it must not have control characters."


def _misspelt(content: dict[str, Any], keys: _Keys) -> Iterator[str]:
    """Say which keys look as if others were meant; keys that nobody knows are left alone."""
    absent = [key for key in keys.all if key not in content]
    for key in content:
        if key not in keys.all and (close := difflib.get_close_matches(key.lower(), absent, n=1, cutoff=0.8)):
            yield f"the key {show(key)} is unknown: should it be {close[0]!r}?"


def _whole_document(data: bytes) -> str:
    """Say what a file is that has one JSON document over several lines; empty if it is none."""
    try:
        content = parse(data)
    except BrokenJSONError:
        return ""
    if isinstance(content, dict) and content.keys() >= {"train", "test"}:
        return "is in the format of ADer's meta.json: give it as `ader_meta`."
    return "is one JSON document over several lines; it has to be one object per line, for each image."
