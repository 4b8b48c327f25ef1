# SPDX-License-Identifier: Apache-2.0
import csv
import os
from pathlib import Path, PurePath

import numpy as np
import pytest
from PIL import Image

from anomalib_uniad.inference.decision import Decision
from anomalib_uniad.inference.heatmap import draw_heatmap
from anomalib_uniad.inference.images import ImageFile
from anomalib_uniad.inference.writer import COLUMNS, Writer, heatmap_names

BLACK = np.zeros((6, 9, 3), dtype=np.uint8)


def files(*names: str) -> list[ImageFile]:
    return [ImageFile(Path("in") / name, PurePath(name)) for name in names]


def test_rows_are_there_at_once(tmp_path: Path) -> None:
    images = files('a, "b".png', "c.png", "d.png")
    with Writer(tmp_path / "new" / "out", images, heatmaps=False) as writer:
        writer.row(images[0], Decision("bottle", 12.25, 1 / 3, 12.0, True))
        read = list(csv.reader(writer.table.read_text().splitlines()))
        assert read == [list(COLUMNS), ['in/a, "b".png', "bottle", "12.25", "0.3333333", "12", "anomalous", "", ""]]
        writer.row(images[1], Decision(anomalous=False))
        writer.row(images[2], Decision(), "image file is truncated")
    rows = list(csv.DictReader(writer.table.read_text().splitlines()))
    assert [row["decision"] for row in rows] == ["anomalous", "normal", ""]
    assert rows[2]["error"] == "image file is truncated"
    assert rows[2]["raw_score"] == rows[1]["threshold"] == ""


def test_names_that_are_no_text(tmp_path: Path) -> None:
    (image,) = files(os.fsdecode(b"caf\xe9.png"))
    with Writer(tmp_path, [image], heatmaps=False) as writer:
        writer.row(image, Decision())
    assert b"caf\xe9.png" in writer.table.read_bytes()


def test_heatmap_names() -> None:
    names = ["a.png", "a.jpg", "a.png.bmp", "x/A.png", "x/a.jpg", "b.v2.tif", "b.v1.tif", "a.png"]
    found = [name.as_posix() for name in heatmap_names([PurePath(name) for name in names])]
    assert found == [
        *("a.png_2.png", "a.jpg.png", "a.png.png", "x/A.png.png", "x/a.jpg.png"),
        *("b.v2.png", "b.v1.png", "a.png_3.png"),
    ]
    assert len({name.casefold() for name in found}) == len(names)


def test_heatmaps(tmp_path: Path) -> None:
    images = files("good/a.png", "good/a.jpg", "b.bmp")
    with Writer(tmp_path, images) as writer:
        for image in images:
            writer.heatmap(image, BLACK, np.zeros((2, 2)))
            writer.row(image, Decision())
    rows = list(csv.DictReader(writer.table.read_text().splitlines()))
    assert [row["heatmap"] for row in rows] == [
        *("heatmaps/good/a.png.png", "heatmaps/good/a.jpg.png", "heatmaps/b.png"),
    ]
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")}
    assert written == {"heatmaps/good/a.png.png", "heatmaps/good/a.jpg.png", "heatmaps/b.png"}
    with Image.open(tmp_path / "heatmaps" / "b.png") as heatmap:
        assert heatmap.size == (9, 6)


def test_colours() -> None:
    """Half the image, half the colour: from dark blue over green to dark red."""
    values = np.array([[0.0, 0.25, 0.5, 0.75, 1.0]])
    drawn = np.asarray(draw_heatmap(np.full((1, 5, 3), 100, np.uint8), values)).astype(int)[0]
    colours = np.array([[0, 0, 128], [0, 128, 255], [128, 255, 128], [255, 128, 0], [128, 0, 0]])
    assert np.abs(drawn - (100 + colours) / 2).max() <= 3


def test_map_is_enlarged_to_the_image() -> None:
    values = np.array([[0.0, 1.0], [0.0, 1.0]])
    drawn = np.asarray(draw_heatmap(np.zeros((4, 40, 3), np.uint8), values)).astype(int)
    assert (drawn == drawn[:1]).all()
    blue, red = drawn[0, :, 2], drawn[0, :, 0]
    assert blue[:10].min() > 50
    assert red[30:].min() > 50
    assert blue[-1] == red[0] == 0


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    images = files("a.png", "b.png")
    (tmp_path / "heatmaps").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "heatmaps" / name).write_text("mine")
    with pytest.raises(FileExistsError, match=r"heatmaps/a.png \(and 1 more\) would be overwritten"):
        Writer(tmp_path, images)
    assert not (tmp_path / "predictions.csv").exists()
    with Writer(tmp_path, images, heatmaps=False) as writer:
        writer.row(images[0], Decision())
    with pytest.raises(
        FileExistsError, match=r"predictions.csv would be overwritten: choose another output folder, or set"
    ):
        Writer(tmp_path, images, heatmaps=False)
    assert len(writer.table.read_text().splitlines()) == 2
    with Writer(tmp_path, images, overwrite=True) as writer:
        writer.heatmap(images[0], BLACK, np.zeros((2, 2)))
    assert len(writer.table.read_text().splitlines()) == 1
    assert (tmp_path / "heatmaps" / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(FileExistsError, match=r"a file: give a folder"):
        Writer(writer.table, images)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "heatmaps").touch()
    with pytest.raises(FileExistsError, match=r"other/heatmaps is a file, but the heatmaps need a folder"):
        Writer(tmp_path / "other", images, overwrite=True)
    assert not (tmp_path / "other" / "predictions.csv").exists()
