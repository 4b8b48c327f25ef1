# SPDX-License-Identifier: Apache-2.0
"""Parses meta files into records; each record keeps its problems."""

import difflib
import json
from bisect import bisect_left
from codecs import BOM_UTF8
from pathlib import Path
from typing import Any, NamedTuple

from anomalib.data.utils import Split

from anomalib_uniad.category import category_from_path
from anomalib_uniad.checks import show
from anomalib_uniad.data.records import Record
from anomalib_uniad.errors import InputError, MissingFileError


class InvalidJSONError(ValueError):
    """Invalid JSON, and the line of the text, counted from 1."""

    def __init__(self, text: str, line: int = 1) -> None:
        super().__init__(text)
        self.line = line


class _Keys(NamedTuple):
    """Names of the keys of a record."""

    image: str
    label: str
    label_name: str
    masks: str
    category: str


_LINES = _Keys("filename", "label", "label_name", "maskname", "clsname")
_ADER = _Keys("img_path", "anomaly", "specie_name", "mask_path", "cls_name")
_OPTIONAL = {"label_name", "maskname", "clsname"}
_LABEL_NAMES = {0: "good", 1: "defective", None: ""}
_IS_ADER = "is in the format of ADer's meta.json: give it as `ader_meta`."


def read_meta_files(
    root: Path, train_meta: Path | str | None, test_meta: Path | str | None, ader_meta: Path | str | None
) -> list[Record]:
    """Read the meta files of a dataset; the arguments are those of ``MetaFile``.

    Returns:
        list[Record]: All entries in their order, those for training first; also those that cannot be read.

    Raises:
        FileNotFoundError: If the root or a file is not there.
        ValueError: If the files do not go together.
    """
    if ader_meta is not None and (train_meta is not None or test_meta is not None):
        raise InputError("ADer's meta.json lists training and test images: set ader_meta, or train_meta and test_meta.")
    if not root.is_dir():
        msg = f"The root {root} is {'a file' if root.exists() else 'not there'}: set it to the folder of the images."
        raise MissingFileError(msg)
    if ader_meta is not None:
        files = [Path(ader_meta).expanduser()]
    else:
        train = Path(train_meta).expanduser() if train_meta is not None else root / "train.json"
        files = [train, Path(test_meta).expanduser() if test_meta is not None else train.parent / "test.json"]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise MissingFileError(
            f"There is no meta file {' and no '.join(missing)}. Paths of meta files are relative to the working "
            f"directory ({Path.cwd()}), not to the root; `anomalib-uniad make-meta` writes them."
        )
    if len(files) == 1:
        return _read_ader(files[0])
    if files[0].samefile(files[1]):
        raise InputError(f"train_meta and test_meta are the same file, {files[0]}.")
    return [*_read_lines(files[0], Split.TRAIN), *_read_lines(files[1], Split.TEST)]


def parse_json(data: bytes) -> Any:
    """Parse JSON in UTF-8, and refuse what Python's parser accepts beyond it: repeated keys, NaN and infinities.

    Examples:
        >>> parse_json(b'{"label": 1}')
        {'label': 1}
        >>> parse_json(b'{"label": 1, "label": 0}')
        Traceback (most recent call last):
        anomalib_uniad.data.meta_records.InvalidJSONError: the key 'label' is there twice.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        start = data.rfind(b"\n", 0, error.start) + 1
        msg = f"is not UTF-8 (byte 0x{data[error.start]:02x} at position {error.start - start + 1})."
        raise InvalidJSONError(msg, data.count(b"\n", 0, error.start) + 1) from error
    try:
        return _loads(text)
    except json.JSONDecodeError as error:
        msg = f"broken JSON: {error.msg} (character {error.colno})."
        raise InvalidJSONError(msg, error.lineno) from error
    except InvalidJSONError as error:
        error.line = _line_of_refusal(text)
        raise
    except RecursionError as error:
        raise InvalidJSONError("broken JSON: nested too deeply.") from error
    except ValueError as error:  # numbers with thousands of digits
        raise InvalidJSONError(f"broken JSON: {error}.") from error


def _loads(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_refuse_repeated, parse_constant=_refuse_constant)


def _refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise InvalidJSONError(f"the key {show(next(key for key in keys if keys.count(key) > 1))} is there twice.")
    return content


def _refuse_constant(name: str) -> None:
    raise InvalidJSONError(f"has {name}, which is not valid JSON.")


def _line_of_refusal(text: str) -> int:
    """Find the line at which a hook refuses a text: hooks are not told where they are."""
    lines = text.split("\n")

    def is_refused(count: int) -> bool:
        try:
            _loads("\n".join(lines[:count]))
        except InvalidJSONError:
            return True
        except (ValueError, RecursionError):
            return False  # cut off before that
        return False

    return bisect_left(range(1, len(lines)), True, key=is_refused) + 1


def _read_lines(file: Path, split: Split) -> list[Record]:
    """Read a file with one JSON object per line, as UniAD's authors have them."""
    data = file.read_bytes().removeprefix(BOM_UTF8)
    records: list[Record] = []
    for number, line in enumerate(data.split(b"\n"), 1):  # str.splitlines would also split inside of strings
        if not line.strip(b" \t\r"):
            continue
        record = Record(file, f"line {number}", split)
        try:
            content = parse_json(line)
        except InvalidJSONError as error:
            whole = "" if records else _whole_document(data)
            record.problems.append(whole or str(error))
            if whole:
                return [record]
        else:
            if isinstance(content, dict) and content.keys() >= {"train", "test"}:
                record.problems.append(_IS_ADER)
                return [*records, record]
            if isinstance(content, list) and any(isinstance(item, dict) for item in content):
                record.problems.append("is a JSON array; it has to be one object per line, for each image.")
            else:
                _fill(record, content, _LINES)
        records.append(record)
    return records or [Record(file, "line 1", split, problems=["the file has no records."])]


def _whole_document(data: bytes) -> str:
    """Say what a file is that has one JSON document over several lines; empty if it is none."""
    try:
        content = parse_json(data)
    except InvalidJSONError:
        return ""
    if isinstance(content, dict) and content.keys() >= {"train", "test"}:
        return _IS_ADER
    return "is one JSON document over several lines; it has to be one object per line, for each image."


def _read_ader(file: Path) -> list[Record]:
    """Read a ``meta.json`` of ADer: ``{"train": {category: [record, ...]}, "test": {...}}``."""
    records: list[Record] = []

    def refuse(where: str, text: str, split: Split = Split.TRAIN) -> None:
        records.append(Record(file, where, split, problems=[text]))

    try:
        content = parse_json(file.read_bytes().removeprefix(BOM_UTF8))
    except InvalidJSONError as error:
        refuse(f"line {error.line}", str(error))
        return records
    if not isinstance(content, dict):
        refuse("line 1", f"is {show(content)}, not an object with the keys 'train' and 'test'.")
        return records
    for split in (Split.TRAIN, Split.TEST):
        categories = content.get(split.value)
        if not isinstance(categories, dict):
            found = "is missing" if categories is None else f"is {show(categories)}"
            refuse(split.value, f"{found}; it has to be an object: category -> list of records.", split)
            continue
        count = len(records)
        for category, items in categories.items():
            where = f"{split.value}/{category if category.isprintable() else show(category)}"
            if not isinstance(items, list):
                refuse(where, f"is {show(items)}, not a list of records.", split)
                continue
            for index, item in enumerate(items):
                record = Record(file, f"{where}/{index}", split)
                _fill(record, item, _ADER)
                if record.category and record.category != category:
                    text = f"cls_name is {show(record.category)}, but it is listed under {show(category)}."
                    record.problems.append(text)
                records.append(record)
        if len(records) == count:
            refuse(split.value, "has no records.", split)
    return records


def _fill(record: Record, content: Any, keys: _Keys) -> None:
    """Check the values of an object and put them into its record."""
    refuse = record.problems.append
    if not isinstance(content, dict):
        refuse(f'is {show(content)}, not an object such as {{"{keys.image}": ..., "{keys.label}": 0, ...}}.')
        return
    absent = [key for key in keys if key not in content]
    for key in content:  # unknown keys are ignored, unless they look like a misspelt one
        if key not in keys and (close := difflib.get_close_matches(key.lower(), absent, n=1, cutoff=0.8)):
            refuse(f"the key {show(key)} is unknown: should it be {close[0]!r}?")
    for key in absent:
        if key not in _OPTIONAL:
            refuse(f"the key {key!r} is missing.")

    def name(key: str, value: Any) -> str:
        """Return a path or name, or refuse what is none and return an empty one."""
        if not isinstance(value, str):
            refuse(f"{key} is {show(value)}, it has to be a string.")
        elif not value.strip():
            refuse(f"{key} is {show(value)}, it must not be empty.")
        elif not value.isprintable():
            refuse(f"{key} is {show(value)}, it must not have control characters.")
        else:
            return value
        return ""

    def name_at(key: str) -> str:
        left_out = key in absent or (key in _OPTIONAL and content[key] in (None, ""))
        return "" if left_out else name(key, content[key])

    record.image, record.label_name, record.category = map(name_at, (keys.image, keys.label_name, keys.category))
    label = content.get(keys.label)
    if type(label) is int and label in (0, 1):  # True is an int as well
        record.label = label
    elif keys.label in content:
        refuse(f"{keys.label} is {show(label)}, it has to be the number 0 (normal) or 1 (defective).")
    record.label_name = record.label_name or _LABEL_NAMES[record.label]
    given = content.get(keys.masks)
    if given not in (None, ""):
        masks = [name(keys.masks, mask) for mask in (given if isinstance(given, list) and given else [given])]
        record.masks = tuple(masks) if all(masks) else ()
    if record.image and keys.category in _OPTIONAL and not content.get(keys.category):
        record.category = category_from_path(record.image)
        if not record.category:
            refuse(
                f"{keys.category} is missing, and {show(record.image)} has fewer than 4 parts to take it from "
                f"(<category>/<split>/<label>/<image>): add {keys.category}."
            )
    category = record.category
    if category and (set(category) & set("/\\") or category in (".", "..") or category != category.strip()):
        refuse(f"the category is {show(category)}: it may not have slashes or blanks at its ends, or be dots.")
