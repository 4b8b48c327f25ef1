# SPDX-License-Identifier: Apache-2.0
import copy

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf

from anomalib_uniad.model.products import FARTHEST, Products, on_scale

CHANNELS = 12


def pooled(product: int, count: int = 40, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * product + seed)
    mean = torch.randn(CHANNELS, generator=torch.Generator().manual_seed(product)) * 3
    mixed = torch.randn(CHANNELS, CHANNELS, generator=torch.Generator().manual_seed(99))
    return mean + torch.randn(count, CHANNELS, generator=generator) @ mixed * 0.3


def features(samples: torch.Tensor) -> torch.Tensor:
    return samples[:, :, None, None].expand(-1, -1, 3, 3)


@pytest.fixture
def products() -> Products:
    made = Products()
    assert made.learn([pooled(number) for number in range(4)]) == [[0], [1], [2], [3]]
    made.calibrate([(1.0, 2.0), (10.0, 12.0), (1.0, float("nan")), (5.0, 6.0)], [0.5, 0.5, float("nan"), 4.0])
    return made


def test_distances_are_those_of_scikit_learn(products: Products) -> None:
    samples = [pooled(number).double().numpy() for number in range(4)]
    within = np.concatenate([sample - sample.mean(axis=0) for sample in samples])
    reference = LedoitWolf(assume_centered=True).fit(within)
    point = pooled(1, 1, seed=5).double().numpy() - samples[1].mean(axis=0)
    root = products.to_distance.double().numpy()
    assert np.square(point @ root).sum() == pytest.approx(reference.mahalanobis(point)[0], rel=1e-4)


def test_products_are_recognised_and_others_are_not(products: Products) -> None:
    for number in range(4):
        product, unknown = products.recognise(features(pooled(number, seed=1)))
        assert (product == number).all()
        assert not unknown.any()
    _, unknown = products.recognise(features(pooled(17)))
    assert unknown.all()


def test_the_limit_is_over_images_that_the_estimate_has_not_seen(products: Products) -> None:
    _, unknown = products.recognise(features(pooled(0, 400, seed=3)))
    assert not unknown.any()
    typical = products.farthest.sqrt().item() / FARTHEST
    unseen = pooled(0, 400, seed=3) - products.means[0]
    distances = (unseen @ products.to_distance).square().sum(dim=1).sqrt()
    assert distances.median().item() == pytest.approx(typical, rel=0.15)


def test_scores_and_maps_of_all_products_are_on_one_scale(products: Products) -> None:
    one_of_each = features(torch.cat([pooled(number, 1, seed=1) for number in range(4)]))
    at_thresholds = torch.tensor([2.0, 12.0, 1.0, 6.0])
    maps = torch.tensor([0.5, 1.0, 3.0, 0.0]).reshape(4, 1, 1, 1)
    judged = products(one_of_each, at_thresholds, maps)
    assert judged.product.tolist() == [0, 1, 2, 3]
    assert judged.score.tolist() == [0.0, 0.0, 1.0, 0.0]  # nothing is decided about the third
    assert judged.anomaly_map.flatten().tolist() == [0.0, 0.5, 0.0, -0.5]
    typical = products(one_of_each, torch.tensor([1.0, 10.0, 1.0, 5.0]), maps)
    assert typical.score.tolist() == [-0.5, -0.5, 1.0, -0.5]


def test_an_image_of_an_unknown_product_is_anomalous(products: Products) -> None:
    judged = products(features(pooled(17, 2)), torch.zeros(2), torch.zeros(2, 1, 4, 4))
    assert judged.unknown.all()
    assert judged.score.tolist() == [1.0, 1.0]


def test_the_order_of_scores_stays() -> None:
    scores = torch.linspace(0, 1000, 500)
    assert (on_scale(scores, torch.tensor(2.0), 1.5).diff() > 0).all()


def test_products_that_are_confused_belong_together() -> None:
    products = Products()
    groups = products.learn([pooled(0), pooled(1), pooled(0, seed=1), pooled(2)])
    assert groups == [[0, 2], [1], [3]]


def test_products_of_one_image_do_not_tell_what_is_unknown() -> None:
    products = Products()
    products.learn([pooled(0, 1), pooled(1)])
    assert products.farthest.isfinite()
    assert products.recognise(features(pooled(1, 5, seed=2)))[1].sum() == 0
    products.learn([pooled(0, 1), pooled(1, 1)])
    assert products.farthest.isinf()


def test_a_checkpoint_brings_its_products(products: Products) -> None:
    loaded = Products()
    assert not loaded.known
    loaded.load_state_dict(copy.deepcopy(products.state_dict()))
    assert loaded.known
    same = features(pooled(3, 5, seed=2))
    scores, maps = torch.rand(5), torch.rand(5, 1, 4, 4)
    for found, wanted in zip(loaded(same, scores, maps), products(same, scores, maps), strict=True):
        torch.testing.assert_close(found, wanted)
