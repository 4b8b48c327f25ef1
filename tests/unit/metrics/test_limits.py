# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from scipy import stats

from anomalib_uniad.metrics.limits import LEAST_GOOD, KnownScores, limits, rise_of


def log_normal(count: int, middle: float = 0.0, deviation: float = 0.2, seed: int = 0) -> np.ndarray:
    return np.exp(np.random.default_rng(seed).normal(middle, deviation, count))


@pytest.mark.parametrize("count", [5, 20, 100])
def test_a_further_good_image_exceeds_the_limit_as_often_as_wanted(count: int) -> None:
    generator = np.random.default_rng(count)
    exceeded = []
    for _ in range(4000):
        scores = np.exp(generator.normal(1.0, 0.3, count + 1))
        limit = limits({"nut": KnownScores(good=scores[1:])}, rate=0.05)["nut"]
        exceeded.append(scores[0] > limit.threshold)
    assert np.mean(exceeded) == pytest.approx(0.05, abs=3 * (0.05 * 0.95 / 4000) ** 0.5)


def test_the_limit_is_that_of_the_textbook() -> None:
    scores = log_normal(12)
    wanted = stats.t.interval(0.98, 11, np.log(scores).mean(), np.log(scores).std(ddof=1) * (1 + 1 / 12) ** 0.5)[1]
    found = limits({"nut": KnownScores(good=scores)})["nut"]
    assert found.threshold == pytest.approx(np.exp(wanted))
    assert found.middle == pytest.approx(stats.gmean(scores))


def test_images_that_were_trained_on_are_raised_by_what_others_score_more() -> None:
    trained = log_normal(80)
    known = {
        "nut": KnownScores(trained, 1.25 * log_normal(40, seed=1)),
        "bolt": KnownScores(3 * trained, 3 * 1.25 * log_normal(40, seed=2)),
    }
    assert rise_of(known) == pytest.approx(np.log(1.25), abs=0.06)
    alone = limits(known | {"washer": KnownScores(trained)})["washer"]  # has no other images itself
    raised = limits({"washer": KnownScores(good=trained * np.exp(rise_of(known)))})["washer"]
    assert alone.threshold == pytest.approx(raised.threshold)


def test_with_defective_images_it_separates_them_where_it_can() -> None:
    good = log_normal(30)
    alone = limits({"nut": KnownScores(good=good)})["nut"].threshold
    far = limits({"nut": KnownScores(good=good, defective=log_normal(10, middle=2.0, seed=1))})["nut"]
    assert far.threshold == pytest.approx(alone)  # it makes no mistake
    faint = log_normal(10, middle=0.3, deviation=0.05, seed=1)
    near = limits({"nut": KnownScores(good=good, defective=faint)})["nut"]
    assert near.threshold < alone
    fewest = min((good > cut).sum() + (faint <= cut).sum() for cut in np.linspace(0.5, 3, 2000))
    assert (good > near.threshold).sum() + (faint <= near.threshold).sum() <= fewest + 1


def test_too_few_images_decide_nothing_and_say_so() -> None:
    few = limits({"nut": KnownScores(trained=log_normal(2), good=log_normal(LEAST_GOOD - 3))})["nut"]
    assert np.isnan(few.threshold)
    assert few.rule == "none: 2 trained and 2 other good images"


def test_images_that_all_score_the_same_have_a_scale() -> None:
    found = limits({"nut": KnownScores(good=np.full(9, 2.0))})["nut"]
    assert found.middle < found.threshold < 2.01
