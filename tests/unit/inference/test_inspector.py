# SPDX-License-Identifier: Apache-2.0
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from anomalib_uniad.inference import Inspector
from anomalib_uniad.inference.regions import find_regions
from tiny_openvino import HIGH, LOW, NORMALISED, SIZE, THRESHOLD, save_tiny


def frame(brightness: int = 60, bright: int = 250) -> np.ndarray:
    """A dark image with two bright spots, of which the left one is larger."""
    image = np.full((8 * SIZE, 16 * SIZE, 3), brightness, np.uint8)
    image[16:40, 16:64] = bright
    image[48:56, 112:128] = bright - 20
    return image


def test_what_the_tiny_model_computes(tmp_path: Path) -> None:
    inspector = Inspector(save_tiny(tmp_path / "model.xml"))
    found = inspector.inspect(frame())
    assert (found.decision, found.product, found.threshold) == ("anomalous", "", THRESHOLD)
    assert found.raw_score == pytest.approx(250 / 255, abs=1e-5)
    assert found.score == 1.0
    assert found.anomaly_map.shape == found.mask.shape == (64, 128)
    first, second = found.regions
    assert first.peak >= second.peak
    assert abs(first.left - 16) + abs(first.top - 16) < 16
    assert first.area > second.area
    assert found.mask.sum() == first.area + second.area
    assert inspector.inspect(frame(bright=60)).decision == "normal"
    assert inspector.inspect(frame(bright=60)).regions == []


def test_regions_are_those_of_opencv() -> None:
    values = np.random.default_rng(0).random((40, 50))
    mask, regions = find_regions(values, 0.8, minimum_area=3)
    count, labels = cv2.connectedComponents((values > 0.8).astype(np.uint8), connectivity=8)
    parts = [labels == number for number in range(1, count) if (labels == number).sum() >= 3]
    assert (mask == np.any(parts, axis=0)).all()
    assert sorted(region.area for region in regions) == sorted(part.sum() for part in parts)
    assert [region.peak for region in regions] == sorted((values[part].max() for part in parts), reverse=True)
    assert {region.mean for region in regions} == {values[part].mean() for part in parts}
    assert sum(region.share for region in regions) == pytest.approx(100 * mask.mean())


def test_small_regions_are_left_out(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "model.xml")
    areas = [region.area for region in Inspector(path).inspect(frame()).regions]
    found = Inspector(path, minimum_area=max(areas)).inspect(frame())
    assert [region.area for region in found.regions] == [max(areas)]
    assert found.mask.sum() == max(areas)
    assert found.decision == "anomalous"  # which is of the score


def test_a_product_that_is_given(tmp_path: Path) -> None:
    inspector = Inspector(save_tiny(tmp_path / "model.xml"))
    grey = np.full((9, 9), 120, np.uint8)  # 0.47
    assert inspector.products == ("bottle", "cable")
    found = inspector.inspect_batch([grey, grey, grey], ["bottle", "cable", ""])
    assert [(one.decision, one.product, one.threshold) for one in found] == [
        ("anomalous", "bottle", 0.45),
        ("normal", "cable", 0.8),
        ("normal", "", THRESHOLD),
    ]


def test_many_threads_and_sizes(tmp_path: Path) -> None:
    inspector = Inspector(save_tiny(tmp_path / "model.xml"))
    images = [np.full((5 + number % 7, 6 + number % 5, 3), number, np.uint8) for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        scores = [one.raw_score for one in pool.map(inspector.inspect, images)]
    np.testing.assert_allclose(scores, np.arange(200) / 255, atol=1e-5)
    batch = inspector.inspect_batch(images)
    np.testing.assert_allclose([one.raw_score for one in batch], scores, atol=1e-6)


def test_images_of_more_than_8_bits(tmp_path: Path) -> None:
    inspector = Inspector(save_tiny(tmp_path / "model.xml", replace(NORMALISED, value_range=(0.0, 4095.0))))
    assert inspector.value_range == (0.0, 4095.0)
    for image in (np.full((9, 9), 2048, np.uint16), np.full((9, 9), 2048 * 255 / 4095, np.float32)):
        assert inspector.inspect(image).raw_score == pytest.approx(2048 / 4095, abs=1e-4)


@pytest.mark.parametrize(
    ("image", "product", "message"),
    [
        (
            np.zeros((9, 9, 4), np.uint8),
            "",
            r"Image 0 must be \(height, width, 3\) or \(height, width\), got \(9, 9, 4\)",
        ),
        (np.zeros((0, 9), np.uint8), "", r"got \(0, 9, 1\)"),
        (np.zeros((9, 9)), "", "Image 0 must have pixels of uint8, got float64"),
        (np.zeros((9, 9), np.uint16), "", "must have pixels of uint8, got uint16"),
        (np.zeros((9, 9), np.float32), "", "must have pixels of uint8, got float32"),
        (np.zeros((9, 9), np.uint8), "nut", "The model has no threshold of nut, only of: bottle, cable"),
    ],
)
def test_what_cannot_be_judged(tmp_path: Path, image: np.ndarray, product: str, message: str) -> None:
    inspector = Inspector(save_tiny(tmp_path / "model.xml"))
    with pytest.raises(ValueError, match=message):
        inspector.inspect(image, product)


def test_without_thresholds_nothing_is_decided(tmp_path: Path) -> None:
    found = Inspector(save_tiny(tmp_path / "model.xml", None, normalise=False)).inspect(frame())
    assert (found.decision, found.score, found.mask, found.regions) == ("undecided", None, None, [])
    assert found.anomaly_map is not None


def test_arguments(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "model.xml")
    with pytest.raises(ValueError, match="minimum_area must be at least 0 pixels, got -1"):
        Inspector(path, minimum_area=-1)
    with pytest.raises(ValueError, match="There are 1 images, but 2 products"):
        Inspector(path).inspect_batch([frame()], ["bottle", "cable"])


def test_the_scale_of_the_map(tmp_path: Path) -> None:
    found = Inspector(save_tiny(tmp_path / "model.xml")).inspect(np.full((9, 9), 130, np.uint8))
    np.testing.assert_allclose(found.anomaly_map, (130 / 255 - THRESHOLD) / (HIGH - LOW) + 0.5, atol=1e-4)
