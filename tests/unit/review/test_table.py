# SPDX-License-Identifier: Apache-2.0
import base64
import csv
import io
import os
import sys
from pathlib import Path, PurePath

import PIL.Image
import pytest

from anomalib_uniad.errors import InputError, MissingFileError
from anomalib_uniad.inference.heatmap import caption_height
from anomalib_uniad.label_names import labels_of
from anomalib_uniad.review.labels import Labels
from anomalib_uniad.review.page import _data_uri
from anomalib_uniad.review.table import EVERYWHERE, Image, find_table, read_table
from runs import write_picture

PREDICT = ("path", "category", "raw_score", "threshold", "decision", "heatmap", "error")
RUN = ("path", "category", "label", "product", "raw_score", "threshold", "decision", "error")


def write(file: Path, columns: tuple[str, ...], *rows: tuple[object, ...]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        csv.writer(stream).writerows([columns, *rows])
    return file


def test_a_table_of_predict(tmp_path: Path) -> None:
    write_picture(tmp_path / "heatmaps" / "1.png")
    write_picture(tmp_path / "raw" / "bad" / "2.png")
    second = str(tmp_path / "raw" / "bad" / "2.png")
    file = write(
        tmp_path / "predictions.csv",
        PREDICT,
        ("in/good/1.png", "nut", 1.5, 2, "normal", "heatmaps/1.png", ""),
        (second, "bolt", 3.5, 3, "anomalous", "", ""),
        ("in/new/3.png", "nut", 2.5, 2, "anomalous", "heatmaps/gone.png", ""),
        ("in/new/4.png", "", 9, "", "unknown", "", ""),
        ("in/new/5.png", "nut", "", "", "", "", "in/new/5.png cannot be read"),
        ("in/new/6.png", "nut", "", "", "", "", ""),
    )
    table = read_table(file)
    assert [(group.name, group.threshold) for group in table.groups] == [("bolt", 3.0), ("nut", 2.0)]
    bolt, nut = table.groups
    assert [(image.number, image.score, image.defective) for image in nut.images] == [(0, 1.5, False), (2, 2.5, None)]
    assert [image.defective for image in bolt.images] == [True]
    pictures = [(image.picture, image.has_caption) for image in (*nut.images, *bolt.images)]
    assert pictures == [(tmp_path / "heatmaps" / "1.png", True), (None, False), (Path(second), False)]
    assert table.left_out == [
        ("in/new/4.png", "it shows none of the model's products"),
        ("in/new/5.png", "in/new/5.png cannot be read"),
        ("in/new/6.png", "it has no raw score"),
    ]


def test_a_table_of_a_run(tmp_path: Path) -> None:
    """By recognised products; else by categories whose thresholds differ; else all together. Pictures by category."""
    write_picture(tmp_path / "images" / "nut" / "test" / "good" / "1.png")
    write_picture(tmp_path / "images" / "good" / "1.png")  # of which product?
    rows = [
        ("/d/nut/test/good/1.png", "nut", "normal", "nut", 1.0, 2.0, "normal", ""),
        ("/d/bolt/test/good/1.png", "bolt", "anomalous", "nut", 3.0, 2.0, "anomalous", ""),
        ("/d/bolt/test/good/2.png", "bolt", "", "", 3.0, "", "unknown", ""),
        ("/d/bolt/test/good/3.png", "bolt", "", "bolt", "", "", "", "the score is not a number"),
    ]
    recognised = read_table(write(tmp_path / "predictions.csv", RUN, *rows))
    (group,) = recognised.groups
    assert (group.name, [image.defective for image in group.images]) == ("nut", [False, True])
    found = [image.picture for image in group.images]
    assert found == [tmp_path / "images" / "nut" / "test" / "good" / "1.png", None]
    assert [why for _, why in recognised.left_out] == [
        "it shows none of the model's products",
        "the score is not a number",
    ]
    plain = [(*row[:3], "", *row[4:]) for row in rows[:2]]
    (everything,) = read_table(write(tmp_path / "all" / "predictions.csv", RUN, *plain)).groups
    assert (everything.name, everything.threshold, len(everything.images)) == (EVERYWHERE, 2.0, 2)
    plain[1] = (*plain[1][:5], 2.5, *plain[1][6:])
    groups = read_table(write(tmp_path / "own" / "predictions.csv", RUN, *plain)).groups
    assert [(group.name, group.threshold) for group in groups] == [("bolt", 2.5), ("nut", 2.0)]


def test_the_newest_table_is_found(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("v0/predictions.csv", "v0/predictions-1.csv", "v1/predictions.csv")]
    for age, file in enumerate(files):
        os.utime(write(file, PREDICT), (age, age))
    assert find_table(tmp_path) == files[2]
    assert find_table(tmp_path / "v0") == files[1]
    assert find_table(files[0]) == files[0]
    with pytest.raises(MissingFileError, match=r"There is no predictions.csv: neither .*none nor"):
        find_table(tmp_path / "none")


def test_labels_of_an_earlier_review(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    odd = os.fsdecode(b"bad/n\xe4me.png")
    rows = [("good/1.png", "nut", "defective"), ("good/2.png", "nut", ""), (odd, "nut", "good")]
    labels = Labels(write(Path("labels.csv"), ("path", "product", "label"), *rows))
    paths = [str(tmp_path / "good/1.png"), "good/2.png", odd, "good/4.png", "new/5.png"]
    assert labels.of(paths) == [True, None, False, False, None]
    assert labels.of(paths, [None] * 5) == [True, None, False, None, None]
    with pytest.raises(InputError, match=r"labels.csv has none of these images: it has good/1.png, and they are a.png"):
        labels.of(["a.png"])


def test_how_other_programs_write_tables(tmp_path: Path) -> None:
    file, text = tmp_path / "labels.csv", "path,label\r\na.png,good\r\n"
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert Labels(file).of(["a.png"]) == [False]
    file.write_bytes(text.replace(",", ";").encode())
    with pytest.raises(
        InputError, match=r"no column path, label\. Its columns, .* separated by commas, are: path;label\.$"
    ):
        Labels(file)
    file.write_bytes(text.encode("utf-16"))
    wrong = r"no column path, label\. Its columns, in UTF-8 .* are: .*\.$"
    if sys.version_info < (3, 11):  # whose csv module takes no zero bytes
        wrong = r"is damaged: line contains NUL; it must be a csv in UTF-8\.$"
    with pytest.raises(InputError, match=wrong):
        Labels(file)


def test_names_of_folders() -> None:
    paths = ["a/NOT_OK/x/1.png", "good/defective/2.png", "b/test/crack/3.png", "b/test/ok/4.png", "c/test/5/6.png"]
    assert labels_of([PurePath(path) for path in paths]) == [True, True, True, False, None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,category\n", r"has no column raw_score, threshold, decision\."),
        ("path,category,raw_score,threshold,decision,error\na,b,x,1,normal,\n", r"raw_score in line 2 is 'x', not a"),
        ("path,category,raw_score,threshold,decision,error\na,b\n", "damaged: line 2 has not one cell for each"),
        ("path,category,raw_score,threshold,decision,error\na,,,,,\n", "has no raw score of any image"),
        ('path,category,raw_score,threshold,decision,error\n"a', "is damaged: unexpected end of data"),
    ],
)
def test_other_tables(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "predictions.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_table(tmp_path / "predictions.csv")


def test_what_was_decided_is_cut_off(tmp_path: Path) -> None:
    """Of the pictures of a test, and not of others that have no caption."""
    file = tmp_path / "a.png"
    PIL.Image.new("RGB", (160, 90), "white").save(file)
    for name, size, shown in (
        ("test", (320, 90 + caption_height(160)), (320, 90)),
        ("predict", (160, 90 + caption_height(160)), (160, 90)),
        ("other", (320, 300), (320, 300)),
    ):
        PIL.Image.new("RGB", size, "white").save(tmp_path / f"{name}.png")
        image = Image(0, str(file), "nut", 1.0, None, tmp_path / f"{name}.png", name == "predict")
        data = base64.b64decode(_data_uri(image, 100_000).partition(",")[2])
        assert PIL.Image.open(io.BytesIO(data)).size == shown
