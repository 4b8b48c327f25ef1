# SPDX-License-Identifier: Apache-2.0
"""Exact metrics against scikit-learn, anomalib, the definition of AUPRO and the authors' numbers."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.metrics.aupro import _AUPRO
from anomalib.metrics.f1_score import _F1Max
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics
from torchmetrics.classification import BinaryAUROC, BinarySensitivityAtSpecificity

import brute_force
from anomalib_uniad.metrics.functional import (
    Ranking,
    aupro,
    auroc,
    average_precision,
    f1_max,
    f1_threshold,
    precision_recall_curve,
    rank,
    roc_curve,
    tpr_at_fpr,
)

GOLDEN_DIR = Path(os.environ.get("UNIAD_GOLDEN_DIR") or Path(__file__).parents[2] / "golden")
SETTINGS = settings(derandomize=True, database=None, deadline=None)
EPS = 1e-6  # to scikit-learn
LARGEST = float(np.finfo(np.float32).max)
TINIEST = float(np.nextafter(np.float32(0), np.float32(1)))
NEXT_TO_ONE = float(np.nextafter(np.float32(1), np.float32(2)))
INF = float("inf")

COMMON = st.sampled_from([-2.0, -1.0, 0.0, -0.0, 1.0, 2.0, NEXT_TO_ONE, TINIEST, LARGEST, -LARGEST, INF, -INF])
SCORES = st.one_of(COMMON, st.floats(width=32, allow_nan=False))
DTYPES = st.sampled_from([np.float32, np.float64])


@st.composite
def samples(draw, scores=SCORES, positives=1, negatives=1):
    """Scores (N,) and targets (N,), with at least so many positives and negatives."""
    dtype = draw(DTYPES)
    high = draw(st.lists(scores, min_size=positives, max_size=12))
    low = draw(st.lists(scores, min_size=negatives, max_size=12))
    return np.array(high + low, dtype=dtype), np.array([True] * len(high) + [False] * len(low), dtype=bool)


def ranking_of(scores: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None) -> Ranking:
    return rank(scores[targets], scores[~targets], weights)


def places(scores: np.ndarray) -> np.ndarray:
    """Place of each score in their order: scikit-learn takes no infinite scores, and only the order matters."""
    return np.unique(scores, return_inverse=True)[1].reshape(scores.shape)


def f1_of(called: np.ndarray, targets: np.ndarray) -> float:
    return 2 * (called & targets).sum() / (called.sum() + targets.sum())


def assert_like_sklearn(scores: np.ndarray, targets: np.ndarray) -> None:
    ranking, order = ranking_of(scores, targets), places(scores)
    assert auroc(ranking) == pytest.approx(sklearn_metrics.roc_auc_score(targets, order), abs=EPS)
    assert average_precision(ranking) == pytest.approx(sklearn_metrics.average_precision_score(targets, order), abs=EPS)
    precision, recall, _ = sklearn_metrics.precision_recall_curve(targets, order)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    assert f1_max(ranking) == pytest.approx(f1.max(), abs=EPS)
    false, true, _ = sklearn_metrics.roc_curve(targets, order, drop_intermediate=False)
    for limit in (0.0, 0.02, 0.05, 0.5, 1.0):
        assert tpr_at_fpr(ranking, limit) == true[false <= limit].max()


def generated(kind: str, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    targets = rng.random(4000) < 0.1
    scores = rng.normal(size=4000) + targets
    scores = {
        "continuous": scores,
        "ties": scores.round(1),
        "two scores": (scores > 1).astype(float),
        "one score": np.zeros(4000),
        "infinite": np.where(scores > 2, INF, np.where(scores < -1.5, -INF, scores)),
        "very large": scores * 5e37,
        "far from zero": 1e6 + scores,
        "tiny": scores * 1e-40,
        "worse than chance": -scores,
        "both zeros": np.where(scores > 1, 0.0, -0.0),
    }[kind]
    return scores.astype(dtype), targets


KINDS = ["continuous", "ties", "two scores", "one score", "infinite", "very large", "far from zero", "tiny"]
KINDS += ["worse than chance", "both zeros"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_sklearn(kind, dtype):
    scores, targets = generated(kind, dtype)
    assert_like_sklearn(scores, targets)
    if kind == "worse than chance":
        assert auroc(ranking_of(scores, targets)) < 0.3
    if kind in ("one score", "both zeros"):
        assert auroc(ranking_of(scores, targets)) == 0.5


@SETTINGS
@given(samples())
def test_values_are_those_of_sklearn_for_any_scores(sample):
    assert_like_sklearn(*sample)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_curves_are_those_of_sklearn(kind, dtype):
    scores, targets = generated(kind, dtype)
    ranking, order = ranking_of(scores, targets), places(scores)
    false, true = roc_curve(ranking)
    expected_false, expected_true, _ = sklearn_metrics.roc_curve(targets, order, drop_intermediate=False)
    assert (np.diff(false) >= 0).all()
    assert (np.diff(true) >= 0).all()
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert len(false) == 2 * len(ranking.thresholds) + 2
    # Between two positives the curve is a straight line, whose inner points are left out here.
    ours = {(round(x, 9), round(y, 9)) for x, y in zip(false, true, strict=True)}
    theirs = {(round(x, 9), round(y, 9)) for x, y in zip(expected_false, expected_true, strict=True)}
    assert ours <= theirs
    assert sklearn_metrics.auc(false, true) == pytest.approx(auroc(ranking), abs=1e-12)

    precision, recall = precision_recall_curve(ranking)
    expected_precision, expected_recall, thresholds = sklearn_metrics.precision_recall_curve(targets, order)
    at_positives = np.isin(thresholds, order[targets])
    np.testing.assert_allclose(precision, expected_precision[:-1][at_positives][::-1], atol=EPS)
    np.testing.assert_allclose(recall, expected_recall[:-1][at_positives][::-1], atol=EPS)


@SETTINGS
@given(samples())
def test_counts(sample):
    scores, targets = sample
    ranking = ranking_of(scores, targets)
    thresholds = np.unique(scores[targets])[::-1]
    np.testing.assert_array_equal(ranking.thresholds, thresholds)
    assert ranking.thresholds.dtype == ranking.below.dtype == scores.dtype
    for number, threshold in enumerate(thresholds):
        assert ranking.true_positives[number] == (scores[targets] >= threshold).sum()
        assert ranking.false_positives[number] == (scores[~targets] >= threshold).sum()
        assert ranking.above[number] == (scores[~targets] > threshold).sum()
        assert ranking.below[number] == scores[scores < threshold].max(initial=-INF) or (
            threshold == scores.min() == ranking.below[number]
        )
    np.testing.assert_array_equal(ranking.overlap, ranking.true_positives)
    assert (ranking.positives, ranking.negatives) == (targets.sum(), (~targets).sum())
    assert (ranking.highest, ranking.lowest) == (scores.max(), scores.min())


def test_only_negatives_are_sorted_in_place():
    positives, negatives = np.array([0.2, 0.9, 0.4]), np.array([0.5, 0.1])
    rank(positives, negatives)
    assert positives.tolist() == [0.2, 0.9, 0.4]
    assert negatives.tolist() == [0.1, 0.5]


@SETTINGS
@given(samples())
def test_swapped_targets_mirror_auroc(sample):
    scores, targets = sample
    assert auroc(ranking_of(scores, ~targets)) == pytest.approx(1 - auroc(ranking_of(scores, targets)), abs=1e-12)


@SETTINGS
@given(samples(), st.randoms(use_true_random=False))
def test_only_the_order_matters(sample, random):
    scores, targets = sample
    shuffled = random.sample(range(len(scores)), len(scores))
    weights = np.linspace(0.1, 1, targets.sum())
    everywhere = np.zeros(len(scores))
    everywhere[targets] = weights
    other_targets = targets[shuffled]
    ranking = ranking_of(scores, targets, weights)
    other = ranking_of(places(scores)[shuffled] - 3.0, other_targets, everywhere[shuffled][other_targets])
    for metric in (auroc, average_precision, f1_max, aupro):
        assert metric(other) == pytest.approx(metric(ranking), abs=1e-12)
        assert -1e-12 <= metric(ranking) <= 1 + 1e-12


@SETTINGS
@given(samples(), st.integers(2, 4))
def test_repeated_samples_change_nothing(sample, times):
    scores, targets = sample
    weights = np.linspace(0.1, 1, targets.sum())
    ranking = ranking_of(scores, targets, weights)
    other = ranking_of(np.repeat(scores, times), np.repeat(targets, times), np.repeat(weights / times, times))
    for metric in (auroc, average_precision, f1_max, f1_threshold, aupro):
        assert metric(other) == pytest.approx(metric(ranking), abs=1e-12)


# True positive rate at a false positive rate

PERCENT = st.sampled_from([0, 2, 5, 7, 29, 50, 100])


@SETTINGS
@given(samples(), PERCENT)
def test_tpr_at_fpr_is_that_of_the_best_threshold(sample, percent):
    """Of all decisions that thresholds can make, in whole numbers, with ties on either side of the limit."""
    scores, targets = sample
    decisions = [scores >= score for score in scores] + [np.zeros_like(targets)]
    allowed = [called for called in decisions if 100 * (called & ~targets).sum() <= percent * (~targets).sum()]
    expected = max((called & targets).sum() for called in allowed) / targets.sum()
    assert tpr_at_fpr(ranking_of(scores, targets), percent / 100) == expected


@pytest.mark.parametrize("percent", [2, 5, 7, 29])
def test_tpr_at_fpr_counts_negatives_exactly(percent):
    """The limit itself is allowed, for any number of negatives; with fewer than one over it, none is."""
    for negatives in range(1, 301):
        low = np.arange(negatives, dtype=np.float64)
        ranking = rank(low + 0.5, low)  # a positive above each negative, so one more is found than false alarms allowed
        assert tpr_at_fpr(ranking, percent / 100) == (negatives * percent // 100 + 1) / negatives


@pytest.mark.parametrize("kind", ["continuous", "ties", "two scores", "one score"])
@pytest.mark.parametrize("limit", [0.02, 0.05])
def test_tpr_at_fpr_is_torchmetrics_sensitivity_at_specificity(kind, limit):
    scores, targets = generated(kind, np.float32)
    scores = (scores - scores.min()) / max(np.ptp(scores), 1)
    metric = BinarySensitivityAtSpecificity(min_specificity=1 - limit)
    metric.update(torch.from_numpy(scores), torch.from_numpy(targets).int())
    assert tpr_at_fpr(ranking_of(scores, targets), limit) == pytest.approx(float(metric.compute()[0]), abs=1e-6)


# AUPRO


def layout(kind: str) -> np.ndarray:
    masks = np.zeros((3, 9, 11), dtype=bool)
    if kind == "one pixel":
        masks[1, 4, 5] = True
    elif kind == "touching":  # a large one, and a small one beside it that belongs to it; another one apart
        masks[0, 1:5, 1:4] = masks[0, 3, 4:8] = masks[0, 8, 10] = True
    elif kind == "diagonal":  # corners touch, in both directions; and a gap of one pixel
        masks[0, 1:3, 1:3] = masks[0, 3:5, 3:5] = masks[0, 5, 2] = masks[0, 0, 9:] = masks[0, 2, 9:] = True
    elif kind == "several images":  # at the same place, and around the edge of the image: still regions of their own
        masks[0, 7:, 2:5] = masks[1, :2, 2:5] = masks[2, 7:, 2:5] = masks[2, 0, 0] = masks[2, 8, 10] = True
    elif kind == "ring":
        masks[1, 2:7, 2:7] = True
        masks[1, 3:6, 3:6] = False
        masks[1, 4, 4] = True
    elif kind == "nearly all":
        masks[:] = True
        masks[0, 0, 0] = masks[2, 4, 4] = False
    else:
        masks[:2] = np.random.default_rng(5).random((2, 9, 11)) < 0.2
    return masks


LAYOUTS = ["one pixel", "touching", "diagonal", "several images", "ring", "nearly all", "noise"]


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["continuous", "ties", "two scores", "one score", "infinite", "very large"])
@pytest.mark.parametrize("masks", LAYOUTS)
def test_aupro_is_that_of_its_definition(masks, kind, limit):
    masks = layout(masks)
    maps = generated(kind, np.float32)[0][: masks.size].reshape(masks.shape)
    maps[masks] += np.float32(0.4) if kind not in ("two scores", "one score") else np.float32(0)
    value = aupro(ranking_of(maps, masks, brute_force.weights(masks)), limit)
    assert value == pytest.approx(brute_force.aupro(maps, masks, limit), abs=1e-9)


@settings(SETTINGS, max_examples=60)
@given(st.data(), st.sampled_from([0.1, 0.3, 0.77, 1.0]))
def test_aupro_is_that_of_its_definition_for_any_maps(data, limit):
    shape = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(2, 4)))
    size = int(np.prod(shape))
    bits = data.draw(st.lists(st.booleans(), min_size=size, max_size=size).filter(lambda b: any(b) and not all(b)))
    masks = np.array(bits).reshape(shape)
    maps = np.array(data.draw(st.lists(SCORES, min_size=size, max_size=size)), dtype=np.float32).reshape(shape)
    value = aupro(ranking_of(maps, masks, brute_force.weights(masks)), limit)
    assert value == pytest.approx(brute_force.aupro(maps, masks, limit), abs=1e-9)


def test_each_region_counts_the_same():
    masks = np.zeros((1, 10, 10), dtype=bool)
    masks[0, :5, :5] = masks[0, 9, 9] = True
    maps = np.where(masks, 0.0, 0.5)
    maps[0, 9, 9] = 1.0  # the only one that is found
    weights = brute_force.weights(masks)
    assert aupro(ranking_of(maps, masks, weights)) == pytest.approx(0.5)
    assert aupro(ranking_of(maps, masks, np.ones_like(weights))) == pytest.approx(1 / 26)  # pixels instead of regions


@pytest.mark.parametrize("kind", ["continuous", "ties", "two scores", "one score"])
# Not "nearly all": anomalib takes an image without any normal pixel for one without any defective pixel.
@pytest.mark.parametrize("masks", [name for name in LAYOUTS if name != "nearly all"])
def test_values_are_those_of_anomalib(masks, kind):
    masks = layout(masks)
    maps = generated(kind, np.float32)[0][: masks.size].reshape(masks.shape)
    # Within 0 and 1: torchmetrics would put other scores through a sigmoid.
    maps = ((maps - maps.min()) / max(np.ptp(maps), 1)).astype(np.float32)
    ranking = ranking_of(maps, masks, brute_force.weights(masks))
    ours = (auroc(ranking), f1_max(ranking), aupro(ranking))
    scores, targets = torch.from_numpy(maps), torch.from_numpy(masks)
    for value, metric in zip(ours, (BinaryAUROC(), _F1Max(), _AUPRO()), strict=True):
        flat = not isinstance(metric, _AUPRO)
        metric.update(*(item.flatten() if flat else item for item in (scores, targets.int())))
        assert value == pytest.approx(float(metric.compute()), abs=1e-5), metric


# Threshold


@SETTINGS
@given(samples(SCORES.filter(lambda score: score != -INF)))
def test_threshold_reaches_f1_max(sample):
    scores, targets = sample
    ranking = ranking_of(scores, targets)
    threshold = f1_threshold(ranking)
    assert f1_of(scores > threshold, targets) == f1_max(ranking)
    assert f1_of((torch.from_numpy(scores) > threshold).numpy(), targets) == f1_max(ranking)
    assert threshold == scores.dtype.type(threshold)  # nothing is lost where scores are of single precision
    # With any more samples called anomalous it is worse.
    lower = np.unique(scores[scores <= threshold])
    assert all(f1_of(scores >= score, targets) < f1_max(ranking) for score in lower)


@SETTINGS
@given(samples(COMMON))
def test_threshold_with_infinite_scores(sample):
    scores, targets = sample
    ranking = ranking_of(scores, targets)
    called = scores > f1_threshold(ranking)
    if (scores[targets] == -INF).any() and f1_of(np.ones_like(targets), targets) == f1_max(ranking):
        assert called.tolist() == (scores > -INF).tolist()  # nothing is lower than the lowest
    else:
        assert f1_of(called, targets) == f1_max(ranking)


@pytest.mark.parametrize(
    ("positives", "negatives", "threshold"),
    [
        ([0.75], [0.25], 0.5),
        ([0.75, 0.5], [0.625, 0.25], 0.375),  # one false alarm is better than one miss
        ([0.75, 0.25], [0.5] * 4, 0.625),
        ([3.0, 1.0], [2.0], 1 - 2**-24),  # all are called: just below the lowest
        ([2.0, 1.0], [1.0, 1.0, 0.0], 0.5),  # as good as 1.5
        ([2.0, 1.0], [1.0, 1.0, 1.0, 0.0], 1.5),
        ([NEXT_TO_ONE], [1.0], 1.0),  # nothing is between them
        ([1.0], [float(np.nextafter(np.float32(1), np.float32(0)))], 1 - 2**-24),
        ([TINIEST], [0.0], 0.0),
        ([0.0], [-TINIEST], -TINIEST),
        ([LARGEST], [-LARGEST], 0.0),
        ([INF], [-INF], LARGEST),
        ([INF], [0.0], LARGEST),
        ([0.0], [-INF], -INF),
        ([-LARGEST], [-LARGEST], -INF),
        ([0.5], [0.5], 0.5 - 2**-25),
        ([-0.0], [0.0], -TINIEST),
        ([0.0, -0.0], [0.0, -0.0, -1.0], -0.5),
    ],
)
@pytest.mark.parametrize("shuffle", [False, True])
def test_threshold(positives, negatives, threshold, shuffle):
    order = -1 if shuffle else 1
    high, low = np.array(positives, dtype=np.float32)[::order], np.array(negatives, dtype=np.float32)[::order].copy()
    assert f1_threshold(rank(high, low)) == threshold


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_threshold_without_positives(dtype):
    scores = np.array([0.1, 0.7, 0.3], dtype=dtype)
    ranking = rank(scores[:0], scores.copy())
    assert not (scores > f1_threshold(ranking)).any()
    assert f1_threshold(ranking) == ranking.highest == scores[1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_threshold_without_negatives(dtype):
    lowest = float(np.finfo(dtype).min)
    for scores in ([0.1], [0.7, 0.1, 0.3], [0.0, 0.0], [lowest, 1.0], [INF]):
        array = np.array(scores, dtype=dtype)
        threshold = f1_threshold(rank(array, array[:0]))
        assert (array > threshold).all()
        assert threshold == -INF if array[0] == lowest else threshold == np.nextafter(array.min(), dtype(-np.inf))
        assert threshold == dtype(threshold)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_samples(dtype):
    ranking = rank(np.empty(0, dtype), np.empty(0, dtype), np.empty(0))
    assert np.isnan([f1_threshold(ranking), ranking.highest, ranking.lowest]).all()
    assert (ranking.positives, ranking.negatives) == (0, 0)
    assert ranking.thresholds.shape == ranking.below.shape == ranking.overlap.shape == (0,)


def test_one_sample_of_each():
    for high, low, expected in ((1.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 1.0, 0.5)):
        ranking = rank(np.array([high]), np.array([low]))
        assert auroc(ranking) == expected
        assert aupro(ranking, fpr_limit=1.0) == expected
        assert average_precision(ranking) == (1.0 if high > low else 0.5)
        assert f1_max(ranking) == (1.0 if high > low else pytest.approx(2 / 3))


# The authors' numbers


@pytest.mark.parametrize("path", sorted(GOLDEN_DIR.glob("metrics*.npz")) or [GOLDEN_DIR / "metrics.npz"], ids=str)
def test_golden(path):
    with np.load(path, allow_pickle=False) as file:
        golden = dict(file)
    expected = json.loads(str(golden["expected"]))
    maps, masks, categories = golden["preds"], golden["masks"].astype(bool), golden["clsnames"]
    pooled = torch.nn.functional.avg_pool2d(torch.from_numpy(maps)[:, None], 16, 1).numpy()
    scores = {
        "mean": maps.mean(axis=(1, 2)),
        "std": maps.std(axis=(1, 2)),
        "max": pooled.max(axis=(1, 2, 3)),
        "pixel": maps,
    }
    found = {}
    for kind, values in scores.items():
        targets = masks if kind == "pixel" else masks.any(axis=(1, 2))
        for category in np.unique(categories):
            chosen = categories == category
            found[f"{category}_{kind}_auc"] = auroc(ranking_of(values[chosen], targets[chosen]))
            assert_like_sklearn(values[chosen].ravel(), targets[chosen].ravel())
        found[f"mean_{kind}_auc"] = np.mean([found[f"{category}_{kind}_auc"] for category in np.unique(categories)])
    assert found == pytest.approx(expected, abs=1e-6)
