# SPDX-License-Identifier: Apache-2.0
import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalib_uniad.cli import main
from anomalib_uniad.geometry import Geometry
from anomalib_uniad.inference import Inspector, ModelMetadata
from anomalib_uniad.inference.decision import Decider
from anomalib_uniad.inference.heatmap import draw_inspection
from anomalib_uniad.inference.images import ImageFile
from anomalib_uniad.inference.predictor import Output
from anomalib_uniad.inference.regions_of_interest import RegionOfInterest, RegionsOfInterest, on_map
from tiny_openvino import NORMALISED, SIZE, save_tiny

METADATA = replace(NORMALISED, image_score={"reduction": "max", "pool_size": 1, "top_fraction": 0.02})
RECOGNISING = ModelMetadata(
    model="UniAD",
    products=("bolt", "nut"),
    category_thresholds={"bolt": {"image": 4.0}, "nut": {"image": 9.0}},
    typical_scores={"bolt": 3.0, "nut": 8.0},
)


def write(folder: Path, text: str) -> Path:
    (folder / "regions.yaml").write_text(text)
    return folder / "regions.yaml"


def frame(value: int = 100, spot: int = 160) -> np.ndarray:
    """Grey, with a bright spot in the upper left quarter; as large as the map, so that its values are the map's."""
    image = np.full((SIZE, SIZE, 3), value, np.uint8)
    image[1:3, 1:3] = spot
    return image


def test_only_what_lies_inside_counts(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model.xml", METADATA)
    plain = Inspector(model).inspect(frame())
    assert (plain.decision, plain.region_of_interest) == ("anomalous", None)
    right = write(tmp_path, "everywhere: {boxes: [[0.5, 0, 1, 1]]}")
    found = Inspector(model, regions_of_interest=right).inspect(frame())
    assert found.decision == "normal"
    assert found.raw_score == pytest.approx(100 / 255, abs=1e-4)
    assert found.score == 0.0  # cut, as the file does
    assert (found.regions, found.mask.any()) == ([], False)
    np.testing.assert_array_equal(np.isnan(found.anomaly_map), ~found.region_of_interest)
    assert found.region_of_interest[:, 4:].all()
    assert not found.region_of_interest[:, :4].any()
    left = write(tmp_path, "everywhere: {boxes: [[0, 0, 0.5, 1]]}")
    found = Inspector(model, regions_of_interest=left).inspect(frame(spot=130))
    assert (found.decision, found.regions[0].area) == ("anomalous", 4)
    assert found.score == pytest.approx((130 / 255 - 0.5) / 0.2 + 0.5, abs=1e-4)


def test_the_whole_image_is_as_without_a_region(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model.xml", METADATA)
    whole = Inspector(model, regions_of_interest=write(tmp_path, "everywhere: {boxes: [[0, 0, 1, 1]]}"))
    for image in (frame(), frame(90, 120), np.random.default_rng(0).integers(0, 255, (40, 70, 3), np.uint8)):
        one, other = Inspector(model).inspect(image), whole.inspect(image)
        assert (one.decision, one.regions) == (other.decision, other.regions)
        assert (one.raw_score, one.score) == pytest.approx((other.raw_score, other.score), abs=1e-4)
        np.testing.assert_array_equal(one.anomaly_map, other.anomaly_map)


def test_the_score_is_brought_to_the_scale_of_the_product() -> None:
    decider = Decider(RECOGNISING, decides=True, has_raw_score=False)
    output = Output(ImageFile(Path("a.png"), Path("a.png")), score=0.9, raw_score=20.0, product=0, label=True)
    for raw, score, anomalous in ((3.0, 0.25, False), (4.0, 0.5, False), (5.0, 0.75, True)):
        found = decider.decide(decider.rescored(output, raw))
        assert (found.raw_score, found.normalised_score, found.anomalous) == (raw, pytest.approx(score), anomalous)
    unknown = decider.decide(decider.rescored(replace(output, unknown=True), 3.0))
    assert unknown.unknown


def test_each_product_has_its_own(tmp_path: Path) -> None:
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 8:] = 255
    Image.fromarray(mask).save(tmp_path / "right.png")
    file = write(tmp_path, "everywhere: {boxes: [[0, 0.5, 1, 1]]}\nproducts: {bottle: {mask: right.png}}")
    inspector = Inspector(save_tiny(tmp_path / "model.xml", METADATA), regions_of_interest=file)
    bottle, other = inspector.inspect_batch([frame(), frame()], ["bottle", "cable"])
    np.testing.assert_array_equal(bottle.region_of_interest, mask[::2, ::2] > 0)
    assert not other.region_of_interest[:4].any()
    assert other.region_of_interest[4:].all()
    file.write_text("products: {bottle: {mask: right.png}}")
    inspector = Inspector(tmp_path / "model.xml", regions_of_interest=file)
    assert inspector.inspect(frame(), "cable").region_of_interest is None
    with pytest.raises(ValueError, match="Image 0 cannot be judged: it is not known which product it shows"):
        inspector.inspect(frame())


@pytest.mark.parametrize("size", [(30, 60), (61, 122), (300, 600)])
def test_masks_are_scaled(size: tuple[int, int]) -> None:
    mask = np.zeros((100, 200), bool)
    mask[20:60, 100:] = True
    inside = RegionOfInterest("mask.png", mask).of(size)
    assert inside.shape == size
    assert inside.mean() == pytest.approx(mask.mean(), abs=0.02)
    with pytest.raises(ValueError, match=r"30 x 90 pixels .* other proportions than those of mask.png, 100 x 200"):
        RegionOfInterest("mask.png", mask).of((30, 90))


def test_where_a_region_lies_on_the_map() -> None:
    inside = np.zeros((40, 80), bool)
    inside[10:20, 40:80] = True
    part = on_map(inside, (8, 8))
    np.testing.assert_array_equal(np.argwhere(part).min(axis=0), [2, 4])
    assert part.sum() == 2 * 4
    padded = on_map(inside, (8, 8), Geometry((8, 8), "pad"))  # the image is in rows 2 to 5
    assert np.argwhere(padded).tolist() == [[3, column] for column in range(4, 8)]
    inside[:] = False
    inside[3, 3] = True
    assert np.argwhere(on_map(inside, (8, 8))).tolist() == [[0, 0]]
    with pytest.raises(ValueError, match="outside of the part of the image that the model looks at"):
        on_map(inside, (8, 8), Geometry((8, 8), crop=(20, 20, 10, 10)))


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "model.xml", METADATA)
    Path("images").mkdir()
    Image.fromarray(frame()).save("images/a.png")
    Image.fromarray(frame()[:, :5]).save("images/b.png")
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 8:] = 255
    Image.fromarray(mask).save("mask.png")
    write(tmp_path, "everywhere: {mask: mask.png}")
    with pytest.raises(SystemExit, match="1"):
        main(["predict", "model.xml", "images", "--regions_of_interest", "regions.yaml"])
    good, wrong = csv.DictReader(Path("predictions/predictions.csv").read_text().splitlines())
    assert (good["decision"], good["regions"], good["error"]) == ("normal", "0", "")
    assert "b.png cannot be judged: the image has 8 x 5 pixels (height x width)" in wrong["error"]
    found = Inspector(Path("model.xml"), regions_of_interest=Path("regions.yaml")).inspect(frame())
    picture = draw_inspection(frame(), found)
    drawn = np.asarray(picture)[:SIZE, :SIZE]
    assert (drawn[:, 4] == 0).all()  # the border of the region
    assert (drawn[:, :4] > 0).all()
    picture.save("drawn.jpg", quality=90, subsampling=0)
    assert Path("predictions/heatmaps/a.jpg").read_bytes() == Path("drawn.jpg").read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must have the keys everywhere or products, got None"),
        ("bolt: {mask: a.png}", "must have the keys everywhere or products"),
        ("products: [bolt]", "products must name products"),
        ("products: {bolt: 3}", "bolt must have mask or boxes, got 3"),
        ("products: {bolt: {mask: a.png, boxes: []}}", "bolt must have mask or boxes"),
        ("products: {bolt: {mask: gone.png}}", r"there is no mask .*gone.png of bolt"),
        ("products: {bolt: {mask: black.png}}", r"the mask .*black.png of bolt is empty"),
        ("products: {bolt: {mask: regions.yaml}}", r"regions.yaml of bolt is no image"),
        ("products: {bolt: {boxes: []}}", r"boxes of bolt must be a list of .*, got \[\]"),
        ("everywhere: {boxes: [[0, 0, 1.2, 1]]}", r"a box of everywhere must be .*, got \[0, 0, 1.2, 1\]"),
        ("everywhere: {boxes: [[0.5, 0, 0.5, 1]]}", "not empty, got"),
        ("everywhere: {boxes: [[0, 0, 1]]}", r"must be \[left, top, right, bottom\]"),
        ("products: {pin: {boxes: [[0, 0, 1, 1]]}}", "has regions of pin, but the model knows bolt, nut"),
        ("a: b: c", "is no YAML"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, message: str) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "black.png")
    file = write(tmp_path, text)
    metadata = replace(RECOGNISING, image_score=METADATA.image_score)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        RegionsOfInterest.read(file).check(metadata, True, file)


@pytest.mark.parametrize(
    ("metadata", "arguments"),
    [(NORMALISED, {}), (None, {}), (None, {"raw_branch": False})],
)
def test_files_that_cannot_do_it(tmp_path: Path, metadata: ModelMetadata | None, arguments: dict[str, bool]) -> None:
    model = save_tiny(tmp_path / "model.xml", metadata, **arguments)
    file = write(tmp_path, "everywhere: {boxes: [[0, 0, 0.5, 1]]}")
    with pytest.raises(ValueError, match=r"regions.yaml cannot be used: .*export it again"):
        Inspector(model, regions_of_interest=file)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no file .*gone.yaml with regions of interest"):
        RegionsOfInterest.read(tmp_path / "gone.yaml")
