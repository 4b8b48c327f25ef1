# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from scipy import stats

from anomalib_uniad.metrics.limits import LEAST_GOOD, TYPICAL_RISE, KnownScores, limits


def log_normal(count: int, middle: float = 0.0, deviation: float = 0.2, seed: int = 0) -> np.ndarray:
    return np.exp(np.random.default_rng(seed).normal(middle, deviation, count))


@pytest.mark.parametrize(
    "count", [pytest.param(5, marks=pytest.mark.slow), 20, pytest.param(100, marks=pytest.mark.slow)]
)
def test_a_further_good_image_exceeds_the_limit_as_often_as_wanted(count: int) -> None:
    generator = np.random.default_rng(count)
    exceeded = []
    for _ in range(4000):
        scores = np.exp(generator.normal(1.0, 0.3, count + 1))
        limit = limits({"nut": KnownScores(good=scores[1:])}, rate=0.05)["nut"]
        exceeded.append(scores[0] > limit.threshold)
    assert np.mean(exceeded) == pytest.approx(0.05, abs=3 * (0.05 * 0.95 / 4000) ** 0.5)


def test_the_limit_is_that_of_the_textbook() -> None:
    scores = np.exp(stats.norm(0.0, 0.2).ppf((np.arange(12) + 0.5) / 12))  # of no skewness
    wanted = stats.t.interval(0.98, 11, np.log(scores).mean(), np.log(scores).std(ddof=1) * (1 + 1 / 12) ** 0.5)[1]
    found = limits({"nut": KnownScores(good=scores)})["nut"]
    assert found.threshold == pytest.approx(np.exp(wanted))
    assert found.middle == pytest.approx(stats.gmean(scores))


@pytest.mark.parametrize("rate", [0.01, 0.02, 0.05])
def test_a_long_tail_that_all_products_show_moves_the_limits(rate: float) -> None:
    generator = np.random.default_rng(1)

    def tailed(*shape: int) -> np.ndarray:
        return np.exp(0.2 * stats.pearson3.rvs(1.0, size=shape, random_state=generator))

    exceeded = []
    for _ in range(40):
        products = {f"part {row}": KnownScores(scores[:48], scores[48:]) for row, scores in enumerate(tailed(8, 60))}
        exceeded += [(tailed(2000) > limit.threshold).mean() for limit in limits(products, rate).values()]
    # If the tail were taken for a normal one, 2.7, 2.0 and 1.4 times as many.
    assert np.mean(exceeded) == pytest.approx(rate, rel={0.01: 0.5, 0.02: 0.4, 0.05: 0.3}[rate])


def test_what_unseen_images_score_more_is_measured_on_all_products() -> None:
    def product(deviation: float, count: int, seed: int) -> KnownScores:
        """Unseen images score two standard deviations of the trained ones higher, and vary as much again."""
        return KnownScores(
            log_normal(100, 0, deviation, seed), log_normal(count, 2 * deviation, 2 * deviation, seed + 1)
        )

    found = limits({"nut": product(0.1, 40, 0), "bolt": product(0.3, 40, 10), "pin": product(0.2, 0, 20)})
    for name, deviation in (("nut", 0.1), ("bolt", 0.3), ("pin", 0.2)):  # no image of pin has told so
        fresh = log_normal(20000, 2 * deviation, 2 * deviation, 7)
        assert 0.001 < (fresh > found[name].threshold).mean() < 0.03
        assert np.log(found[name].middle) == pytest.approx(2 * deviation, abs=deviation)


def test_without_any_unseen_image_a_typical_rise_is_taken() -> None:
    trained = log_normal(400)
    found = limits({"nut": KnownScores(trained)}, rate=0.05)["nut"]
    above = TYPICAL_RISE[0] + stats.t.isf(0.05, 399) * TYPICAL_RISE[1] * (1 + 1 / 400) ** 0.5
    logs = np.log(trained)
    assert np.log(found.threshold) == pytest.approx(logs.mean() + above * logs.std(ddof=1))


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


def test_what_is_usual_is_from_its_own_images() -> None:
    """The middle, that is; others, of which unseen images rise far more, help with the spread alone."""
    trained, own = log_normal(100, 0.0, 0.1), log_normal(4, 0.2, 0.2, 1)
    other = KnownScores(log_normal(100, 0.0, 0.1, 2), log_normal(30, 1.0, 0.2, 3))
    found = limits({"nut": KnownScores(trained, own), "bolt": other})["nut"].good_scores
    assert found["middle"] == pytest.approx(stats.gmean(own))
    assert found["images"] == 4
    assert found["spread"] == pytest.approx(0.2, abs=0.06)
    assert 3 < found["freedom"] < 32
    alone = limits({"nut": KnownScores(good=own[:0]), "bolt": other})
    assert alone["nut"].good_scores == {}
    logs = np.log(other.good)
    assert alone["bolt"].good_scores["spread"] == pytest.approx(logs.std(ddof=1))
    assert alone["bolt"].good_scores["freedom"] == pytest.approx(29)
