# SPDX-License-Identifier: Apache-2.0
import csv
import json
import os
import re
from pathlib import Path, PurePath

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from anomalib_uniad.errors import DiskError
from anomalib_uniad.inference.heatmap import caption_height, draw_heatmap, draw_inspection, map_to_image
from anomalib_uniad.inference.images import ImageFile
from anomalib_uniad.inference.inspection import Inspection
from anomalib_uniad.inference.regions import Region, find_regions
from anomalib_uniad.inference.writer import COLUMNS, Writer, picture_names
from full_disk import full_disk

BLACK = np.zeros((6, 9, 3), dtype=np.uint8)
NOTHING = Inspection("undecided", "", None, None, None)


def with_map(values: np.ndarray) -> Inspection:
    mask, regions = find_regions(values, 0.5)
    return Inspection("anomalous", "bottle", 0.75, 12.25, 12.0, values.astype(np.float32), mask, regions)


def files(*names: str) -> list[ImageFile]:
    return [ImageFile(Path("in") / name, PurePath(name)) for name in names]


def test_rows_are_there_at_once(tmp_path: Path) -> None:
    images = files('a, "b".png', "c.png", "d.png")
    values = np.zeros((10, 10))
    values[2:4, 3:8] = 0.9
    with Writer(tmp_path / "new" / "out", images, pictures=False, origin=("abc", "def")) as writer:
        writer.row(images[0], with_map(values))
        (row,) = csv.DictReader(writer.table.read_text().splitlines())
        assert tuple(row) == COLUMNS
        assert list(row.values()) == [
            *('in/a, "b".png', "bottle", "12.25", "0.75", "12", "anomalous", "1", "10", "", "", "abc", "def", ""),
        ]
        (line,) = map(json.loads, writer.regions.read_text().splitlines())
        assert (line["raw_score"], line["defective_percent"], line["mask"]) == (12.25, 10.0, "")
        assert [Region(**region) for region in line["regions"]] == find_regions(values, 0.5)[1]
        assert line["regions"][0]["left"] == 3
        writer.row(images[1], Inspection("normal", "", None, None, None))
        writer.row(images[2], None, "image file is truncated")
    rows = list(csv.DictReader(writer.table.read_text().splitlines()))
    assert [row["decision"] for row in rows] == ["anomalous", "normal", ""]
    assert rows[2]["error"] == "image file is truncated"
    assert rows[2]["raw_score"] == rows[1]["threshold"] == rows[1]["regions"] == ""
    assert len(writer.regions.read_text().splitlines()) == 3


def test_names_that_are_no_text(tmp_path: Path) -> None:
    (image,) = files(os.fsdecode(b"caf\xe9.png"))
    with Writer(tmp_path, [image], pictures=False) as writer:
        writer.row(image, NOTHING)
    assert b"caf\xe9.png" in writer.table.read_bytes()


def test_picture_names() -> None:
    names = ["a.png", "a.jpg", "a.png.bmp", "x/A.png", "x/a.jpg", "b.v2.tif", "b.v1.tif", "a.png"]
    found = [name.as_posix() for name in picture_names([PurePath(name) for name in names])]
    assert found == [
        *("a.png_2.png", "a.jpg.png", "a.png.png", "x/A.png.png", "x/a.jpg.png"),
        *("b.v2.png", "b.v1.png", "a.png_3.png"),
    ]
    assert len({name.casefold() for name in found}) == len(names)


def test_the_longest_names(tmp_path: Path) -> None:
    """Of files that differ in their type alone, and of one that is no text."""
    images = files("a" * 251 + ".png", "a" * 251 + ".bmp", "\udcff" * 251 + ".png", "\udcff" * 250 + ".webp")
    for folder, given in (("known", images), ("arrived", [])):
        with Writer(tmp_path / folder, given, go_on=not given) as writer:
            for image in images:
                writer.pictures(image, BLACK, with_map(np.eye(6, 9)))
                writer.row(image, with_map(np.eye(6, 9)))
        assert len(list((tmp_path / folder / "heatmaps").iterdir())) == 4
        assert len(list((tmp_path / folder / "masks").iterdir())) == 4


def test_long_names_are_cut_between_characters() -> None:
    (name,) = picture_names([PurePath("a" + "ä" * 126 + ".png")])
    assert re.fullmatch("aä{116}~[0-9a-f]{16}[.]png", name.name)
    assert len(name.name.encode()) == 254


def test_pictures(tmp_path: Path) -> None:
    images = files("good/a.png", "good/a.jpg", "b.bmp")
    values = np.zeros((60, 90))
    values[10:30, 20:50] = 1
    with Writer(tmp_path, images) as writer:
        for image in images:
            writer.pictures(image, np.zeros((60, 90, 3), np.uint8), with_map(values))
            writer.row(image, with_map(values))
    rows = list(csv.DictReader(writer.table.read_text().splitlines()))
    names = ["good/a.png.png", "good/a.jpg.png", "b.png"]
    heatmaps = [f"heatmaps/{name.removesuffix('.png')}.jpg" for name in names]
    assert [row["heatmap"] for row in rows] == heatmaps
    assert [row["mask"] for row in rows] == [f"masks/{name}" for name in names]
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*g")}
    assert written == {*heatmaps, *(f"masks/{name}" for name in names)}
    with Image.open(tmp_path / "masks" / "b.png") as mask:
        assert ((np.asarray(mask) == 255) == (values > 0.5)).all()
    with Image.open(tmp_path / "heatmaps" / "b.jpg") as heatmap:
        assert heatmap.width == 90
        assert heatmap.height > 60  # the line with decision and score
        decoded = np.asarray(heatmap).astype(int)
    pixels = np.asarray(draw_inspection(np.zeros((60, 90, 3), np.uint8), with_map(values)))
    assert (pixels[10, 20] == 255).all()  # outline of the mask
    assert tuple(pixels[-1, 0]) == (0xB7, 0x1C, 0x1C)
    assert np.abs(decoded - pixels).mean() < 3, "JPEG, nearly as drawn"


def test_what_is_too_long_for_jpeg_is_a_png(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomalib_uniad.inference.writer.LONGEST_JPEG", 50)
    images = files("a.bmp", "b.bmp")
    with Writer(tmp_path, images) as writer:
        for image, length in zip(images, (50, 51), strict=True):
            writer.pictures(image, np.zeros((6, length, 3), np.uint8), with_map(np.zeros((6, length))))
            writer.row(image, with_map(np.zeros((6, length))))
    rows = list(csv.DictReader(writer.table.read_text().splitlines()))
    assert [row["heatmap"] for row in rows] == ["heatmaps/a.jpg", "heatmaps/b.png"]
    with Image.open(tmp_path / "heatmaps" / "b.png") as heatmap:
        assert heatmap.width == 51
    for file in (writer.table, writer.regions, tmp_path / "heatmaps" / "a.jpg", *(tmp_path / "masks").iterdir()):
        file.unlink()
    with pytest.raises(FileExistsError, match=r"heatmaps/b\.png would be overwritten"):
        Writer(tmp_path, images)


def test_a_picture_without_decision(tmp_path: Path) -> None:
    (image,) = files("a.png")
    with Writer(tmp_path, [image]) as writer:
        writer.pictures(image, BLACK, Inspection("undecided", "", None, 1.0, None, np.zeros((6, 9), np.float32)))
        writer.row(image, NOTHING)
    assert not list((tmp_path / "masks").iterdir())
    assert next(csv.DictReader(writer.table.read_text().splitlines()))["mask"] == ""


def test_colours() -> None:
    """Half the image, half the colour, of a scale that colour-blind people can read."""
    values = np.linspace(0, 1, 9)[None]
    drawn = np.asarray(draw_heatmap(np.full((1, 9, 3), 100, np.uint8), values)).astype(int)[0]
    colours = 255 * colormaps["RdYlBu_r"](values[0])[:, :3]
    assert np.abs(drawn - (100 + colours) / 2).max() <= 2


def test_the_scale_below_marks_the_threshold() -> None:
    colours = 255 * colormaps["RdYlBu_r"](np.linspace(0, 1, 300))[:, :3]
    for threshold, place in ((0.5, 150), (0.2, 60), (None, None)):
        values = np.zeros((40, 300), np.float32)
        inspection = Inspection("normal", "", 0.2, 1.0, None, values, map_threshold=threshold)
        drawn = np.asarray(draw_inspection(np.zeros((40, 300, 3), np.uint8), inspection)).astype(int)
        assert drawn.shape == (40 + caption_height(300), 300, 3)
        marked = np.zeros(300, bool)
        if place is not None:
            marked[place - 2 : place + 2] = True
        assert (drawn[41][marked] == 0).all()
        assert np.abs(drawn[41] - colours)[~marked].max() <= 4


def test_map_is_enlarged_to_the_image() -> None:
    values = np.array([[0.0, 1.0], [0.0, 1.0]])
    drawn = np.asarray(draw_heatmap(np.zeros((4, 40, 3), np.uint8), map_to_image(values, (4, 40)))).astype(int)
    assert (drawn == drawn[:1]).all()
    blue, red = drawn[0, :, 2], drawn[0, :, 0]
    assert (blue[:10] > red[:10] + 40).all()
    assert (red[30:] > blue[30:] + 40).all()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    images = files("a.png", "b.png")
    (tmp_path / "heatmaps").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "heatmaps" / name).write_text("mine")
    with pytest.raises(FileExistsError, match=r"heatmaps/a.jpg \(and 1 more\) would be overwritten"):
        Writer(tmp_path, images)
    assert not (tmp_path / "predictions.csv").exists()
    with Writer(tmp_path, images, pictures=False) as writer:
        writer.row(images[0], NOTHING)
    with pytest.raises(
        FileExistsError,
        match=r"predictions.csv \(and 1 more\) would be overwritten: choose another output folder, or set",
    ):
        Writer(tmp_path, images, pictures=False)
    assert len(writer.table.read_text().splitlines()) == 2
    with Writer(tmp_path, images, overwrite=True) as writer:
        writer.pictures(images[0], BLACK, with_map(np.zeros((6, 9))))
    assert len(writer.table.read_text().splitlines()) == 1
    assert (tmp_path / "heatmaps" / "a.jpg").read_bytes().startswith(b"\xff\xd8")
    with pytest.raises(FileExistsError, match=r"a file: give a folder"):
        Writer(writer.table, images)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "heatmaps").touch()
    with pytest.raises(FileExistsError, match=r"other/heatmaps is a file, but the heatmaps need a folder"):
        Writer(tmp_path / "other", images, overwrite=True)
    assert not (tmp_path / "other" / "predictions.csv").exists()


def test_gone_on_with(tmp_path: Path) -> None:
    """Rows without their line are judged again, and those with an error if their images are there."""
    images = files("a.png", 'b,\n".png', "c.png", "d.png")

    def write(*errors: str, given: list[ImageFile]) -> set[str]:
        with Writer(tmp_path, given, pictures=False, go_on=True) as writer:
            for image, error in zip(images, errors, strict=False):
                writer.row(image, NOTHING, error)
        return {Path(path).name for path in writer.judged}

    def there() -> list[str]:
        rows = list(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines(keepends=True)))
        lines = [json.loads(line)["path"] for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
        assert [row["path"] for row in rows] == lines
        return [Path(line).name for line in lines]

    assert write("no room", "no room", "", "it is empty", given=images) == set()
    assert write(given=[]) == {image.path.name for image in images}
    assert write(given=images[1:]) == {"a.png", "c.png"}
    assert there() == ["a.png", "c.png"]
    lines = tmp_path / "predictions.jsonl"
    lines.write_bytes(lines.read_bytes()[:-9])
    assert write(given=[]) == {"a.png"}
    assert there() == ["a.png"]
    lines.rename(tmp_path / "lines")
    with pytest.raises(FileExistsError, match=r"^There is no predictions\.jsonl beside .*csv, with a line"):
        write(given=[])
    (tmp_path / "lines").rename(lines)
    (tmp_path / "predictions.csv").unlink()
    with pytest.raises(FileExistsError, match=r"predictions\.jsonl would be overwritten"):
        write(given=[])


@pytest.mark.parametrize("name", ["predictions.csv", "predictions.jsonl"])
def test_a_full_disk_leaves_whole_rows(tmp_path: Path, name: str) -> None:
    images = files(*(f"{'long ' * 10}{number}.png" for number in range(60)))
    full, written = tmp_path / name, 0
    if name == "predictions.csv":  # whose rows are the shorter ones
        written = 40
        with Writer(tmp_path, images, pictures=False) as writer:
            for image in images[:written]:
                writer.row(image, NOTHING)
        writer.regions.write_text("{}\n" * written)
    sentence = rf"^{full} cannot be written: File too large; make room"
    with (
        Writer(tmp_path, [], pictures=False, go_on=True) as writer,
        pytest.raises(DiskError, match=sentence),
        full_disk(3500),
    ):
        for image in images[written:]:
            writer.row(image, NOTHING)
    rows = list(csv.DictReader(writer.table.read_text().splitlines()))
    assert written < len(rows) < len(images)
    assert [row["path"] for row in rows] == [str(image.path) for image in images[: len(rows)]]
    lines = list(map(json.loads, writer.regions.read_text().splitlines()))
    assert len(lines) == len(rows)
    assert [line["path"] for line in lines[written:]] == [row["path"] for row in rows[written:]]
    with Writer(tmp_path, [], pictures=False, go_on=True) as writer:
        assert writer.judged == {str(Path(row["path"]).absolute()) for row in rows}


def test_a_picture_is_whole_or_not_there(tmp_path: Path) -> None:
    (image,) = files("a.png")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    values = np.random.default_rng(0).random((60, 90))
    with Writer(tmp_path, [image]) as writer:
        with pytest.raises(DiskError, match=r"heatmaps/a\.jpg cannot be written: File too large"), full_disk(500):
            writer.pictures(image, pixels, with_map(values))
        assert not [path for path in tmp_path.rglob("*g") if path.is_file() and path.parent != tmp_path]
        writer.pictures(image, pixels, with_map(values))
    assert sorted(path.name for path in tmp_path.rglob("*.*g")) == ["a.jpg", "a.png"]
