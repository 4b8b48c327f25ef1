# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from anomalib.data import InferenceBatch
from anomalib.post_processing import MEBinPostProcessor, PostProcessor
from sklearn.metrics import f1_score

from anomalib_uniad.metrics.functional import f1_threshold, rank
from anomalib_uniad.metrics.thresholds import decide_by_category, global_thresholds, with_sensitivity
from replay import make_batch, post_processor


def decided(made: PostProcessor, batch, scale=1.0):
    """Return raw predictions, and the batch as anomalib's post-processor leaves it."""
    raw = InferenceBatch(pred_score=batch.pred_score * scale, anomaly_map=batch.anomaly_map * scale)
    batch = batch.update(in_place=False, pred_score=raw.pred_score, anomaly_map=raw.anomaly_map)
    batch.update(pred_label=None, pred_mask=None)
    made.post_process_batch(batch)
    return raw, batch


@pytest.mark.parametrize("sensitivity", [0.5, 0.3, 0.8])
def test_global_threshold_is_the_one_by_which_anomalib_decides(sensitivity):
    made = post_processor(image_sensitivity=sensitivity, pixel_sensitivity=sensitivity)
    raw, batch = decided(made, make_batch(["a"] * 50, [0] * 50), scale=6.0)
    thresholds = global_thresholds(made)
    assert batch.pred_label.equal(raw.pred_score > thresholds["image"])
    assert batch.pred_mask.equal(raw.anomaly_map > thresholds["pixel"])
    assert 0 < batch.pred_label.sum() < 50


def test_global_threshold_without_normalisation():
    made = post_processor(enable_normalization=False)
    raw, batch = decided(made, make_batch(["a"] * 50, [0] * 50))
    assert batch.pred_label.equal(raw.pred_score > global_thresholds(made)["image"])


@pytest.mark.parametrize("made", [None, PostProcessor(enable_thresholding=False), "other"])
def test_no_global_threshold(made):
    assert all(math.isnan(value) for value in global_thresholds(made).values())


def test_pixels_of_other_post_processors_stay_theirs():
    made = MEBinPostProcessor()
    for name, value in (("_image_threshold", 2.0), ("image_min", 1.0), ("image_max", 5.0)):
        getattr(made, name).fill_(value)
    assert global_thresholds(made)["image"] == 2.0
    assert math.isnan(global_thresholds(made)["pixel"])
    batch = make_batch(["a"] * 4, [0] * 4, scale=6.0)
    raw = InferenceBatch(pred_score=batch.pred_score, anomaly_map=batch.anomaly_map)
    masks = batch.pred_mask.clone()
    decide_by_category(batch, raw, ["a"] * 4, {"a": {"image": 3.0, "pixel": 5.9}}, made)
    assert batch.pred_mask.equal(masks)
    assert batch.pred_label.equal(raw.pred_score > 3.0)


@pytest.mark.parametrize("sensitivity", [0.3, 0.8])
def test_sensitivity_moves_thresholds_with_sensitivity(sensitivity):
    made = post_processor(image_sensitivity=sensitivity, pixel_sensitivity=sensitivity)
    names = ["a"] * 50
    raw, batch = decided(made, make_batch(names, [0] * 50), scale=6.0)
    learned = {"a": {"image": 3.0, "pixel": 2.5}}
    decide_by_category(batch, raw, names, learned, made)
    moved = with_sensitivity(learned, made)["a"]
    assert batch.pred_label.equal(raw.pred_score > moved["image"])
    assert batch.pred_mask.equal(raw.anomaly_map > moved["pixel"])
    assert moved["image"] == pytest.approx(3.0 + (0.5 - sensitivity) * 4)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_decides_as_learned(kind):
    for seed in range(40):
        scores = torch.rand(40, generator=torch.Generator().manual_seed(seed)).to(kind)
        labels = torch.rand(40, generator=torch.Generator().manual_seed(1000 + seed)) < 0.5
        values = scores.float().numpy()
        threshold = f1_threshold(rank(values[labels.numpy()], values[~labels.numpy()].copy()))
        batch = make_batch(["a"] * 40, [0] * 40).update(pred_score=scores.clone())
        made = post_processor((0.5, 0.0, 1.0))
        decide_by_category(batch, InferenceBatch(pred_score=scores), ["a"] * 40, {"a": {"image": threshold}}, made)
        assert batch.pred_label.numpy().tolist() == (values > np.float32(threshold)).tolist()


def test_learned_threshold_is_that_of_the_highest_f1():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60).astype(bool)
    scores = (rng.random(60) + 0.5 * labels).astype(np.float32)
    ranking = rank(scores[labels], scores[~labels].copy())
    threshold = f1_threshold(ranking)
    assert f1_score(labels, scores > threshold) == pytest.approx(max(f1_score(labels, scores > s) for s in scores))


@pytest.mark.parametrize("normalise", [True, False])
def test_categories_are_decided_by_their_own(normalise):
    made = post_processor(enable_normalization=normalise)
    names = ["a", "b", "other"] * 10
    raw, batch = decided(made, make_batch(names, [0] * 30), scale=6.0)
    before = batch.update(in_place=False)
    decide_by_category(
        batch, raw, names, {"a": {"image": 1.0, "pixel": 2.0}, "b": {"image": 4.0, "pixel": float("nan")}}, made
    )
    is_a, is_b, is_other = (torch.tensor([name == kind for name in names]) for kind in ("a", "b", "other"))
    for kind, image in ((is_a, 1.0), (is_b, 4.0)):
        assert batch.pred_label[kind].equal(raw.pred_score[kind] > image)
        if normalise:
            expected = ((raw.pred_score[kind] - image) / 4 + 0.5).clamp(0, 1)
            torch.testing.assert_close(batch.pred_score[kind], expected)
    assert batch.pred_mask[is_a].equal(raw.anomaly_map[is_a] > 2.0)
    assert batch.pred_mask[is_b].equal(before.pred_mask[is_b]), "no threshold of pixels"
    for field in ("pred_score", "pred_label", "anomaly_map", "pred_mask"):
        assert getattr(batch, field)[is_other].equal(getattr(before, field)[is_other]), "no thresholds at all"
    assert not batch.pred_label.equal(before.pred_label)


def test_predictions_that_are_not_there():
    made = post_processor()
    raw, batch = decided(made, make_batch(["a"] * 4, [0] * 4), scale=6.0)
    batch.update(anomaly_map=None, pred_mask=None)
    decide_by_category(
        batch, InferenceBatch(pred_score=raw.pred_score), ["a"] * 4, {"a": {"image": 1.0, "pixel": 2.0}}, made
    )
    assert batch.anomaly_map is None
    assert batch.pred_label.equal(raw.pred_score > 1.0)
