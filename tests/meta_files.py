# SPDX-License-Identifier: Apache-2.0
"""A small folder of images with meta files, and an oracle of what is right about such files."""

import difflib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from helpers import write_image, write_mask


@dataclass(frozen=True)
class Known:
    """What a file of the folder is."""

    size: tuple[int, int] | None  # None: cannot be read
    real: str = ""  # what a link leads to
    marks: bool = True  # not all black
    content: str = ""  # whose hard link or copy it is
    deep: bool = False  # 16 bit: a mask, but no image


SMALL, WIDE = (8, 8), (6, 10)
FILES = {
    **{f"bottle/train/good/{n}.png": Known(SMALL) for n in range(3)},
    **{f"bottle/test/good/{n}.png": Known(SMALL) for n in range(2)},
    **{f"bottle/test/crack/{n}.png": Known(SMALL) for n in range(3)},
    **{f"cable/train/good/{n}.jpg": Known(WIDE) for n in range(2)},
    **{f"cable/test/good/{n}.jpg": Known(WIDE) for n in range(2)},
    **{f"cable/test/cut/{n}.jpg": Known(WIDE) for n in range(2)},
    "loose.png": Known(SMALL),
    "bottle/train/good/link.png": Known(SMALL, real="bottle/train/good/0.png"),
    **{f"masks/bottle_{n}.png": Known(SMALL) for n in range(3)},
    "masks/cable_0.png": Known(WIDE),
    "masks/black.png": Known(SMALL, marks=False),
    "bad/of/many/text.png": Known(None),
    "bad/of/many/cut_off.png": Known(None),
    "bad/of/many/cut_off.jpg": Known(None),
    "bad/of/many/deep.png": Known(SMALL, deep=True),
    "bad/of/many/float.tif": Known(None),
    "bottle/test/good/copy.png": Known(SMALL, content="bottle/train/good/1.png"),
    "bottle/test/good/hard_link.png": Known(SMALL, content="bottle/train/good/2.png"),
}


def make_folder(root: Path) -> Path:
    """Write the files, and an image outside of the folder that a link leads to."""
    for number, (name, known) in enumerate(FILES.items()):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if known.real:
            path.symlink_to(root / known.real)
        elif name.endswith("copy.png"):
            path.write_bytes((root / known.content).read_bytes())
        elif known.content:
            path.hardlink_to(root / known.content)
        elif known.deep:
            Image.fromarray(np.arange(64, dtype=np.uint16).reshape(known.size) * 1000).save(path)
        elif name.endswith(".tif"):
            Image.fromarray(np.full(SMALL, 0.5, dtype=np.float32)).save(path)
        elif name.startswith("masks/"):
            mask = np.zeros(known.size, dtype=np.uint8)
            mask[number % 3 : 4, 2:5] = 255 * known.marks
            write_mask(path, mask)
        elif name.endswith("text.png"):
            path.write_text("no image")
        elif known.size is None:
            write_image(path, (64, 64), number)
            path.write_bytes(path.read_bytes()[:-200])
        else:
            write_image(path, known.size, number)
    write_image(root.parent / "outside.png", SMALL, seed=99)
    (root / "bad/of/many/out.png").symlink_to(root.parent / "outside.png")
    return root


TRAIN: list[dict[str, Any]] = [
    *({"filename": f"bottle/train/good/{n}.png", "label": 0, "label_name": "good"} for n in range(3)),
    {"filename": "cable/train/good/0.jpg", "label": 0, "label_name": "good", "clsname": "cable"},
    {"filename": "cable/train/good/1.jpg", "label": 0, "label_name": "good", "clsname": "cable", "maskname": None},
    {"filename": "loose.png", "label": 0, "label_name": "good", "clsname": "bottle"},
]
TEST: list[dict[str, Any]] = [
    {"filename": "bottle/test/good/0.png", "label": 0, "label_name": "good", "maskname": "masks/black.png"},
    {"filename": "bottle/test/good/1.png", "label": 0, "label_name": "good", "maskname": "", "clsname": ""},
    {"filename": "bottle/test/crack/0.png", "label": 1, "label_name": "crack", "maskname": "masks/bottle_0.png"},
    {
        "filename": "bottle/test/crack/1.png",
        "label": 1,
        "label_name": "crack",
        "maskname": ["masks/bottle_1.png", "masks/bottle_2.png"],
    },
    {"filename": "bottle/test/crack/2.png", "label": 1, "label_name": "crack"},
    {"filename": "cable/test/good/0.jpg", "label": 0, "label_name": "good", "clsname": "cable"},
    {
        "filename": "cable/test/cut/0.jpg",
        "label": 1,
        "label_name": "cut",
        "maskname": "masks/cable_0.png",
        "clsname": "cable",
    },
]


def to_lines(records: list[dict[str, Any]]) -> bytes:
    return "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records).encode()


def to_ader(train: list[dict[str, Any]], test: list[dict[str, Any]]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The same records as ADer writes them."""
    content: dict[str, dict[str, list[dict[str, Any]]]] = {"train": {}, "test": {}}
    for split, records in (("train", train), ("test", test)):
        for record in records:
            category = record.get("clsname") or record["filename"].split("/")[-4]
            content[split].setdefault(category, []).append(
                {
                    "img_path": record["filename"],
                    "mask_path": record.get("maskname") or "",
                    "cls_name": category,
                    "specie_name": record["label_name"],
                    "anomaly": record["label"],
                }
            )
    return content


Line = tuple[str, int]
Row = tuple[str, int, tuple[str, ...], str]


def judge(train: bytes, test: bytes) -> tuple[set[Line], dict[str, set[Row]]]:
    """Return the lines of train.json and test.json that are wrong, and the samples if there are none."""
    wrong: set[Line] = set()
    rows: dict[str, set[Row]] = {"train": set(), "test": set()}
    owner: dict[str, Line] = {}
    trained = set()  # contents of training images
    for name, data in (("train", train), ("test", test)):
        lines = data[3:].split(b"\n") if data[:3] == b"\xef\xbb\xbf" else data.split(b"\n")
        filled = [(number, line) for number, line in enumerate(lines, 1) if line.translate(None, b" \t\r")]
        if not filled:
            wrong.add((name, 1))
        for number, line in filled:
            sound, row, real = _judge_line(line, name)
            if not sound:
                wrong.add((name, number))
            if real is not None and owner.setdefault(real, (name, number)) != (name, number):
                wrong.add((name, number))
            content = FILES[real].content or real if real is not None else None
            if name == "train":
                trained.add(content)
            elif content is not None and content in trained:
                wrong.add((name, number))
            if row is not None:
                rows[name].add(row)
    return wrong, rows


def _judge_line(line: bytes, split: str) -> tuple[bool, Row | None, str | None]:
    """Whether a line is right, its sample, and its image if that and the masks are there."""
    strange = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        strange.extend(key for key, count in Counter(key for key, _ in items).items() if count > 1)
        return dict(items)

    try:
        record = json.loads(line.decode("utf-8"), object_pairs_hook=pairs, parse_constant=strange.append)
    except (ValueError, RecursionError):
        return False, None, None
    if strange or not isinstance(record, dict):
        return False, None, None
    sound = {"filename", "label"} <= set(record)
    known = ["filename", "label", "label_name", "maskname", "clsname"]
    for key in set(record) - set(known):
        sound &= all(difflib.SequenceMatcher(a=key.lower(), b=k).ratio() < 0.8 for k in known if k not in record)
    label, masks, category = record.get("label"), record.get("maskname"), record.get("clsname")
    sound &= repr(label) in ("0", "1") and (split == "test" or label == 0)
    sound &= record.get("label_name") in (None, "") or _is_name(record["label_name"])
    masks = [] if masks is None or masks == "" else masks if isinstance(masks, list) and masks else [masks]
    sound &= all(map(_is_name, masks)) and (category is None or category == "" or _is_name(category))
    filename = record.get("filename")
    if not _is_name(filename):
        return False, None, None
    if not category:
        parts = [part for part in filename.split("/") if part not in ("", ".")]
        category = parts[-4] if len(parts) > 3 else "/"
    if isinstance(category, str):
        sound &= not any(mark in category for mark in "/\\") and category.strip(".") != "" and category[0] != " "
        sound &= category == category.strip()
    if not all(map(_is_name, masks)):
        masks = []
    image, *found = (
        None if path.startswith("/") else FILES.get(str(PurePosixPath(path))) for path in (filename, *masks)
    )
    if image is None or None in found:
        return False, None, None
    real = image.real or str(PurePosixPath(filename))
    sound &= image.size is not None and not image.deep
    sound &= all(mask is not None and mask.size == image.size for mask in found)
    sound &= real not in [
        mask.real or str(PurePosixPath(path)) for path, mask in zip(masks, found, strict=True) if mask
    ]
    sound &= not (label == 0 and any(mask is not None and mask.marks for mask in found))
    sound &= not (label == 1 and found and not any(mask is not None and mask.marks for mask in found))
    row = (str(PurePosixPath(filename)), label, tuple(str(PurePosixPath(mask)) for mask in masks), category)
    return bool(sound), row if sound else None, real


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != "" and all(character.isprintable() for character in value)


def read_mask(path: Path) -> np.ndarray:
    return np.array(Image.open(path)) > 0
