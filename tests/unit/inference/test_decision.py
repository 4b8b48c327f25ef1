# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from pathlib import Path, PurePath

import numpy as np
import pytest
import torch
from anomalib.post_processing import PostProcessor

from anomalib_uniad.inference import ModelMetadata
from anomalib_uniad.inference.decision import Decider, Decision
from anomalib_uniad.inference.images import ImageFile
from anomalib_uniad.inference.predictor import Output
from tiny_openvino import NORMALISED

FITTED = ModelMetadata(
    model="UniAD",
    thresholds={"image": 12.0, "pixel": 6.0},
    category_thresholds={"bottle": {"image": 10.0}, "cable": {"image": 30.0}, "screw": {"pixel": 1.0}},
    normalization={"image_min": 5.0, "image_max": 25.0, "pixel_min": 2.0, "pixel_max": 10.0},
)
RAW = replace(FITTED, normalization={})


def output(score: float, path: str = "a.png", **values) -> Output:
    return Output(ImageFile(Path(path), PurePath(path)), score=score, **values)


def of_anomalib(raw: float, sensitivity: float = 0.5) -> Output:
    """What a model with anomalib's post-processor puts out."""
    post = PostProcessor(image_sensitivity=sensitivity)
    post._image_threshold.fill_(12.0)
    post.image_min.fill_(5.0)
    post.image_max.fill_(25.0)
    score = post._normalize(torch.tensor(raw), post.image_min, post.image_max, post.image_threshold)
    return output(score.item(), label=bool(score > post.normalized_image_threshold))


@pytest.mark.parametrize("raw", [3.0, 11.9, 12.1, 21.0, 40.0])
def test_without_a_category_as_anomalib(raw: float) -> None:
    predicted = of_anomalib(raw)
    predicted.raw_score = raw
    decision = Decider(FITTED, True, True).decide(predicted)
    assert decision == Decision("", raw, predicted.score, 12.0, raw > 12)
    # Without the raw score beside it, it is known where it is not cut.
    decision = Decider(FITTED, True, False).decide(of_anomalib(raw))
    assert decision.anomalous == (raw > 12)
    assert decision.raw_score == (pytest.approx(raw, abs=1e-4) if raw < 22 else None)


def test_all_scores_of_the_validation_were_equal() -> None:
    metadata = replace(FITTED, normalization={**FITTED.normalization, "image_min": 12.0, "image_max": 12.0})
    for raw, score in ((12.1, 1.0), (11.9, 0.0)):
        decision = Decider(metadata, True, True).decide(output(score, raw_score=raw, label=raw > 12))
        assert decision == Decision("", raw, score, 12.0, raw > 12)


def test_sensitivity_moves_the_threshold_of_a_category() -> None:
    metadata = replace(FITTED, normalization={**FITTED.normalization, "image_sensitivity": 0.6})
    category, learned = next((name, of["image"]) for name, of in FITTED.category_thresholds.items() if "image" in of)
    width = FITTED.normalization["image_max"] - FITTED.normalization["image_min"]
    moved = learned - 0.1 * width
    decider = Decider(metadata, decides=True, has_raw_score=True, category=category)
    for raw, anomalous in ((moved + 0.01, True), (moved - 0.01, False)):
        decision = decider.decide(of_anomalib(raw, 0.6))
        assert decision.threshold == pytest.approx(moved)
        assert decision.anomalous is anomalous


def test_sensitivity() -> None:
    metadata = replace(FITTED, normalization={**FITTED.normalization, "image_sensitivity": 0.6})
    for raw in (9.0, 11.0, 13.0):
        predicted = of_anomalib(raw, 0.6)
        decision = Decider(metadata, True, False).decide(predicted)
        assert decision.threshold == pytest.approx(10)
        assert decision.anomalous == predicted.label == (raw > decision.threshold)
        predicted.label = None
        assert Decider(metadata, False, False).decide(predicted).anomalous == decision.anomalous


@pytest.mark.parametrize(("raw", "bottle", "cable"), [(9.0, False, False), (11.0, True, False), (31.0, True, True)])
def test_category(raw: float, bottle: bool, cable: bool) -> None:
    predicted = of_anomalib(raw)
    predicted.raw_score = raw
    for category, anomalous in (("bottle", bottle), ("cable", cable)):
        decision = Decider(FITTED, True, True, category).decide(predicted)
        assert decision.category == category
        assert decision.threshold == FITTED.category_thresholds[category]["image"]
        assert decision.anomalous == anomalous
        raw_output = output(raw)
        assert Decider(RAW, False, False, category).decide(raw_output).anomalous == anomalous
    assert Decider(FITTED, True, False, "bottle").decide(of_anomalib(raw)).anomalous == bottle


def test_category_from_the_folder() -> None:
    decider = Decider(RAW, False, False, "auto")
    assert decider.decide(output(11.0, "bottle/x/a.png")).anomalous
    assert not decider.decide(output(11.0, "cable/a.png")).anomalous
    assert decider.category_of(PurePath("/cable/bottle/nut/a.png")) == "bottle"
    for path in ("a.png", "nut/a.png", "nut/bottle"):
        message = rf"No folder in the path {path} has the name of a category of the model \(bottle, cable, screw\)"
        with pytest.raises(ValueError, match=message):
            decider.category_of(PurePath(path))
    with pytest.raises(ValueError, match="no threshold of the category 'screw': it has those of bottle, cable"):
        decider.category_of(PurePath("screw/a.png"))
    only_named = Decider(replace(RAW, categories=("bottle", "tile")), False, False, "auto")
    with pytest.raises(ValueError, match="no threshold of the category 'tile'"):
        only_named.category_of(PurePath("bottle/tile/a.png"))


def test_category_errors() -> None:
    with pytest.raises(ValueError, match="no threshold of the category 'screw': it has those of bottle, cable"):
        Decider(FITTED, True, True, "screw")
    with pytest.raises(ValueError, match="no threshold of the category 'bottle': it has none of any category"):
        Decider(ModelMetadata(), True, True, "bottle")
    with pytest.raises(ValueError, match=r"30 of the category 'cable' is outside of .* can tell apart, 2 to 22"):
        Decider(FITTED, True, False, "cable")
    with pytest.raises(ValueError, match="metadata lacks how scores are normalised"):
        Decider(ModelMetadata(category_thresholds={"bottle": {"image": 3.0}}), True, True, "bottle")


def test_without_metadata() -> None:
    decider = Decider(ModelMetadata(), decides=True, has_raw_score=True)
    assert decider.decide(output(0.7, label=True, raw_score=3.0)) == Decision("", None, 0.7, 0.5, True)
    # Never validated: anomalib leaves the scores as they are, and its own decision means nothing.
    assert decider.decide(output(7.0, label=True)) == Decision("", 7.0, None, None, None)
    raw = Decider(ModelMetadata(), decides=False, has_raw_score=False)
    assert raw.decide(output(0.7)) == Decision("", 0.7, None, None, None)


def test_raw_scores() -> None:
    assert Decider(RAW, False, False).decide(output(13.0)) == Decision("", 13.0, None, 12.0, True)
    unfitted = Decider(ModelMetadata(model="UniAD"), decides=True, has_raw_score=True)
    assert unfitted.decide(output(0.7, label=True, raw_score=0.7)) == Decision("", 0.7, None, None, None)


def test_metadata_of_another_model() -> None:
    with pytest.raises(ValueError, match="score of 13, which its metadata says is normalised"):
        Decider(FITTED, True, True).decide(output(13.0, label=True))
    with pytest.raises(ValueError, match=r"normalises a score of 13 to 0.9, which its metadata"):
        Decider(FITTED, True, True).decide(output(0.9, label=True, raw_score=13.0))


def test_failed_images_have_their_category_alone() -> None:
    failed = Output(ImageFile(Path("a.png"), PurePath("a.png")), error="truncated")
    assert Decider(NORMALISED, True, True, "cable").decide(failed) == Decision("cable")


def of_map(values: np.ndarray, raw: np.ndarray | None = None, category: str = "") -> Output:
    return output(0.5, f"{category}/a.png" if category else "a.png", anomaly_map=values, raw_map=raw)


def test_maps() -> None:
    values = np.array([[0.0, 6.0], [3.0, 30.0]])
    np.testing.assert_array_equal(Decider(FITTED, True, True).shown_map(of_map(values / 30, values)), values / 30)
    np.testing.assert_allclose(Decider(RAW, False, False).shown_map(of_map(values)), [[0, 0.5], [0.25, 1]])
    np.testing.assert_allclose(Decider(ModelMetadata(), False, False).shown_map(of_map(values)), values / 30)
    np.testing.assert_array_equal(Decider(ModelMetadata(), False, False).shown_map(of_map(values * 0)), values * 0)
    with pytest.raises(ValueError, match=r"no anomaly map of a\.png"):
        Decider(FITTED, True, True).shown_map(output(0.5))


def test_maps_of_a_category() -> None:
    """0.5 is where the raw map is at the category's threshold, also where the model's own normalisation cuts it off."""
    metadata = replace(FITTED, category_thresholds={"screw": {"image": 12.0, "pixel": 1.0}, "cable": {"image": 30.0}})
    raw = np.array([[0.5, 1.0], [3.0, 6.0]])
    post = PostProcessor()
    cut = post._normalize(*(torch.tensor(value) for value in (raw, 2.0, 10.0, 6.0))).numpy()
    assert cut[0, 1] == 0
    decider = Decider(metadata, True, True, "auto")
    expected = np.array([[-0.5, 0.0], [2.0, 5.0]]) / 8 + 0.5
    np.testing.assert_allclose(decider.shown_map(of_map(cut, raw, "screw")), np.clip(expected, 0, 1))
    np.testing.assert_array_equal(decider.shown_map(of_map(cut, raw, "cable")), cut)  # has none for pixels
    not_normalised = Decider(replace(metadata, normalization={}), False, False, "screw")
    np.testing.assert_allclose(not_normalised.shown_map(of_map(raw)), np.clip(raw / 2, 0, 1))
