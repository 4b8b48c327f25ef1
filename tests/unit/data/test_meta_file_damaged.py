# SPDX-License-Identifier: Apache-2.0
"""Generated damaged meta files: each is refused at the right lines of the right file, or is no damage at all."""

import json
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anomalib_uniad import MetaFile
from meta_files import TEST, TRAIN, Line, Row, judge, make_folder, to_ader, to_lines

SETTINGS = settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
Files = list[list[bytes]]  # lines of train.json and test.json

BAD_VALUES = [None, True, False, 0, 1, 2, -1, 1.0, 0.5, "1", "", " ", [], {}, ["a"], [1], {"a": 1}, 10**30, "a\nb"]
BAD_VALUES += ["\ud800"]
BAD_PATHS = [f"bad/of/many/{name}" for name in ("text.png", "cut_off.png", "cut_off.jpg", "out.png", "deep.png")]
BAD_PATHS += ["bad/of/many/float.tif", "bad/of/many", "../outside.png", "/etc/hostname", "not/to/be/found.png"]
BAD_PATHS += ["bottle/test/good/copy.png", "bottle/test/good/hard_link.png", "bottle/train/good/link.png"]
BAD_PATHS += ["bottle/../bottle/train/good/0.png", "bottle/train/good/0.png", "cable/test/good/1.jpg"]
BAD_PATHS += ["masks/bottle_0.png", "masks/black.png", "bottle/test/good/0.png/", "./bottle//test/good/0.png"]
BAD_PATHS += ["Bottle/test/good/0.png", "bottle\\test\\good\\0.png", "~", ".", "\0", "x" * 5000]
CATEGORIES = ["a/b", "..", ".", " bottle", "bottle ", "\t", "new", "Flasche/", "ü"]
GARBAGE = [b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\n", b"\r", b" ", b"\x00", b"\xff", b"\xc3"]
GARBAGE += [b"\xef\xbb\xbf", b"null", b"NaN", b"//", b"#", b"'", b"0", b"1", b"e", b"-", b"\xe2\x80\xa8"]
GARBAGE += [b"\xed\xa0\x80", b"[" * 3000]


def with_record(change: Callable[[dict[str, Any], Callable[[Any], Any]], Any]) -> Callable[[Files, Callable], None]:
    """Make a damage to the text out of one to a record."""

    def damage(files: Files, pick: Callable[[Any], Any]) -> None:
        lines = pick([lines for lines in files if lines] or [[b"{}"]])
        index = pick(range(len(lines)))
        try:
            record = json.loads(lines[index])
        except (ValueError, RecursionError):
            return
        if isinstance(record, dict):
            changed = change(record, pick)
            text = changed if isinstance(changed, bytes) else json.dumps(record).encode()
            lines[index] = text

    return damage


def drop_key(record: dict, pick) -> None:
    record.pop(pick(sorted(record)), None) if record else None


def swap_type(record: dict, pick) -> None:
    if record:
        record[pick(sorted(record))] = pick(BAD_VALUES)


def wrong_label(record: dict, pick) -> None:
    record["label"] = pick([1, 0, True, False, 1.0, "0", "good", 2, -1, None])


def other_path(record: dict, pick) -> None:
    record[pick(["filename", "filename", "maskname"])] = pick(BAD_PATHS)


def other_mask(record: dict, pick) -> None:
    record["maskname"] = [pick([*BAD_PATHS, *BAD_VALUES]) for _ in range(pick([1, 2, 3]))]


def other_category(record: dict, pick) -> None:
    record["clsname"] = pick(CATEGORIES)


def misspell(record: dict, pick) -> None:
    key = pick(["maskname", "clsname", "filename", "label", "label_name"])
    new = pick([f"{key}s", key.upper(), key[1:], key[:-2], key.replace("name", "_name"), f"my_{key}_here", "extra"])
    record[new] = record.pop(key, 1)


def repeat_key(record: dict, pick) -> bytes:
    key = pick(sorted(record) or ["label"])
    value = json.dumps(pick([record.get(key), *BAD_VALUES]))
    return f'{{"{key}": {value}, {json.dumps(record)[1:]}'.encode()


def no_number(record: dict, pick) -> bytes:
    key = pick([*sorted(record), "extra"])
    text = pick(["NaN", "Infinity", "-Infinity", "[NaN]", '{"a": [1, {"b": -Infinity}]}', "9" * 5000, "1e999", "01"])
    return f'{json.dumps({k: v for k, v in record.items() if k != key})[:-1]}, "{key}": {text}}}'.encode()


def reorder_braces(record: dict, pick) -> bytes:
    text = json.dumps(record)
    return pick(
        [text[::-1], text[1:-1], f"}}{text[1:-1]}{{", f"[{text}]", f"{text}{text}", f"{{{text}}}", f"[{text[1:-1]}]"]
    ).encode()


def wrap(record: dict, pick) -> None:
    record[pick(sorted(record) or ["label"])] = {"nested": dict(record)}


def truncate_line(files: Files, pick) -> None:
    lines = pick(files)
    if lines:
        index = pick(range(len(lines)))
        lines[index] = lines[index][: pick(range(len(lines[index]) + 1))]


def truncate_file(files: Files, pick) -> None:
    lines = pick(files)
    data = b"\n".join(lines)
    lines[:] = data[: pick(range(len(data) + 1))].split(b"\n")


def delete_bytes(files: Files, pick) -> None:
    lines = pick(files)
    data = b"\n".join(lines)
    start = pick(range(len(data) + 1))
    lines[:] = (data[:start] + data[start + pick([1, 1, 2, 5, 20]) :]).split(b"\n")


def insert_garbage(files: Files, pick) -> None:
    lines = pick(files)
    data = b"\n".join(lines)
    start = pick(range(len(data) + 1))
    lines[:] = (data[:start] + pick(GARBAGE) + data[start + pick([0, 1]) :]).split(b"\n")


def replace_byte(files: Files, pick) -> None:
    lines = pick(files)
    data = bytearray(b"\n".join(lines))
    if data:
        data[pick(range(len(data)))] = pick(range(256))
    lines[:] = bytes(data).split(b"\n")


def duplicate_line(files: Files, pick) -> None:
    source, target = pick(files), pick(files)
    if source:
        target.insert(pick(range(len(target) + 1)), pick(source))


def join_lines(files: Files, pick) -> None:
    lines = pick(files)
    if len(lines) > 1:
        index = pick(range(len(lines) - 1))
        lines[index : index + 2] = [lines[index] + pick([b"", b" ", b",", b"\r"]) + lines[index + 1]]


def empty_file(files: Files, pick) -> None:
    pick(files)[:] = [pick([b"", b"\n", b" \t\r\n\n", b"\xef\xbb\xbf", b"null", b"[]", b"{}", b"\xff\xfe{\x00}\x00"])]


def other_encoding(files: Files, pick) -> None:
    lines = pick(files)
    text = b"\n".join(lines).decode("utf-8", "replace")
    lines[:] = (
        text.replace("good", "gööd").encode(pick(["utf-16", "latin-1", "utf-8-sig", "utf-8"]), "replace").split(b"\n")
    )


def blank_lines(files: Files, pick) -> None:
    lines = pick(files)
    lines.insert(pick(range(len(lines) + 1)), pick([b"", b" ", b"\t\r", b"\x0c", b"\xc2\xa0"]))


RECORD = [drop_key, swap_type, wrong_label, other_path, other_mask, other_category, misspell, repeat_key, no_number]
DAMAGES = [
    *map(with_record, [*RECORD, reorder_braces, wrap]),
    *(truncate_line, truncate_file, delete_bytes, insert_garbage, replace_byte, duplicate_line, join_lines),
    *(empty_file, other_encoding, blank_lines),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("damaged") / "products")


def load(root: Path, **arguments) -> MetaFile:
    datamodule = MetaFile(root, num_workers=1, **arguments)
    datamodule.prepare_data()
    return datamodule


def lines_in(message: str, root: Path) -> set[Line]:
    """Lines that a message blames; each of its entries has one."""
    entries = message.split("\n- ")[1:]
    found = [re.match(rf"{re.escape(str(root))}/(train|test)\.json, line (\d+): .", entry) for entry in entries]
    assert all(found), message
    return {(match[1], int(match[2])) for match in found if match}


def samples_of(datamodule: MetaFile, root: Path) -> dict[str, set[Row]]:
    datamodule.setup()
    rows: dict[str, set[Row]] = {}
    for name in ("train", "test"):
        rows[name] = set()
        for row in getattr(datamodule, f"{name}_data").samples.itertuples():
            masks = row.mask_path if isinstance(row.mask_path, list) else [row.mask_path] if row.mask_path else []
            image, *paths = (Path(path).relative_to(root).as_posix() for path in (row.image_path, *masks))
            rows[name].add((image, row.label_index, tuple(paths), row.category))
    return rows


def test_the_undamaged_files_are_right(root: Path) -> None:
    (root / "train.json").write_bytes(to_lines(TRAIN))
    (root / "test.json").write_bytes(to_lines(TEST))
    wrong, rows = judge(to_lines(TRAIN), to_lines(TEST))
    assert not wrong
    assert samples_of(load(root), root) == rows
    assert [len(rows[name]) for name in ("train", "test")] == [len(TRAIN), len(TEST)]


@pytest.mark.parametrize("number", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_damaged_lines(root: Path, number: int) -> None:
    damaged: set[tuple[bytes, bytes]] = set()
    undamaged: set[tuple[bytes, bytes]] = set()

    @settings(SETTINGS, max_examples=number)
    @given(st.lists(st.sampled_from(DAMAGES), min_size=1, max_size=2), st.randoms(use_true_random=False))
    def check(damages: list[Callable], random) -> None:
        files = [to_lines(records).split(b"\n")[:-1] for records in (TRAIN, TEST)]
        for damage in damages:
            damage(files, random.choice)
        train, test = (b"\n".join(lines) for lines in files)
        (root / "train.json").write_bytes(train)
        (root / "test.json").write_bytes(test)
        wrong, rows = judge(train, test)
        if wrong:
            damaged.add((train, test))
            with pytest.raises(ValueError, match=r"problems? in ") as error:
                load(root)
            blamed = lines_in(str(error.value), root)
            cut = re.search(r"and \d+ more$|one JSON document over several lines", str(error.value))
            assert blamed == wrong or (cut and blamed and blamed <= wrong)
        else:
            undamaged.add((train, test))
            datamodule = load(root)
            if len(undamaged) % 4 == 0:  # slower than all the rest
                assert samples_of(datamodule, root) == rows

    check()
    assert len(damaged) >= 0.75 * number
    assert len(undamaged) >= 0.02 * number


def meaning(record: dict[str, Any]) -> tuple:
    """What a record of ADer says, without the name of its defect."""
    masks = record["mask_path"] if isinstance(record["mask_path"], list) else [record["mask_path"]]
    paths = [path and PurePosixPath(path) for path in (record["img_path"], *masks)]
    return *paths, record["cls_name"], record["anomaly"]


@pytest.mark.parametrize("number", [100, pytest.param(400, marks=pytest.mark.slow)])
def test_damaged_ader(root: Path, number: int) -> None:
    """The text of ADer's one file; whatever is no JSON has a line, whatever is has a place."""
    original = json.dumps(to_ader(TRAIN, TEST), indent=1).encode()
    path = root / "meta.json"
    seen = {"refused": 0, "accepted": 0}

    @settings(SETTINGS, max_examples=number)
    @given(
        st.sampled_from([delete_bytes, insert_garbage, replace_byte, truncate_file]), st.randoms(use_true_random=False)
    )
    def check(damage: Callable, random) -> None:
        lines = original.split(b"\n")
        damage([lines], random.choice)
        data = b"\n".join(lines)
        path.write_bytes(data)
        try:
            load(root, ader_meta=path)
        except ValueError as error:
            entries = str(error).split("\n- ")[1:]
            place = rf"{re.escape(str(path))}, (line \d+|train|test|(train|test)/[^/]+(/\d+)?): ."
            assert entries and all(re.match(place, entry) for entry in entries), str(error)
            seen["refused"] += 1
        else:  # what differs is between the tokens, or in names that are free
            content, expected = json.loads(data.decode("utf-8-sig")), json.loads(original)
            for split in ("train", "test"):
                assert content[split].keys() == expected[split].keys()
                for category, records in expected[split].items():
                    assert list(map(meaning, content[split][category])) == list(map(meaning, records))
            seen["accepted"] += 1

    check()
    assert seen["refused"] >= 0.75 * number
    assert seen["accepted"] >= 0.01 * number
